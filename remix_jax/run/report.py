"""A finished run as tables and figures, from what `read_metrics` gives: one dict a step.

The figures are one sheet, figures/overview.png, whose panels are the rows of a table. Colours are
those of Okabe and Ito, told apart by every kind of colour vision.
"""

import itertools
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogFormatter, MaxNLocator, StrMethodFormatter
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from remix_jax.sinks.console import HELD_OUT as ACCURACY
from remix_jax.sinks.console import NOT_SUITES, PHASES, ages
from remix_jax.sinks.metrics import Metrics
from remix_jax.text import MISSING, count, percent

LEVELS = (0.6, 0.7, 0.8, 0.9)


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

    Interpolated, so that the spacing of evaluations does not round the result up. An evaluation
    counts only if the next one is at or above the level as well (the last one stands alone), or one
    lucky evaluation would decide: with a noise of 2 points and an evaluation each 128 rollouts, PPO
    seems to reach 80 % 11 % too early and ReMix 6 %; with the rule both are within 2 %.
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
    accuracies = []
    for key in [*suites(metrics), ACCURACY]:
        xs, ys = curve(metrics, key)
        if ys:
            name = "mean of the suites" if key == ACCURACY else key.removeprefix("eval/")
            best = max(range(len(ys)), key=ys.__getitem__)
            figures = percent(ys[0]), percent(ys[best]), count(xs[best]), percent(ys[-1])
            accuracies.append((name, *figures))

    def last(key: str) -> float | None:
        return next(reversed(curve(metrics, key, "step")[1]), None)

    spent = {phase: curve(metrics, f"seconds/{phase}", "step")[1] for phase in PHASES}
    reached = {f"rollouts to {x:.0%}": crossing(*curve(metrics, ACCURACY), x) for x in LEVELS}
    in_all = last("seconds")
    costs = [
        ("steps", count(last("step"))),
        ("fresh rollouts", count(last("rollouts"))),
        ("tokens generated", count(last("tokens"))),
        *((f"seconds, {phase}", f"{math.fsum(each):,.1f}") for phase, each in spent.items()),
        ("seconds in all, without compilation", MISSING if in_all is None else f"{in_all:,.1f}"),
        *((name, "not reached" if at is None else count(at)) for name, at in reached.items()),
    ]
    of_suites = "suite", "first", "best", "at rollouts", "last"
    held_out = _table("Held-out accuracy", of_suites, accuracies)
    return Group(held_out, _table("Cost", ("", ""), costs, total=False))


def ledger(fates_U: np.ndarray) -> list[dict[str, Any]]:
    """What became of every row generated, as in ledger.json; by `ReplayState.fates_U`."""
    names = ["zero signal: all rewards of its group equal", "not trained on"]
    names += [f"trained on in {u} pass{'es' if u > 1 else ''}" for u in range(1, len(fates_U) - 1)]
    return [
        {"fate": name, "rows": int(rows), "share": int(rows) / int(fates_U.sum())}
        for name, rows in zip(names, fates_U, strict=True)
        if rows
    ]


def ledger_table(fates: Sequence[Mapping[str, Any]]) -> Table:
    """Rows and share by fate, and their sums."""
    rows = [(str(e["fate"]), count(e["rows"]), percent(e["share"])) for e in fates]
    total = sum(e["rows"] for e in fates), math.fsum(e["share"] for e in fates)
    rows.append(("generated in all", count(total[0]), percent(total[1])))
    return _table("What became of every rollout", ("fate", "rows", "share"), rows)


def _table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], total: bool = True
) -> Table:
    """A table with a name on the left and figures on the right; perhaps the last row is a total."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_header=total)
    for index, name in enumerate(columns):
        table.add_column(name, justify="right" if index else "left")
    for index, (name, *figures) in enumerate(rows, start=1):
        last = total and index == len(rows)
        if last:
            table.add_section()
        table.add_row(Text(name), *figures, style="bold" if last else "")
    return table


# --- the sheet of figures

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREY, BLACK = "#8A8A8A", "#222222"
STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 14,
    "axes.labelcolor": BLACK,
    "axes.edgecolor": "#666666",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.8,
    "legend.edgecolor": "none",
    "legend.framealpha": 0.85,
    "legend.fontsize": 8,
    "savefig.dpi": 160,
}
PERCENT = FuncFormatter(lambda x, _: f"{100 * x:.6g} %")


class Panel(NamedTuple):
    """Curves against the training step, or against `x`."""

    title: str
    label: str  # of the y axis
    keys: dict[str, str]  # metric -> its name in the legend; AGE and SUITE: each of them
    scale: str = "linear"  # linear, share, log or stacked
    x: str = "step"


LENGTHS = {"response_length": "training", "eval/response_length": "held-out"}
RESPONSES = {
    "truncated_rate": "truncated",
    "format_rate": "answer could be read",
    "zero_variance": "groups of one reward",
}
NORMS = {"grad_norm": "policy", "critic_grad_norm": "critic"}
SECONDS = {f"seconds/{phase}": phase for phase in PHASES}
OF_TOKENS, RATIO = "share of the rows' tokens", "pi / behaviour policy"
PANELS = (
    Panel("Held-out accuracy", "accuracy", {"SUITE": "", ACCURACY: "mean"}, "share", "rollouts"),
    Panel("Training reward", "mean over fresh rows", {"reward": "reward", "accuracy": "accuracy"}),
    Panel("Response length", "tokens", LENGTHS),
    Panel("Responses", "share of fresh rows", RESPONSES, "share"),
    Panel("Entropy of the policy", "nats a token", {"entropy": ""}),
    Panel("KL divergence", "nats a token", {"kl_base": "to the base", "kl_prev": "to precedent"}),
    Panel("Importance ratio, mean", RATIO, {"ratio_mean/AGE": ""}),
    Panel("Importance ratio, greatest", RATIO, {"ratio_max/AGE": ""}, "log"),
    Panel("Effective sample size", OF_TOKENS, {"ess/AGE": ""}, "share"),
    Panel("Clipped tokens", OF_TOKENS, {"clip_share/AGE": ""}, "share"),
    Panel("Gradient norm before clipping", "norm", NORMS, "log"),
    Panel("Seconds spent, by phase", "seconds, without compilation", SECONDS, "stacked"),
)


def draw(metrics: Sequence[Metrics], directory: pathlib.Path) -> pathlib.Path:
    """Draws overview.png into `directory` (made if need be) and returns its path.

    A dashed vertical line marks policy reincarnation, the change of stage, where there was one.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(12.9, 12.0), layout="constrained")
        for axis, panel in zip(figure.subplots(4, 3).flat, PANELS, strict=True):
            draw_panel(axis, panel, metrics)
        figure.savefig(directory / "overview.png")
    return directory / "overview.png"


def draw_panel(axis: Axes, panel: Panel, metrics: Sequence[Metrics]) -> None:
    """One panel: every step faint, a running mean bold; held-out figures as they are."""
    at, half = reincarnation(metrics, panel.x), len(metrics) // 40
    if panel.scale == "stacked":
        each = {n: [float(r.get(key, 0.0)) for r in metrics] for key, n in panel.keys.items()}
        spent = {name: np.cumsum(values) for name, values in each.items() if any(values)}
        if spent:
            steps = [record["step"] for record in metrics]
            axis.stackplot(steps, *spent.values(), labels=list(spent), colors=COLOURS)
    named = [] if panel.scale == "stacked" else _named(panel.keys, metrics)
    for (key, name), colour in zip(named, itertools.cycle(COLOURS), strict=False):
        xs, ys = curve(metrics, key, panel.x)
        line: Any = {"color": colour, "label": name}
        if key in suites(metrics):
            axis.plot(xs, ys, linewidth=1.1, **line)
        elif key.startswith("eval/") and xs:
            line |= {"color": BLACK, "marker": "o", "markersize": 3.5}
            axis.plot(xs, ys, linewidth=2.2, **line)
        elif xs:
            if half:
                axis.plot(xs, ys, color=colour, linewidth=0.8, alpha=0.35)
            marker = "o" if len(xs) < 3 else ""  # too short for a line
            axis.plot(xs, _smooth(xs, ys, half, at), marker=marker, markersize=3, **line)
    axis.set(title=panel.title, ylabel=panel.label)
    axis.set_xlabel("training step" if panel.x == "step" else "fresh rollouts generated")
    axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:,.10g}"))
    if panel.scale == "share":
        axis.yaxis.set_major_formatter(PERCENT)
        axis.set_ylim(bottom=0)
    if panel.scale == "log" and axis.lines:
        logarithmic(axis)
    if any(axis.get_legend_handles_labels()[1]):
        axis.legend(loc="best")
    if at is not None:
        axis.axvline(at, color=GREY, linestyle=(0, (4, 3)), linewidth=1.1, zorder=1)
        place: Any = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
        axis.annotate("reincarnation", (at, 1), xytext=(3, 1), color="#666666", fontsize=7, **place)


def logarithmic(axis: Axes) -> None:
    """Makes the y axis logarithmic, with plain numbers, between decades too where it spans few."""
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(LogFormatter())
    axis.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))


def reincarnation(metrics: Sequence[Metrics], x: str) -> float | None:
    """Where the mix stage ended: the last step of it, in units of the x axis."""
    staged = [record for record in metrics if "stage" in record and x in record]
    pairs = itertools.pairwise(staged)
    ends = (float(a[x]) for a, b in pairs if a["stage"] == "mix" != b["stage"])
    return next(ends, None)


def _named(keys: dict[str, str], metrics: Sequence[Metrics]) -> list[tuple[str, str]]:
    """The curves of a panel: AGE is every age of which some step has rows, SUITE every suite."""
    found = []
    for key, name in keys.items():
        if key == "SUITE":
            found += [(suite, suite.removeprefix("eval/")) for suite in suites(metrics)]
        elif key.endswith("/AGE"):
            for age in sorted({age for record in metrics for age in ages(record)}):
                older = f"{age} step{'s' if age > 1 else ''} old" if age else "fresh"
                found.append((key.replace("AGE", f"age{age}"), older))
        else:
            found.append((key, name))
    return found


def _smooth(xs: list[float], ys: list[float], half: int, edge: float | None) -> list[float]:
    """A running mean that never reaches across `edge`, where figures may jump."""
    edge = -math.inf if edge is None else edge
    means = []
    for i, here in enumerate(xs):
        near = range(max(0, i - half), min(i + half + 1, len(xs)))
        window = [ys[j] for j in near if (xs[j] <= edge) == (here <= edge)]
        means.append(math.fsum(window) / len(window))
    return means
