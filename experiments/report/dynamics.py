"""How methods train, not only where they end: ratios, KL, lengths, sweeps; records and tables.

dynamics.json holds "about", "levels", "panels" ({"name", "title", "arms": [{"name", "label",
"value"}]}, value a number in a sweep, else None), "trials" (of `record`) and "findings" ({"claim",
"verdict", "evidence"}).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from experiments.report.intervals import Interval, cell, median
from experiments.report.results import Data, significant, spent, value_at
from experiments.tables import Sheet, goal, page, share
from remix_jax.errors import InputError
from remix_jax.run import report
from remix_jax.sinks.console import ages
from remix_jax.sinks.metrics import Metrics
from remix_jax.text import count

EARLY = 1024  # rollouts at which early accuracy is read
POINTS = 48  # of a series, at most
SERIES = (
    "response_length", "ratio_mean", "clip_share", "ess", "kl_base", "kl_prev", "entropy",
    "reward", "grad_norm", "ratio_max",
)  # fmt: skip
BY_AGE = ("ratio_mean", "ratio_max", "clip_share")


# Records


def record(
    metrics: Sequence[Metrics], *, panel: str, arm: str, seed: int, broken: bool = False
) -> dict[str, Any]:
    """What dynamics.json keeps of one run.

    Series are against fresh rollouts. eval/mean has every evaluation; the others, one value a step,
    are thinned to at most 48 points, each the mean of as many steps (of ratio_max the greatest), at
    the mean of their rollouts. Steps where a figure is missing or not finite are left out. A series
    by age has the steps with rows of that age.

    Args:
      broken: the run ended before its last step, by a loss that is not finite.
    Returns:
      panel, arm, seed, "broken": true where it is, reincarnation (rollouts at the end of the mix
      stage, or None) and series: name -> {"rollouts", "value"}, to 4 significant digits.
    Raises:
      InputError: a run without evaluations.
    """
    xs, ys = report.curve(metrics, report.ACCURACY)
    if not xs:
        raise InputError(
            f"dynamics: {panel}, {arm}, seed {seed}: no step with {report.ACCURACY}; expected an "
            "evaluated run"
        )
    series = {report.ACCURACY: _rounded(xs, ys)}
    found = sorted({age for step in metrics for age in ages(step)})
    for key in SERIES:
        names = {key: metrics}
        for age in found if key in BY_AGE else ():
            names[f"{key}/age{age}"] = [step for step in metrics if age in ages(step)]
        for name, steps in names.items():
            xs, ys = report.curve(steps, name)
            if xs:
                series[name] = _thinned(xs, ys, "max" if key == "ratio_max" else "mean")
    at = report.reincarnation(metrics, "rollouts")
    identity = {"panel": panel, "arm": arm, "seed": seed} | ({"broken": True} if broken else {})
    return identity | {"reincarnation": at, "series": series}


def _thinned(xs: Sequence[float], ys: Sequence[float], pool: str) -> dict[str, list[float]]:
    """At most `POINTS` points: the mean of x and the pooled y of as many neighbours each."""
    groups = np.arange(len(xs)) // math.ceil(len(xs) / POINTS)
    frame = pd.DataFrame({"x": xs, "y": ys}).groupby(groups).agg({"x": "mean", "y": pool})
    return _rounded(frame["x"], frame["y"])


def _rounded(xs: Any, ys: Any) -> dict[str, list[float]]:
    return {"rollouts": [significant(x) for x in xs], "value": [significant(y, 4) for y in ys]}


# Numbers of a trial; NaN where it does not have the series


def trials_of(data: Data, panel: str, arm: str) -> list[Data]:
    """The trials of an arm, by seed in ascending order."""
    own = [t for t in data["trials"] if t["panel"] == panel and t["arm"] == arm]
    return sorted(own, key=lambda trial: trial["seed"])


def series(trial: Data, name: str) -> tuple[list[float], list[float]]:
    """(rollouts, values) of a series; empty where the run does not have it.

    The accuracy of a run that broke off is 0 from there, without end.
    """
    found = trial["series"].get(name, {"rollouts": [], "value": []})
    xs, ys = found["rollouts"], found["value"]
    if trial.get("broken") and name == report.ACCURACY:
        return [*xs, float(np.nextafter(xs[-1], math.inf)), math.inf], [*ys, 0.0, 0.0]
    return xs, ys


def reached(own: Sequence[Data], level: float) -> Interval | None:
    """Fresh rollouts to the level, over seeds; never counts as infinity."""
    return median(spent(*series(trial, report.ACCURACY), level) for trial in own)


def mean(trial: Data, name: str) -> float:
    """Mean over the run."""
    values = series(trial, name)[1]
    return math.fsum(values) / len(values) if values else math.nan


def last(trial: Data, name: str) -> float:
    """The last value."""
    return (series(trial, name)[1] or [math.nan])[-1]


def greatest(trial: Data, name: str) -> float:
    """The greatest value."""
    return max(series(trial, name)[1], default=math.nan)


def early(trial: Data, name: str) -> float:
    """The value at 1,024 fresh rollouts, linear between points."""
    return value_at(*series(trial, name), EARLY)


def oldest_mean(trial: Data, name: str) -> float:
    """Mean over the run, of the rows of the greatest age that the run has."""
    found = ages_of([trial])
    return mean(trial, f"{name}/age{found[-1]}") if found else math.nan


def ages_of(own: Sequence[Data]) -> list[int]:
    """Ages of rows of which any of the trials has ratios."""
    names = {name for trial in own for name in trial["series"] if name.startswith("ratio_mean/age")}
    return sorted(int(name.rpartition("/age")[2]) for name in names)


# Markdown


def markdown(data: Data) -> str:
    """dynamics.md: a table a panel, the findings, and how the numbers were made."""
    lines = ["# Dynamics", ""]
    for panel in data["panels"]:
        lines += [f"## {panel['title']}", "", *_sheet(data, panel).markdown()]
    lines += ["## Findings", ""]
    for finding in data["findings"]:
        lines.append(
            f"* **{finding['verdict']}**: {finding['claim']} {finding['evidence']}".rstrip()
        )
    lines += [
        "",
        "Median over seeds [95 % bootstrap interval; the range with fewer than three seeds]. A "
        "level is reached at the first held-out evaluation at or above it that the next one "
        'confirms; "never" counts as infinity. Response length, effective sample size (share of '
        "the tokens) and the mean importance ratio are means over the run, the ratio over its "
        "oldest rows (fresh ones without replay); the greatest ratio is that of any token of the "
        "run, the entropy (nats a token) that at its end.",
        "",
    ]
    return page(lines, data["about"])


COLUMNS: tuple[tuple[str, str, Callable[[Data, str], float], Callable[[float], str]], ...] = (
    (f"accuracy at {EARLY:,}, %", report.ACCURACY, early, share),
    ("final accuracy, %", report.ACCURACY, last, share),
    ("response length", "response_length", mean, "{:.2f}".format),
    ("mean ratio, oldest rows", "ratio_mean", oldest_mean, "{:.4f}".format),
    ("greatest ratio", "ratio_max", greatest, "{:,.3g}".format),
    ("final entropy", "entropy", last, "{:.3f}".format),
    ("ESS, %", "ess", mean, share),
)


def _sheet(data: Data, panel: Data) -> Sheet:
    header = ["", "seeds", *(f"rollouts to {goal(level)}" for level in data["levels"])]
    rows = []
    for arm in panel["arms"]:
        own = trials_of(data, panel["name"], arm["name"])
        row = [arm["label"], str(len(own))]
        row += [cell(reached(own, level), count) for level in data["levels"]]
        for _, name, measure, show in COLUMNS:
            row.append(cell(median(measure(trial, name) for trial in own), show))
        rows.append(row)
    return Sheet([*header, *(title for title, *_ in COLUMNS)], rows)
