"""Several methods against each other: the fresh rollouts each needs, over seeds, paired by seed."""

import json
import math
import pathlib
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from remix_jax.errors import InputError
from remix_jax.reporting import comparison_plot, report
from remix_jax.reporting.metrics import Metrics

BUDGETS = (1024, 4000)
Comparison = dict[str, Any]


def compare(
    runs: Mapping[str, Sequence[Sequence[Metrics]]],
    directory: str | pathlib.Path,
    target: float = 0.7,
) -> Comparison:
    """Compares methods by accuracy against fresh rollouts and writes the result to `directory`.

    comparison.json holds every number behind tables and figures, comparison.md the table,
    comparison.png accuracy against rollouts, comparison_seconds.png accuracy against the seconds
    measured and the modelled seconds to `target` where one rollout costs more.

    Args:
      runs: label -> metrics of seed 0, of seed 1, ... The first label is the reference: the i-th
        run of another label is compared to its i-th run.
      target: the accuracy at which the figures mark the gain.
    Returns:
      The content of comparison.json: plain lists and dicts, null where a level was not reached.
    Raises:
      InputError: a label without runs, or a run without evaluations.
    """
    if not runs:
        raise InputError("comparison: expected at least one method with runs")
    for label, seeds in runs.items():
        if not seeds or not all(report.curve(metrics, report.ACCURACY)[0] for metrics in seeds):
            raise InputError(f"comparison: {label!r} has no runs, or one without {report.ACCURACY}")
    levels = sorted({*report.LEVELS, target})
    arms = [_arm(label, seeds, levels) for label, seeds in runs.items()]
    for arm in arms:
        _add_pairs(arm, arms[0], target)
    data = {"target": target, "levels": levels, "reference": arms[0]["label"], "arms": arms}
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "comparison.json"
    path.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    (directory / "comparison.md").write_text(comparison_markdown(data), encoding="utf-8")
    comparison_plot.draw(path)
    return data


def _arm(label: str, seeds: Sequence[Sequence[Metrics]], levels: Sequence[float]) -> dict[str, Any]:
    """One method's numbers; every list runs over its seeds."""
    curves, timed = (
        [report.curve(metrics, report.ACCURACY, x) for metrics in seeds]
        for x in ("rollouts", "seconds")
    )

    def to_level(x: str) -> dict[str, list[float | None]]:
        return {
            str(level): [report.rollouts_to(metrics, level, x=x) for metrics in seeds]
            for level in levels
        }

    return {
        "label": label,
        "by_rollouts": [{"x": xs, "accuracy": ys} for xs, ys in curves],
        "by_seconds": [{"x": xs, "accuracy": ys} for xs, ys in timed],
        "band_by_rollouts": _band(curves),
        "band_by_seconds": _band(timed),
        "rollouts_to": to_level("rollouts"),
        "seconds_to": to_level("seconds"),
        "accuracy_at": {
            str(budget): [report.value_at(metrics, budget) for metrics in seeds]
            for budget in BUDGETS
        },
        "final_accuracy": [ys[-1] for _, ys in curves],
        "final_rollouts": [xs[-1] for xs, _ in curves],
        "seconds": [xs[-1] if xs else None for xs, _ in timed],
    }


def _band(curves: Sequence[tuple[list[float], list[float]]]) -> dict[str, list[float]]:
    """Median, least and greatest accuracy over seeds wherever any seed was evaluated.

    Seeds evaluated elsewhere count by interpolation; the band ends where the first seed ends.
    """
    band: dict[str, list[float]] = {"x": [], "median": [], "low": [], "high": []}
    for at in sorted({x for xs, _ in curves for x in xs}):
        values = [report.interpolate(xs, ys, at) for xs, ys in curves]
        there = [value for value in values if value is not None]
        if len(there) == len(values):
            for name, value in zip(
                band, (at, statistics.median(there), min(there), max(there)), strict=True
            ):
                band[name].append(value)
    return band


def _add_pairs(arm: dict[str, Any], reference: dict[str, Any], target: float) -> None:
    """Adds what is computed seed by seed against the reference, over the seeds that both have."""

    def pairs(name: str, key: str, function: Callable[..., Any]) -> list[Any]:
        return [
            function(base, own)
            for base, own in zip(reference[name][key], arm[name][key], strict=False)
        ]

    arm["times_fewer"] = {key: pairs("rollouts_to", key, _times) for key in arm["rollouts_to"]}
    arm["gain_at"] = {key: pairs("accuracy_at", key, _difference) for key in arm["accuracy_at"]}
    counts = [
        a[name][str(target)] for a in (reference, arm) for name in ("rollouts_to", "seconds_to")
    ]
    arm["break_even_seconds"] = [_break_even(*pair) for pair in zip(*counts, strict=False)]


def _times(base: float | None, own: float | None) -> float | str | None:
    """How many times fewer rollouts `own` took than `base`.

    A run that never reaches the level took infinitely many: "Infinity" where only `own` reached
    it, 0 where only `base` did. None (no answer) where neither did or one of them began there.
    """
    if base == 0 or own == 0 or (base is None and own is None):
        return None
    if base is None or own is None:
        return "Infinity" if base is None else 0.0
    return base / own


def _difference(base: float | None, own: float | None) -> float | None:
    return None if base is None or own is None else own - base


def _break_even(
    base: float | None, base_seconds: float | None, own: float | None, own_seconds: float | None
) -> float | None:
    """Added seconds a rollout above which `own`, with its fewer rollouts, is the faster one."""
    if base is None or base_seconds is None or own is None or own_seconds is None or own >= base:
        return None
    return max(0.0, (own_seconds - base_seconds) / (base - own))


# Tables


def _cell(spread: report.Spread | None, show: Callable[[float], str], unit: str = "") -> str:
    """ "median [least, greatest] unit", or the one value where there is no spread to show."""
    if spread is None:
        return "-"
    median, low, high = (
        show(value) if math.isfinite(value) else "not reached"
        for value in (spread.median, spread.low, spread.high)
    )
    text = median if low == median == high else f"{median} [{low}, {high}]"
    text += unit if math.isfinite(spread.median) else ""
    return text if spread.used == spread.of else f"{text} ({spread.used} of {spread.of} seeds)"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _points(value: float) -> str:
    return f"{100 * value:+.1f}"


def _rows(data: Comparison) -> Iterable[tuple[str, list[str]]]:
    """The table, one row a quantity and one cell a method."""
    arms, spread, reference = data["arms"], report.spread, data["reference"]
    target = data["target"]
    yield "seeds", [str(len(arm["final_accuracy"])) for arm in arms]
    for level in data["levels"]:
        spreads = [spread(arm["rollouts_to"][str(level)], math.inf) for arm in arms]
        yield f"rollouts to {100 * level:g} %", [_cell(s, "{:,.0f}".format) for s in spreads]
    for level in data["levels"]:
        spreads = [spread(arm["times_fewer"][str(level)]) for arm in arms]
        yield (
            f"{reference} / method, to {100 * level:g} %",
            [_cell(s, "{:.2f}".format, " x") for s in spreads],
        )
    for budget in BUDGETS:
        spreads = [spread(arm["accuracy_at"][str(budget)]) for arm in arms]
        yield f"accuracy at {budget:,} rollouts", [_cell(s, _percent, " %") for s in spreads]
        spreads = [spread(arm["gain_at"][str(budget)]) for arm in arms]
        yield f"method - {reference} at {budget:,}, points", [_cell(s, _points) for s in spreads]
    spreads = [spread(arm["seconds_to"][str(target)], math.inf) for arm in arms]
    yield f"seconds to {100 * target:g} %", [_cell(s, "{:,.1f}".format) for s in spreads]
    for title, name, show, unit in (
        ("final accuracy", "final_accuracy", _percent, " %"),
        ("fresh rollouts in all", "final_rollouts", "{:,.0f}".format, ""),
        ("seconds in all", "seconds", "{:,.1f}".format, ""),
    ):
        yield title, [_cell(spread(arm[name]), show, unit) for arm in arms]


def comparison_table(data: Comparison) -> Table:
    """The comparison as a rich table: one row a quantity, one column a method."""
    title = Text("Fresh rollouts to an accuracy: median over seeds [least, greatest]")
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("")
    for arm in data["arms"]:
        table.add_column(Text(arm["label"]), justify="right", min_width=len(arm["label"]))
    crowded = len(data["arms"]) > 2
    for row, cells in _rows(data):
        texts = [Text(cell.replace(" [", "\n[") if crowded else cell) for cell in cells]
        table.add_row(Text(row), *texts)
    return table


def comparison_markdown(data: Comparison) -> str:
    """The same table in Markdown, with the sentences that say how its numbers were made."""
    labels = [arm["label"] for arm in data["arms"]]
    lines = ["| | " + " | ".join(labels) + " |", "|---|" + "---:|" * len(labels)]
    lines += [f"| {title} | " + " | ".join(cells) + " |" for title, cells in _rows(data)]
    lines += [
        "",
        "Median over seeds [least, greatest]. A level is reached at the first held-out evaluation "
        "at or above it that the next one confirms, interpolated linearly from the evaluation "
        f"before. Ratios and differences are taken seed by seed against {data['reference']}. "
        "Seconds are without compilation.",
    ]
    lines += [_break_even_sentence(arm, data) for arm in data["arms"][1:]]
    return "\n".join(lines).rstrip() + "\n"


def _break_even_sentence(arm: Mapping[str, Any], data: Comparison) -> str:
    even = report.spread(arm["break_even_seconds"])
    if even is None:
        return ""
    start = f"\n{arm['label']} took fewer seconds than {data['reference']} to "
    goal = f"{100 * data['target']:g} %"
    if even.median == 0:
        return f"{start}{goal} as measured."
    return (
        f"{start}{goal} only by a model: once a rollout costs {1000 * even.median:.2g} ms more "
        "than it did here (median over seeds)."
    )
