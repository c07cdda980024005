"""How methods train, not only where they end: ratios, KL, lengths, sweeps; from metrics to results.

`arm` makes the record of one run, `write` the files. Tables and figures are pure functions of the
JSON, in `dynamics_numbers` and `dynamics_plot`.
"""

import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from remix_jax.errors import InputError
from remix_jax.reporting import bootstrap, dynamics_plot, records
from remix_jax.reporting import dynamics_numbers as numbers
from remix_jax.reporting.comparison_tables import about_lines, cell, percent
from remix_jax.reporting.dynamics_numbers import Data
from remix_jax.run import figures as plotting
from remix_jax.run import report
from remix_jax.sinks.console import ages
from remix_jax.sinks.metrics import Metrics

POINTS = 48  # of a series, at most
DIGITS = 4
AVERAGED = (
    "response_length", "ratio_mean", "clip_share", "ess", "kl_base", "kl_prev", "entropy",
    "reward", "grad_norm",
)  # fmt: skip
GREATEST = ("ratio_max",)
BY_AGE = ("ratio_mean", "ratio_max", "clip_share")


def arm(metrics: Sequence[Metrics], *, panel: str, arm: str, seed: int) -> dict[str, Any]:
    """The record of one run: what dynamics.json keeps of it.

    Series are against fresh rollouts. eval/mean has every evaluation; the others, one value a step,
    are thinned to at most 48 points, each the mean of as many steps (of ratio_max the greatest), at
    the mean of their rollouts. Steps where a figure is missing or not finite are left out. A series
    by age has the steps with rows of that age.

    Returns:
      panel, arm, seed, reincarnation (rollouts at the end of the mix stage, or None) and series:
      name -> {"rollouts": [...], "value": [...]}, to 4 significant digits.
    Raises:
      InputError: a run without evaluations.
    """
    xs, ys = report.curve(metrics, report.ACCURACY)
    if not xs:
        raise InputError(
            f"dynamics: {panel}, {arm}, seed {seed}: no step with {report.ACCURACY}; expected an "
            "evaluated run"
        )
    series = {report.ACCURACY: _record(xs, ys)}
    for key in AVERAGED + GREATEST:
        pool = max if key in GREATEST else _mean
        _add(series, key, report.curve(metrics, key), pool)
        for age in _ages(metrics) if key in BY_AGE else ():
            there = [step for step in metrics if age in ages(step)]
            name = f"{key}/age{age}"
            _add(series, name, report.curve(there, name), pool)
    at = plotting.reincarnation(metrics, "rollouts")
    return {"panel": panel, "arm": arm, "seed": seed, "reincarnation": at, "series": series}


def _ages(metrics: Sequence[Metrics]) -> list[int]:
    return sorted({age for step in metrics for age in ages(step)})


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _add(
    series: dict[str, dict[str, list[float]]],
    name: str,
    curve: tuple[list[float], list[float]],
    pool: Callable[[Sequence[float]], float],
) -> None:
    """Adds the curve, thinned, where it has points."""
    xs, ys = curve
    if xs:
        window = math.ceil(len(xs) / POINTS)
        starts = range(0, len(xs), window)
        series[name] = _record(
            [_mean(xs[i : i + window]) for i in starts], [pool(ys[i : i + window]) for i in starts]
        )


def _record(xs: Sequence[float], ys: Sequence[float]) -> dict[str, list[float]]:
    return {
        "rollouts": [records.significant(x) for x in xs],
        "value": [records.significant(y, DIGITS) for y in ys],
    }


def write(data: dict[str, Any], directory: str | pathlib.Path) -> None:
    """Writes dynamics.json, dynamics.md and the figures.

    Args:
      data: "about" (strings shown under the tables), "levels", "panels" ({"name", "title",
        "arms": [{"name", "label", "value"}]}, value a number in a sweep, else None), "trials" (of
        `arm`) and "findings" ({"claim", "verdict", "evidence"}). A panel with numbers is drawn as
        sweep_<name>.png, "collapse" as collapse.png, any other as dynamics_<name>.png, and where
        its methods replay rows, the first of them that does as dynamics_ages.png.
    Raises:
      InputError: the data are incomplete.
    """
    numbers.check(data)
    directory = pathlib.Path(directory)
    records.write_json(data, directory / "dynamics.json")
    (directory / "dynamics.md").write_text(markdown(data), encoding="utf-8")
    dynamics_plot.draw(data, directory)


def read(path: str | pathlib.Path) -> dict[str, Any]:
    """The data of a dynamics.json, checked (`records.read_json`)."""
    return records.read_json(path, numbers.KEYS, numbers.check)


# Markdown


def markdown(data: Data) -> str:
    """dynamics.md: a table a panel, the findings, and how the numbers were made."""
    lines = ["# Dynamics", ""]
    for panel in data["panels"]:
        lines += [f"## {panel['title']}", "", *_table(data, panel), ""]
    if data["findings"]:
        lines += ["## Findings", ""]
        lines += [
            f"* **{finding['verdict']}**: {finding['claim']} {finding['evidence']}".rstrip()
            for finding in data["findings"]
        ]
        lines.append("")
    lines += [
        "Median over seeds [95 % bootstrap interval; the range with fewer than three seeds]. A "
        "level is reached at the first held-out evaluation at or above it that the next one "
        'confirms; "never" counts as infinity. Response length, effective sample size (share of '
        "the tokens) and the mean importance ratio are means over the run, the ratio over its "
        "oldest rows (fresh ones without replay); the greatest ratio is that of any token of the "
        "run, the entropy (nats a token) that at its end.",
        "",
        *about_lines(data["about"]),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _table(data: Data, panel: dict[str, Any]) -> list[str]:
    goals = [f"rollouts to {100 * level:g} %" for level in data["levels"]]
    header = [
        "", "seeds", *goals, "accuracy at 1,024, %", "final accuracy, %", "response length",
        "mean ratio, oldest rows", "greatest ratio", "final entropy", "ESS, %",
    ]  # fmt: skip
    lines = ["| " + " | ".join(header) + " |", "|---|" + "---:|" * (len(header) - 1)]
    for arm in panel["arms"]:
        trials = numbers.trials(data, panel["name"], arm["name"])
        cells = [arm["label"], str(len(trials))]
        cells += [
            cell(numbers.reached(trials, level), "{:,.0f}".format) for level in data["levels"]
        ]
        for name, measure, show in (
            (report.ACCURACY, numbers.at_budget, percent),
            (report.ACCURACY, numbers.last, percent),
            ("response_length", numbers.mean, "{:.2f}".format),
            ("ratio_mean", numbers.oldest_mean, "{:.4f}".format),
            ("ratio_max", numbers.greatest, "{:,.3g}".format),
            ("entropy", numbers.last, "{:.3f}".format),
            ("ess", numbers.mean, percent),
        ):
            measured = bootstrap.median([measure(trial, name) for trial in trials])
            cells.append(cell(measured, show))
        lines.append("| " + " | ".join(cells) + " |")
    return lines
