"""The bars that a correct implementation meets on the arithmetic task, from stored results.

    python -m experiments.bars --comparison=experiments/results/arithmetic/comparison \
        --dynamics=experiments/results/arithmetic/dynamics \
        --prefix=experiments/results/arithmetic/prefix

Each bar is a claim about medians over seeds, with the figure that was measured: "met" or "missed".
"""

import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import pandas as pd
from absl import flags
from rich.console import Console as Terminal

from experiments import main
from experiments.report import dynamics, files, prefix
from experiments.report.comparison import Comparison
from experiments.report.results import value_at
from experiments.tables import Sheet
from remix_jax.run import report

RESULTS = pathlib.Path(__file__).resolve().parent / "results" / "arithmetic"


class Bar(NamedTuple):
    """A claim, the least (or most) that it asks for, and what was measured (NaN: nothing)."""

    claim: str
    asked: float
    measured: float
    at_most: bool = False

    @property
    def met(self) -> bool:
        """Whether the measured figure is on the right side of the bar."""
        return self.measured <= self.asked if self.at_most else self.measured >= self.asked


def prefix_bars(runs: prefix.Prefix) -> Iterator[Bar]:
    """Bar 7: accuracy on hard problems without a prefix, with PrefixRL and without."""
    rate, bar = runs.data["learning_rates"][0], runs.data["bar"]
    claim = f"7. PrefixRL, rate {rate:g}: unprefixed hard accuracy at {bar['rollouts']:,} rollouts"
    yield Bar(claim, 0.35, pd.Series(bar["accuracy"]).median())
    found = runs.at(prefix.PLAIN, rate)["curve"].map(
        lambda curve: value_at(curve["rollouts"], curve[prefix.HARD], bar["rollouts"])
    )
    yield Bar("7. the same by plain GRPO", 0.1, found.median(), at_most=True)


def bars(runs: Comparison, trained: dict[str, Any]) -> Iterator[Bar]:
    """Bars 1 to 6."""
    for level, least in ((0.6, 1.5), (0.7, 1.8), (0.8, 1.7)):
        claim = f"1. equal rate: PPO / ReMix-PPO, rollouts to {level:.0%}"
        yield Bar(claim, least, runs.ratios("remix-ppo", "equal", level).median())
    gain = _gain(runs, "equal", 1024)
    yield Bar("2. equal rate: ReMix-PPO - PPO, accuracy at 1,024 rollouts", 0.08, gain)
    for more, less, least in (
        ("ppo", "utd-ppo", 1.3),
        ("ppo", "mix-ppo", 1.25),
        ("mix-ppo", "remix-ppo", 1.2),
    ):
        claim = f"3. equal rate: {runs.label(more)} / {runs.label(less)}, rollouts to 80%"
        yield Bar(claim, least, runs.ratios(less, "equal", 0.8, base=more).median())
    by_base = runs.ratios_by_base("remix-ppo", "best", 0.7).values()
    mean = pd.Series([found.median for found in by_base if found], dtype=float).mean()
    yield Bar("4. each at its own best: PPO / ReMix-PPO to 70%, mean over base models", 1.1, mean)
    gap = _gain(runs, "best", 4000)
    yield Bar("5. each at its own best: ReMix-PPO - PPO, accuracy at 4,000 rollouts", -0.03, gap)
    doomed = _end(trained, "no KL, no T")
    yield Bar("6. collapse: accuracy at the end without KL and T", 0.2, doomed, at_most=True)
    yield Bar("6. rescue: the same with T = 10", 0.7, _end(trained, "no KL, T = 10"))


def _gain(runs: Comparison, setting: str, rollouts: float) -> float:
    """ReMix-PPO's accuracy after so many rollouts less PPO's; median over the seeds of both."""
    own, base = (
        runs.runs(name, setting)["curve"].map(
            lambda curve: value_at(curve["rollouts"], curve["accuracy"], rollouts)
        )
        for name in ("remix-ppo", "ppo")
    )
    return (own - base).median()


def _end(trained: dict[str, Any], arm: str) -> float:
    ends = [dynamics.last(t, report.ACCURACY) for t in dynamics.trials_of(trained, "collapse", arm)]
    return pd.Series(ends).median()


def experiment() -> None:
    """The table."""
    runs, trained, results = (
        files.read(kind, pathlib.Path(flag.value) / f"{kind}.json") for kind, flag in FLAGS.items()
    )
    rows = [
        [bar.claim, f"{'<=' if bar.at_most else '>='} {bar.asked:g}", f"{bar.measured:.2f}",
         "met" if bar.met else "missed"]
        for bar in (*bars(runs, trained), *prefix_bars(results))
    ]  # fmt: skip
    Terminal(width=110).print(Sheet(["bar", "asked for", "measured", ""], rows).terminal())


if __name__ == "__main__":
    FLAGS = {
        kind: flags.DEFINE_string(kind, str(RESULTS / kind), f"directory of a {kind}.json")
        for kind in ("comparison", "dynamics", "prefix")
    }
    main.run(experiment)
