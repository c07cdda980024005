"""The bars that a correct implementation meets on the arithmetic task, from stored results.

    python -m experiments.bars --comparison=experiments/results/arithmetic/comparison \
        --dynamics=experiments/results/arithmetic/dynamics \
        --prefix=experiments/results/arithmetic/prefix

Each bar is a claim about medians over seeds, with the figure that was measured: "met" or "missed".
"""

import pathlib
import statistics
from collections.abc import Iterator
from typing import NamedTuple

from absl import flags
from rich import box
from rich.console import Console as Terminal
from rich.table import Table

from experiments import main
from remix_jax.reporting import comparison, dynamics, prefix
from remix_jax.reporting import comparison_numbers as compared
from remix_jax.reporting import dynamics_numbers as numbers
from remix_jax.reporting import prefix_numbers as prefixes
from remix_jax.run import report

RESULTS = pathlib.Path(__file__).resolve().parent / "results" / "arithmetic"


class Bar(NamedTuple):
    """A claim, the least (or most) that it asks for, and what was measured (None: nothing)."""

    claim: str
    asked: float
    measured: float | None
    at_most: bool = False

    @property
    def met(self) -> bool:
        """Whether the measured figure is on the right side of the bar."""
        if self.measured is None:
            return False
        return self.measured <= self.asked if self.at_most else self.measured >= self.asked


def prefix_bars(results: prefixes.Data) -> Iterator[Bar]:
    """Bar 7: accuracy on hard problems without a prefix, with PrefixRL and without."""
    rate, rollouts = results["learning_rates"][0], results["bar"]["rollouts"]
    claim = f"7. PrefixRL, rate {rate:g}: unprefixed hard accuracy at {rollouts:,} rollouts"
    yield Bar(claim, 0.35, statistics.median(results["bar"]["accuracy"]))
    found = [
        report.interpolate(*prefixes.curve(t, x="rollouts"), rollouts)
        for t in prefixes.trials(results, prefixes.PLAIN, rate)
    ]
    known = [value for value in found if value is not None]
    measured = statistics.median(known) if known else None
    yield Bar("7. the same by plain GRPO", 0.1, measured, at_most=True)


def bars(runs: compared.Data, trained: numbers.Data) -> Iterator[Bar]:
    """Bars 1 to 6."""
    for level, least in ((0.6, 1.5), (0.7, 1.8), (0.8, 1.7)):
        claim = f"1. equal rate: PPO / ReMix-PPO, rollouts to {level:.0%}"
        yield Bar(claim, least, _times(runs, "ppo", "remix-ppo", "equal", level))
    gain = _difference(_at(runs, "remix-ppo", "equal", 1024), _at(runs, "ppo", "equal", 1024))
    yield Bar("2. equal rate: ReMix-PPO - PPO, accuracy at 1,024 rollouts", 0.08, gain)
    for more, less, least in (
        ("ppo", "utd-ppo", 1.3),
        ("ppo", "mix-ppo", 1.25),
        ("mix-ppo", "remix-ppo", 1.2),
    ):
        names = f"{compared.label(runs, more)} / {compared.label(runs, less)}"
        claim = f"3. equal rate: {names}, rollouts to 80%"
        yield Bar(claim, least, _times(runs, more, less, "equal", 0.8))
    by_base = compared.ratios_by_base(runs, "remix-ppo", "best", 0.7)
    medians = [interval.median for interval in by_base.values() if interval is not None]
    mean = statistics.fmean(medians) if medians else None
    yield Bar("4. each at its own best: PPO / ReMix-PPO to 70%, mean over base models", 1.1, mean)
    gap = _difference(_at(runs, "remix-ppo", "best", 4000), _at(runs, "ppo", "best", 4000))
    yield Bar("5. each at its own best: ReMix-PPO - PPO, accuracy at 4,000 rollouts", -0.03, gap)
    doomed = _end(trained, "no KL, no T")
    yield Bar("6. collapse: accuracy at the end without KL and T", 0.2, doomed, at_most=True)
    yield Bar("6. rescue: the same with T = 10", 0.7, _end(trained, "no KL, T = 10"))


def _times(runs, more: str, less: str, which: str, level: float) -> float | None:
    """Median over seeds of rollouts of `more` / rollouts of `less`; inf if only `less` arrives."""
    base = compared.crossings(runs, more, which, level)
    own = compared.crossings(runs, less, which, level)
    pairs = [compared.times(base[s], own[s]) for s in sorted(base.keys() & own.keys())]
    known = [ratio for ratio in pairs if ratio is not None]
    return statistics.median(known) if known else None


def _at(runs, method: str, which: str, rollouts: float) -> dict[int, float | None]:
    trials = compared.setting(runs, method, which)
    return {
        seed: report.interpolate(t["curve"]["rollouts"], t["curve"]["accuracy"], rollouts)
        for seed, t in trials.items()
    }


def _difference(more: dict[int, float | None], less: dict[int, float | None]) -> float | None:
    """Median over the seeds that both have."""
    gaps = []
    for seed in more.keys() & less.keys():
        a, b = more[seed], less[seed]
        if a is not None and b is not None:
            gaps.append(a - b)
    return statistics.median(gaps) if gaps else None


def _end(trained, arm: str) -> float | None:
    ends = [numbers.last(t, report.ACCURACY) for t in numbers.trials(trained, "collapse", arm)]
    return statistics.median([end for end in ends if end is not None])


def experiment() -> None:
    """The table."""
    runs = comparison.read(pathlib.Path(COMPARISON.value) / "comparison.json")
    trained = dynamics.read(pathlib.Path(DYNAMICS.value) / "dynamics.json")
    results = prefix.read(pathlib.Path(PREFIX.value) / "prefix.json")
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("bar", "asked for", "measured", ""):
        table.add_column(name, justify="left" if name in ("bar", "") else "right")
    for bar in (*bars(runs, trained), *prefix_bars(results)):
        side = "<=" if bar.at_most else ">="
        measured = "-" if bar.measured is None else f"{bar.measured:.2f}"
        verdict = "met" if bar.met else "missed"
        table.add_row(bar.claim, f"{side} {bar.asked:g}", measured, verdict)
    Terminal(width=110).print(table)


if __name__ == "__main__":
    COMPARISON = flags.DEFINE_string(
        "comparison", str(RESULTS / "comparison"), "directory of a comparison.json"
    )
    DYNAMICS = flags.DEFINE_string(
        "dynamics", str(RESULTS / "dynamics"), "directory of a dynamics.json"
    )
    PREFIX = flags.DEFINE_string("prefix", str(RESULTS / "prefix"), "directory of a prefix.json")
    main.run(experiment)
