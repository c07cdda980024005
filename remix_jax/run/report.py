"""A finished run as numbers and tables.

Everything starts from what `metrics.read_metrics` gives: one dict of figures a step. Drawing is in
`plotting`, several runs against each other in `comparison`.
"""

import bisect
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


def interpolate(xs: Sequence[float], ys: Sequence[float], at: float) -> float | None:
    """The polyline through (xs, ys), xs ascending, at one place; None outside it."""
    if not xs or not xs[0] <= at <= xs[-1]:
        return None
    i = bisect.bisect_left(xs, at)
    if xs[i] == at:
        return ys[i]
    return ys[i - 1] + (ys[i] - ys[i - 1]) * (at - xs[i - 1]) / (xs[i] - xs[i - 1])


def value_at(
    metrics: Sequence[Metrics], at: float, key: str = ACCURACY, x: str = "rollouts"
) -> float | None:
    """The figure at `at` fresh rollouts, linear between evaluations; None outside the run."""
    return interpolate(*curve(metrics, key, x), at)


def rollouts_to(
    metrics: Sequence[Metrics], level: float, key: str = ACCURACY, x: str = "rollouts"
) -> float | None:
    """Fresh rollouts until `key` first reaches `level` and holds it; None where it never does.

    The crossing is interpolated linearly between the evaluation below the level and the one that
    reached it, so that the spacing of evaluations does not round the result up.

    Noise: an evaluation reaches the level only if the next one is at or above it as well (the last
    evaluation of a run stands alone). Without that rule, or with a running maximum, one lucky
    evaluation decides, and the method that is evaluated more often near the level has more chances
    of one: simulated with a noise of 2 points and an evaluation each 128 rollouts, PPO would seem
    to reach 80 % 11 % too early on its expected curve and ReMix 6 %; with the rule every crossing
    is within 2 % of the truth for both. A curve that collapses later did reach the level.

    Args:
      metrics: one run, in order of steps.
      level: accuracy in [0, 1], or a value of whatever `key` is.
      key: the figure that must rise to the level.
      x: what is counted: "rollouts", "seconds", "tokens" or "step".
    Returns:
      The count at the crossing; the first count if the run starts at the level.
    """
    return crossing(*curve(metrics, key, x), level)


def crossing(xs: Sequence[float], ys: Sequence[float], level: float) -> float | None:
    """Where the polyline through (xs, ys) first reaches the level, by the rule of `rollouts_to`."""
    for i, y in enumerate(ys):
        if y < level or (i + 1 < len(ys) and ys[i + 1] < level):
            continue
        if i == 0:
            return xs[0]
        return xs[i - 1] + (level - ys[i - 1]) / (y - ys[i - 1]) * (xs[i] - xs[i - 1])
    return None


def reached(value: float | None) -> str:
    """A count of rollouts as text, where None says that the level was not reached."""
    return "not reached" if value is None else count(value)


def final_table(metrics: Sequence[Metrics]) -> RenderableType:
    """The tables that end a run: accuracy by suite, then what it cost.

    Returns:
      A rich renderable: first, best (with its rollouts) and last accuracy of every suite and of
      their mean; rollouts, tokens, seconds by phase and in all; rollouts to 60, 70, 80 and 90 %.
    """
    return Group(_accuracy_table(metrics), _cost_table(metrics))


def _accuracy_table(metrics: Sequence[Metrics]) -> Table:
    table = Table(title="Held-out accuracy", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("suite")
    for title in ("first", "best", "at rollouts", "last"):
        table.add_column(title, justify="right")
    for key in [*suites(metrics), ACCURACY]:
        xs, ys = curve(metrics, key)
        if not ys:
            continue
        if key == ACCURACY:
            table.add_section()
        best = max(range(len(ys)), key=ys.__getitem__)
        table.add_row(
            Text("mean of the suites" if key == ACCURACY else key.removeprefix("eval/")),
            percent(ys[0]),
            percent(ys[best]),
            count(xs[best]),
            percent(ys[-1]),
            style="bold" if key == ACCURACY else "",
        )
    return table


def _cost_table(metrics: Sequence[Metrics]) -> Table:
    table = Table(title="Cost", title_justify="left", box=box.SIMPLE_HEAD, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for title, key in (
        ("steps", "step"),
        ("fresh rollouts", "rollouts"),
        ("tokens generated", "tokens"),
    ):
        table.add_row(title, count(_last(metrics, key)))
    for phase in PHASES:
        seconds = curve(metrics, f"seconds/{phase}", "step")[1]
        table.add_row(f"seconds, {phase}", f"{math.fsum(seconds):,.1f}")
    total = _last(metrics, "seconds")
    table.add_row("seconds in all, without compilation", "-" if total is None else f"{total:,.1f}")
    for level in LEVELS:
        table.add_row(f"rollouts to {100 * level:g} %", reached(rollouts_to(metrics, level)))
    return table


def _last(metrics: Sequence[Metrics], key: str) -> float | None:
    values = curve(metrics, key, "step")[1]
    return values[-1] if values else None


def ledger_table(ledger: Sequence[Mapping[str, Any]]) -> Table:
    """What became of every rollout generated: rows and share by fate, and their sums.

    Args:
      ledger: {"fate": str, "rows": int, "share": float} each, as in ledger.json.
    """
    rows, share = sum(e["rows"] for e in ledger), math.fsum(e["share"] for e in ledger)
    table = Table(
        title="What became of every rollout",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_footer=True,
    )
    table.add_column("fate", "generated in all")
    table.add_column("rows", count(rows), justify="right")
    table.add_column("share", percent(share), justify="right")
    for entry in ledger:
        table.add_row(Text(str(entry["fate"])), count(entry["rows"]), percent(entry["share"]))
    return table
