"""The figure of a run: one sheet, figures/overview.png, whose panels are the rows of a table.

Drawn with matplotlib's object interface on its Agg canvas: no window, no global state. Colours
are those of Okabe and Ito, told apart by every kind of colour vision.
"""

import itertools
import math
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, StrMethodFormatter

from remix_jax.run import report
from remix_jax.sinks.console import PHASES, ages
from remix_jax.sinks.metrics import Metrics

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
    keys: dict[str, str]  # metric -> its name in the legend; "AGE" stands for every age of rows
    scale: str = "linear"  # linear, share or log
    x: str = "step"


PANELS = (
    Panel("Held-out accuracy", "accuracy", {report.ACCURACY: "mean"}, "share", "rollouts"),
    Panel("Training reward", "mean over fresh rows", {"reward": "reward", "accuracy": "accuracy"}),
    Panel(
        "Response length",
        "tokens",
        {"response_length": "training", "eval/response_length": "held-out"},
    ),
    Panel(
        "Responses",
        "share of fresh rows",
        {
            "truncated_rate": "truncated",
            "format_rate": "answer could be read",
            "zero_variance": "groups of one reward",
        },
        "share",
    ),
    Panel("Entropy of the policy", "nats a token", {"entropy": ""}),
    Panel("KL divergence", "nats a token", {"kl_base": "to the base", "kl_prev": "to precedent"}),
    Panel("Importance ratio, mean", "pi / behaviour policy", {"ratio_mean/AGE": ""}),
    Panel("Importance ratio, greatest", "pi / behaviour policy", {"ratio_max/AGE": ""}, "log"),
    Panel("Effective sample size", "share of the rows' tokens", {"ess/AGE": ""}, "share"),
    Panel("Clipped tokens", "share of the rows' tokens", {"clip_share/AGE": ""}, "share"),
    Panel(
        "Gradient norm before clipping",
        "norm",
        {"grad_norm": "policy", "critic_grad_norm": "critic"},
        "log",
    ),
)


def draw(metrics: Sequence[Metrics], directory: pathlib.Path) -> pathlib.Path:
    """Draws overview.png into `directory` (made if need be) and returns its path.

    A dashed vertical line marks policy reincarnation, the change of stage, where there was one.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(12.9, 12.0), layout="constrained")
        axes = figure.subplots(4, 3).flat
        for axis, panel in zip(axes, PANELS, strict=False):
            draw_panel(axis, panel, metrics)
        draw_phases(axes[len(PANELS)], metrics)
        return save(figure, directory / "overview.png")


def save(figure: Figure, path: pathlib.Path) -> pathlib.Path:
    """Renders the figure into a PNG file and returns the file's path."""
    FigureCanvasAgg(figure)
    figure.savefig(path)
    return path


def draw_panel(axis: Axes, panel: Panel, metrics: Sequence[Metrics]) -> None:
    """One panel; of the accuracy also its suites, thin, under their mean."""
    if panel.keys.get(report.ACCURACY):
        for key, colour in zip(report.suites(metrics), itertools.cycle(COLOURS), strict=False):
            name = key.removeprefix("eval/")
            axis.plot(*report.curve(metrics, key), color=colour, linewidth=1.1, label=name)
    for index, (key, name) in enumerate(_by_age(panel.keys, metrics).items()):
        xs, ys = report.curve(metrics, key, panel.x)
        if not xs:
            continue
        if key.startswith("eval/"):
            axis.plot(xs, ys, color=BLACK, linewidth=2.2, marker="o", markersize=3.5, label=name)
            continue
        # Every step faint, a running mean bold; a run too short for one gets markers.
        half, colour = len(metrics) // 40, COLOURS[index % len(COLOURS)]
        if half:
            axis.plot(xs, ys, color=colour, linewidth=0.8, alpha=0.35)
        smooth = _smooth(xs, ys, half, reincarnation(metrics, panel.x))
        marker = "o" if len(xs) < 3 else ""
        axis.plot(xs, smooth, color=colour, marker=marker, markersize=3, label=name)
    _finish(axis, metrics, panel.title, panel.label, panel.x)
    if panel.scale == "share":
        axis.yaxis.set_major_formatter(PERCENT)
        axis.set_ylim(bottom=0)
    if panel.scale == "log" and axis.lines:
        logarithmic(axis)


def draw_phases(axis: Axes, metrics: Sequence[Metrics]) -> None:
    """Seconds spent so far, stacked by phase."""
    steps, below = [float(record["step"]) for record in metrics], [0.0] * len(metrics)
    for phase, colour in zip(PHASES, (*COLOURS[:4], GREY), strict=True):
        spent = [float(record.get(f"seconds/{phase}", 0.0)) for record in metrics]
        if any(spent):
            above = [b + s for b, s in zip(below, itertools.accumulate(spent), strict=True)]
            axis.fill_between(steps, below, above, color=colour, linewidth=0, label=phase)
            below = above
    _finish(axis, metrics, "Seconds spent, by phase", "seconds, without compilation", "step")


def logarithmic(axis: Axes) -> None:
    """Makes the y axis logarithmic, with plain numbers, between decades too where it spans few."""

    def few(x: float, _: Any) -> str:
        low, high = axis.get_ylim()
        leading = round(x / 10 ** math.floor(math.log10(x)))
        return f"{x:g}" if high / low < 100 and leading in (2, 5) else ""

    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.yaxis.set_minor_formatter(FuncFormatter(few))


def reincarnation(metrics: Sequence[Metrics], x: str) -> float | None:
    """Where the mix stage ended: the last step of it, in units of the x axis."""
    staged = [record for record in metrics if "stage" in record and x in record]
    for before, after in itertools.pairwise(staged):
        if before["stage"] == "mix" != after["stage"]:
            return float(before[x])
    return None


def _by_age(keys: dict[str, str], metrics: Sequence[Metrics]) -> dict[str, str]:
    """The keys of a panel, "AGE" replaced by each age of which some step has rows."""
    found = {}
    for key, name in keys.items():
        if not key.endswith("/AGE"):
            found[key] = name
            continue
        for age in sorted({age for record in metrics for age in ages(record)}):
            older = f"{age} step{'s' if age > 1 else ''} old" if age else "fresh"
            found[key.replace("AGE", f"age{age}")] = older
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


def _finish(axis: Axes, metrics: Sequence[Metrics], title: str, label: str, x: str) -> None:
    axis.set_title(title)
    axis.set_xlabel("training step" if x == "step" else "fresh rollouts generated")
    axis.set_ylabel(label)
    axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:,.10g}"))
    if any(axis.get_legend_handles_labels()[1]):
        axis.legend(loc="best")
    at = reincarnation(metrics, x)
    if at is not None:
        axis.axvline(at, color=GREY, linestyle=(0, (4, 3)), linewidth=1.1, zorder=1)
        place: Any = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
        axis.annotate("reincarnation", (at, 1), xytext=(3, 1), color="#666666", fontsize=7, **place)
