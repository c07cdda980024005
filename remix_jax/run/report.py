"""A finished run as numbers and tables, from what `read_metrics` gives: one dict a step."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from remix_jax.sinks.console import PHASES
from remix_jax.sinks.metrics import Metrics
from remix_jax.text import count, percent

ACCURACY = "eval/mean"
LEVELS = (0.6, 0.7, 0.8, 0.9)
NOT_SUITES = (ACCURACY, "eval/response_length", "eval/grader_timeout_rate")


def curve(
    metrics: Sequence[Metrics], key: str, x: str = "rollouts"
) -> tuple[list[float], list[float]]:
    """The steps that have both figures, as (x values, y values), in order; without NaN and inf."""
    points = [(float(step[x]), float(step[key])) for step in metrics if key in step and x in step]
    points = [(at, value) for at, value in points if math.isfinite(at) and math.isfinite(value)]
    return [at for at, _ in points], [value for _, value in points]


def suites(metrics: Sequence[Metrics]) -> list[str]:
    """The keys eval/<suite> of a run, in the order in which they were first written."""
    keys = dict.fromkeys(key for step in metrics for key in step if key.startswith("eval/"))
    return [key for key in keys if key not in NOT_SUITES]


def crossing(xs: Sequence[float], ys: Sequence[float], level: float) -> float | None:
    """Where the polyline through (xs, ys) first reaches a level and holds it; None if never.

    Interpolated between the evaluation below the level and the one that reached it, so that the
    spacing of evaluations does not round the result up. An evaluation counts only if the next one
    is at or above the level as well (the last one stands alone): otherwise one lucky evaluation
    decides, and a method that is evaluated more often near the level has more chances of one.
    Simulated with a noise of 2 points and an evaluation each 128 rollouts, PPO would seem to reach
    80 % 11 % too early and ReMix 6 %; with the rule both are within 2 % of the truth. A curve that
    collapses later did reach the level.
    """
    for i, y in enumerate(ys):
        if y < level or (i + 1 < len(ys) and ys[i + 1] < level):
            continue
        if i == 0:
            return xs[0]
        return xs[i - 1] + (level - ys[i - 1]) / (y - ys[i - 1]) * (xs[i] - xs[i - 1])
    return None


def final_table(metrics: Sequence[Metrics]) -> RenderableType:
    """The tables that end a run.

    Returns:
      A rich renderable: first, best (with its rollouts) and last accuracy of every suite and of
      their mean; rollouts, tokens, seconds by phase and in all; rollouts to 60, 70, 80 and 90 %.
    """
    return Group(_accuracy_table(metrics), _cost_table(metrics))


def _accuracy_table(metrics: Sequence[Metrics]) -> Table:
    table = _table("Held-out accuracy", "suite", "first", "best", "at rollouts", "last")
    for key in [*suites(metrics), ACCURACY]:
        xs, ys = curve(metrics, key)
        if not ys:
            continue
        mean, best = key == ACCURACY, max(range(len(ys)), key=ys.__getitem__)
        if mean:
            table.add_section()
        name = "mean of the suites" if mean else key.removeprefix("eval/")
        figures = percent(ys[0]), percent(ys[best]), count(xs[best]), percent(ys[-1])
        table.add_row(Text(name), *figures, style="bold" if mean else "")
    return table


def _cost_table(metrics: Sequence[Metrics]) -> Table:
    table = _table("Cost", "", "", show_header=False)
    named = (("steps", "step"), ("fresh rollouts", "rollouts"), ("tokens generated", "tokens"))
    for title, key in named:
        table.add_row(title, count(_last(metrics, key)))
    for phase in PHASES:
        seconds = curve(metrics, f"seconds/{phase}", "step")[1]
        table.add_row(f"seconds, {phase}", f"{math.fsum(seconds):,.1f}")
    total = _last(metrics, "seconds")
    table.add_row("seconds in all, without compilation", "-" if total is None else f"{total:,.1f}")
    for level in LEVELS:
        at = crossing(*curve(metrics, ACCURACY), level)
        table.add_row(f"rollouts to {level:.0%}", "not reached" if at is None else count(at))
    return table


def _last(metrics: Sequence[Metrics], key: str) -> float | None:
    values = curve(metrics, key, "step")[1]
    return values[-1] if values else None


def ledger_table(ledger: Sequence[Mapping[str, Any]]) -> Table:
    """What became of every rollout generated: rows and share by fate, and their sums.

    Args:
      ledger: {"fate": str, "rows": int, "share": float} each, as in ledger.json.
    """
    table = _table("What became of every rollout", "fate", "rows", "share")
    for entry in ledger:
        table.add_row(Text(str(entry["fate"])), count(entry["rows"]), percent(entry["share"]))
    table.add_section()
    rows, share = sum(e["rows"] for e in ledger), math.fsum(e["share"] for e in ledger)
    table.add_row("generated in all", count(rows), percent(share))
    return table


def _table(title: str, *columns: str, **options: Any) -> Table:
    """A table with a name on the left and figures on the right."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, **options)
    for index, name in enumerate(columns):
        table.add_column(name, justify="right" if index else "left")
    return table
