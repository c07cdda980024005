"""How the methods train: ratios, lengths, KL, entropy; sweeps of p, m, N and T; the collapse.

    python -m experiments.dynamics --workdir=runs/dynamics            about 15 min on 2 cores

Each panel varies one thing of a config of ReMix and shows its runs over seeds. What the paper says
of its dynamics is then looked for in these runs: a finding is "seen" if every seed shows it, paired
with the same seed of the other arm, "reversed" if every seed shows the opposite, else "not seen".
"""

import dataclasses
import math
import pathlib
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from absl import flags

from experiments import config_flag, main, trials
from experiments.compare import CONFIG
from experiments.methods import METHODS, with_rollouts
from experiments.report import dynamics, files
from experiments.report.intervals import median
from experiments.trials import Trial
from remix_jax.config import Config
from remix_jax.run import report
from remix_jax.schedule import planned_rollouts

SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
PASSES = WINDOWS = (1, 2, 4, 8)
LEVELS = (0.6, 0.7, 0.8)


class Arm(NamedTuple):
    """One line of a panel: its name, what the sweep varies (None outside sweeps), its config."""

    name: str
    label: str
    value: float | None
    config: Config


class Panel(NamedTuple):
    """Arms that are compared."""

    name: str
    title: str
    arms: list[Arm]


def panels(config: Config) -> list[Panel]:
    """All panels of a config of full ReMix."""
    return [
        Panel("methods", "Methods at one learning rate", _methods(config)),
        Panel("p", "Replayed share p", [_sweep(config, "p", "replay.share", p) for p in SHARES]),
        Panel("m", "Passes over a batch m", [_sweep(config, "m", "passes", m) for m in PASSES]),
        Panel(
            "n",
            "Window N of the replay, steps",
            [_sweep(config, "N", "replay.window", n) for n in WINDOWS],
        ),
        Panel(
            "t",
            "Reincarnation step T (0: never)",
            [_sweep(config, "T", "reincarnation_step", t) for t in _reincarnations(config)],
        ),
        Panel("collapse", "Collapse, and what rescues: p = .4, m = 8", _collapse(config)),
    ]


def _reincarnations(config: Config) -> list[int]:
    usual = config.reincarnation_step
    return [0, usual // 3, usual // 2, usual, 2 * usual]


def _methods(config: Config) -> list[Arm]:
    base = "ppo" if config.has_critic else "grpo"
    names = [f"remix-{base}", base, f"remix-{base}-without-reincarnation"]
    names += [f"remix-{base}-without-kl-convex", f"mix-{base}", f"utd-{base}"]
    return [Arm(name, METHODS[name].label, None, METHODS[name].change(config)) for name in names]


def _sweep(config: Config, letter: str, field: str, value: float) -> Arm:
    label = "never" if letter == "T" and value == 0 else f"{letter} = {value:g}"
    changed = with_rollouts(_set(config, field, value), planned_rollouts(config))
    return Arm(f"{letter}{value:g}", label, value, changed)


def _collapse(config: Config) -> list[Arm]:
    """Mixed data used eight times over at twice the learning rate, and one remedy at a time."""
    changes: dict[str, dict[str, Any]] = {
        "no KL, no T": {},
        "KL weight .001, no T": {"kl.coef": 0.001, "kl.convex": True},
        "KL weight .05, no T": {"kl.coef": 0.05, "kl.convex": True},
        "no KL, T = 10": {"reincarnation_step": 10},
        "no KL, T = 15": {"reincarnation_step": 15},
        "no KL, no T, p = 0": {"replay.share": 0.0},
        "no KL, no T, m = 1": {"passes": 1},
    }
    rate = 2 * config.rates[0]
    start = {
        "passes": 8, "replay.share": 0.4, "kl.coef": 0.0, "kl.convex": False,
        "reincarnation_step": 0, "optimizer.learning_rate": rate,
    }  # fmt: skip
    arms = []
    for label, change in changes.items():
        changed = config
        for field, value in (start | change).items():
            changed = _set(changed, field, value)
        arms.append(Arm(label, label, None, with_rollouts(changed, 4600)))
    return arms


def _set(config: Any, field: str, value: Any) -> Any:
    """A copy of the config with a dotted field changed."""
    name, _, rest = field.partition(".")
    new = _set(getattr(config, name), rest, value) if rest else value
    return dataclasses.replace(config, **{name: new})


# Findings


def findings(data: dict[str, Any]) -> list[dict[str, str]]:
    """What the paper reports of its dynamics, looked for in these runs."""

    def at(panel: str, arm: str, measure: Callable, series: str) -> dict[int, float]:
        found = {t["seed"]: measure(t, series) for t in dynamics.trials_of(data, panel, arm)}
        return {seed: value for seed, value in found.items() if not math.isnan(value)}

    def early(panel, arm):
        return at(panel, arm, dynamics.early, report.ACCURACY)

    def end(panel, arm):
        return at(panel, arm, dynamics.last, report.ACCURACY)

    def length(panel, arm):
        return at(panel, arm, dynamics.mean, "response_length")

    def drift(panel, arm):
        return at(panel, arm, dynamics.oldest_mean, "ratio_mean")

    doomed = "no KL, no T"
    best = at("collapse", doomed, dynamics.greatest, report.ACCURACY)
    fallen = {seed: value + 0.2 for seed, value in end("collapse", doomed).items()}
    one = dict.fromkeys(drift("p", "p0.4"), 1.0)
    return [
        _finding("Replay gains early: at 1,024 rollouts p = .4 is ahead of p = 0.",
                 early("p", "p0.4"), early("p", "p0"), 100, "points"),
        _finding("More replay gains more, early: p = .8 is ahead of p = .4 at 1,024 rollouts.",
                 early("p", "p0.8"), early("p", "p0.4"), 100, "points"),
        _finding("Responses get shorter with replay: p = .8 against p = 0, mean over the run.",
                 length("p", "p0"), length("p", "p0.8"), 1, "tokens shorter"),
        _finding("A worse end with much replay: p = .8 against p = .2, last evaluation.",
                 end("p", "p0.2"), end("p", "p0.8"), 100, "points worse"),
        _finding("The mean importance ratio of replayed rows drifts above 1, at p = .4.",
                 drift("p", "p0.4"), one, 1, "above 1"),
        _finding("The drift grows with p: p = .8 against p = .2.",
                 drift("p", "p0.8"), drift("p", "p0.2"), 1, "more"),
        _finding("Late collapse at p = .4, m = 8 without KL and reincarnation: "
                 "the end lies 20 points or more under the run's best.",
                 best, fallen, 100, "points beyond those 20"),
        _finding("Reincarnation repairs the end: the same with T = 10 ends higher.",
                 end("collapse", "no KL, T = 10"), end("collapse", doomed), 100, "points"),
        _finding("A KL weight of .05 repairs it as well.",
                 end("collapse", "KL weight .05, no T"), end("collapse", doomed),
                 100, "points"),
        _finding("A KL weight of .001 does.",
                 end("collapse", "KL weight .001, no T"), end("collapse", doomed),
                 100, "points"),
        _finding("At the usual m = 2, too, reincarnation gives a better end than none.",
                 end("methods", "remix-ppo"), end("methods", "remix-ppo-without-reincarnation"),
                 100, "points"),
    ]  # fmt: skip


def _finding(
    claim: str, more: dict[int, float], less: dict[int, float], scale: float, unit: str
) -> dict[str, str]:
    """Whether `more` exceeds `less`, seed by seed."""
    differences = [scale * (more[seed] - less[seed]) for seed in sorted(more.keys() & less.keys())]
    verdict = "not seen"
    if differences and min(differences) > 0:
        verdict = "seen"
    elif differences and max(differences) < 0:
        verdict = "reversed"
    middle = median(differences)
    if middle is None:
        return {"claim": claim, "verdict": verdict, "evidence": "No seed has both figures."}
    evidence = (
        f"{middle.median:+.3g} {unit}, seed by seed "
        f"{min(differences):+.3g} to {max(differences):+.3g} ({len(differences)} seeds)."
    )
    return {"claim": claim, "verdict": verdict, "evidence": evidence}


# The experiment


def measure(config: Config, seeds: int, workdir: pathlib.Path, workers: int) -> dict[str, Any]:
    """Trains every arm of every panel; the content of dynamics.json, without `about`."""
    made = panels(config)
    named: dict[str, Config] = {}  # arms of several panels that are the same run, once
    runs = [
        (p, a, s, _name(a.config, s, named)) for p in made for a in p.arms for s in range(seeds)
    ]
    done = trials.run([Trial(n, c) for n, c in named.items()], workdir / "runs", workers)
    data = {
        "levels": list(LEVELS),
        "panels": [
            {
                "name": panel.name,
                "title": panel.title,
                "arms": [{"name": a.name, "label": a.label, "value": a.value} for a in panel.arms],
            }
            for panel in made
        ],
        "trials": [
            dynamics.record(
                done[name].metrics,
                panel=panel.name,
                arm=arm.name,
                seed=seed,
                broken=done[name].broken,
            )
            for panel, arm, seed, name in runs
        ],
    }
    return data | {"findings": findings(data)}


def _name(config: Config, seed: int, named: dict[str, Config]) -> str:
    """The name of a run: what distinguishes its config from others."""
    c = dataclasses.replace(config, seed=config.seed + seed)
    fields: Iterable[str] = (
        f"p{c.replay.share:g}", f"m{c.passes}", f"N{c.replay.window}", f"T{c.reincarnation_step}",
        f"lr{c.optimizer.learning_rate:g}",
        f"kl{c.kl.coef:g}{'' if c.kl.convex else '-plain'}", f"seed{c.seed}",
    )  # fmt: skip
    name = "-".join(fields)
    if named.setdefault(name, c) != c:
        raise AssertionError(f"two configs under the name {name}")
    return name


def experiment() -> None:
    """The experiment behind the flags."""
    begin = time.perf_counter()
    workdir = pathlib.Path(WORKDIR.value)
    config = config_flag.value_of(CONFIG_FLAG)
    workers = WORKERS()
    data = measure(config, SEEDS.value, workdir, workers)
    data["about"] = trials.about(config, time.perf_counter() - begin, workers)
    files.write("dynamics", data, workdir)
    for finding in data["findings"]:
        print(f"{finding['verdict']}: {finding['claim']} {finding['evidence']}")
    print(f"tables and figures: {workdir}/dynamics.md, .json, *.png")


if __name__ == "__main__":
    CONFIG_FLAG = config_flag.define(default=str(CONFIG))
    SEEDS = flags.DEFINE_integer("seeds", 3, "seeds of every arm", lower_bound=1)
    WORKERS = trials.define_workers()
    WORKDIR = flags.DEFINE_string("workdir", "runs/dynamics", "a directory a run, and the results")
    main.run(experiment)
