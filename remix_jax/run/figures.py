"""Figures of a run, as PNG files.

Drawn with matplotlib's object interface on its Agg canvas: no window, no global state. Colours
are those of Okabe and Ito, told apart by every kind of colour vision.
"""

import itertools
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, MaxNLocator, StrMethodFormatter

from remix_jax.run import report
from remix_jax.sinks.console import PHASES, ages
from remix_jax.sinks.metrics import Metrics

BLUE, ORANGE, GREEN, PURPLE, AMBER, SKY = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9",
)  # fmt: skip
GREY, BLACK = "#8A8A8A", "#222222"
STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 14,
    "axes.labelcolor": BLACK,
    "axes.edgecolor": "#666666",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.7,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "legend.edgecolor": "none",
    "legend.framealpha": 0.85,
    "legend.fontsize": 8,
    "savefig.dpi": 160,
}
PERCENT = FuncFormatter(lambda x, _: f"{100 * x:.6g} %")
X_LABELS = {
    "step": "training step",
    "rollouts": "fresh rollouts generated",
    "seconds": "seconds of the run, without compilation",
}


def save(figure: Figure, path: pathlib.Path) -> pathlib.Path:
    """Renders the figure into a PNG file and returns the file's path."""
    FigureCanvasAgg(figure)
    figure.savefig(path)
    return path


# One run: every panel is a function of an axis and the metrics


def figures(metrics: Sequence[Metrics], directory: str | pathlib.Path) -> list[pathlib.Path]:
    """Draws overview.png and each of its panels as a file of its own; returns their paths.

    A dashed vertical line marks policy reincarnation (the change of stage) where there was one.

    Args:
      metrics: one run, as `remix_jax.sinks.metrics.read_metrics` gives it.
      directory: where the files go; made if it is not there.
    """
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        paths = [_overview(metrics, directory / "overview.png")]
        for name, panels in FIGURES.items():
            figure = Figure(figsize=(5.2 * len(panels), 3.5), layout="constrained")
            for axis, panel in zip(_axes(figure, 1, len(panels)), panels, strict=True):
                panel(axis, metrics)
            paths.append(save(figure, directory / f"{name}.png"))
    return paths


def _axes(figure: Figure, rows: int, columns: int) -> list[Axes]:
    return list(figure.subplots(rows, columns, squeeze=False).flat)


def _overview(metrics: Sequence[Metrics], path: pathlib.Path) -> pathlib.Path:
    panels = [panel for group in FIGURES.values() for panel in group]
    columns = 3
    rows = math.ceil(len(panels) / columns)
    layout = ConstrainedLayoutEngine(wspace=0.04, hspace=0.06)
    figure = Figure(figsize=(4.3 * columns, 3.0 * rows), layout=layout)
    axes = _axes(figure, rows, columns)
    for axis, panel in zip(axes, panels, strict=False):
        panel(axis, metrics)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    return save(figure, path)


def _accuracy(axis: Axes, metrics: Sequence[Metrics], x: str) -> None:
    """Held-out accuracy: the suites thin, their mean bold, each named at its end."""
    ends = []
    colours = (BLUE, AMBER, GREEN, PURPLE, SKY, ORANGE)
    for i, key in enumerate(report.suites(metrics)):
        xs, ys = report.curve(metrics, key, x)
        if xs:
            colour = colours[i % len(colours)]
            axis.plot(xs, ys, color=colour, linewidth=1.1, alpha=0.9)
            ends.append((xs[-1], ys[-1], key.removeprefix("eval/"), colour))
    xs, ys = report.curve(metrics, report.ACCURACY, x)
    if xs:
        axis.plot(xs, ys, color=BLACK, linewidth=2.4, marker="o", markersize=3.5)
        ends.append((xs[-1], ys[-1], "mean", BLACK))
    _finish(axis, metrics, x, "Held-out accuracy", "accuracy")
    axis.set_ylim(0, 1)
    axis.yaxis.set_major_formatter(PERCENT)
    label_ends(axis, ends)


def label_ends(axis: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Writes each name right of the axis, at the height of its line but never overlapping."""
    low, high = axis.get_ylim()
    height = axis.bbox.height / axis.figure.dpi
    gap = (high - low) * 0.145 / height  # 0.145 inches: a line of 8-point text
    heights: list[float] = []
    ordered = sorted(ends, key=lambda end: end[1])
    for _, y, _, _ in ordered:
        heights.append(max(y, heights[-1] + gap) if heights else max(y, low))
    overflow = heights[-1] - high if heights else 0
    if overflow > 0:  # push the stack down again, from the top
        top = high
        for i in reversed(range(len(heights))):
            heights[i] = min(heights[i], top)
            top = heights[i] - gap
    for (_, _, name, colour), y in zip(ordered, heights, strict=True):
        axis.annotate(
            name,
            (1, y),
            xycoords=("axes fraction", "data"),
            xytext=(4, 0),
            textcoords="offset points",
            color=colour,
            fontsize=8,
            fontweight="bold" if colour == BLACK else "normal",
            va="center",
            annotation_clip=False,
        )


def _accuracy_rollouts(axis: Axes, metrics: Sequence[Metrics]) -> None:
    _accuracy(axis, metrics, "rollouts")


def _accuracy_seconds(axis: Axes, metrics: Sequence[Metrics]) -> None:
    _accuracy(axis, metrics, "seconds")


def _reward(axis: Axes, metrics: Sequence[Metrics]) -> None:
    _series(axis, metrics, "reward", BLUE, "")
    _finish(axis, metrics, "step", "Training reward", "mean over fresh rows")


def _response_length(axis: Axes, metrics: Sequence[Metrics]) -> None:
    _series(axis, metrics, "response_length", BLUE, "training")
    xs, ys = report.curve(metrics, "eval/response_length", "step")
    if xs:
        axis.plot(xs, ys, color=ORANGE, linestyle="--", marker="o", markersize=3, label="held-out")
    _finish(axis, metrics, "step", "Response length", "tokens")


def _entropy(axis: Axes, metrics: Sequence[Metrics]) -> None:
    _series(axis, metrics, "entropy", BLUE, "")
    _finish(axis, metrics, "step", "Entropy of the policy", "nats a token")
    axis.set_ylim(bottom=0)


def _kl(axis: Axes, metrics: Sequence[Metrics]) -> None:
    _series(axis, metrics, "kl_base", BLUE, "to the base anchor")
    _series(axis, metrics, "kl_prev", ORANGE, "to the precedent")
    _finish(axis, metrics, "step", "KL divergence", "nats a token")


def _grad_norm(axis: Axes, metrics: Sequence[Metrics]) -> None:
    _series(axis, metrics, "grad_norm", BLUE, "policy")
    _series(axis, metrics, "critic_grad_norm", ORANGE, "critic")
    _finish(axis, metrics, "step", "Gradient norm before clipping", "norm")
    if axis.lines:
        logarithmic(axis)


def _phases(axis: Axes, metrics: Sequence[Metrics]) -> None:
    """Seconds spent so far, stacked by phase."""
    colours = (BLUE, PURPLE, ORANGE, GREEN, GREY)
    steps = [float(record["step"]) for record in metrics if "step" in record]
    below = [0.0] * len(steps)
    for phase, colour in zip(PHASES, colours, strict=True):
        spent = [float(record.get(f"seconds/{phase}", 0.0)) for record in metrics]
        if not any(spent):
            continue
        above = [b + s for b, s in zip(below, itertools.accumulate(spent), strict=True)]
        axis.fill_between(steps, below, above, color=colour, alpha=0.8, linewidth=0, label=phase)
        below = above
    _finish(axis, metrics, "step", "Seconds spent, by phase", "seconds since the start")


def _by_age(key: str, title: str, label: str) -> Callable[[Axes, Sequence[Metrics]], None]:
    """A panel with one line an age of the rows: fresh, one step old, ..."""

    def panel(axis: Axes, metrics: Sequence[Metrics]) -> None:
        for age in sorted({age for record in metrics for age in ages(record)}):
            name = "fresh" if age == 0 else f"{age} step{'s' if age > 1 else ''} old"
            colour = (BLUE, ORANGE, GREEN, PURPLE, AMBER, SKY)[age % 6]
            there = [record if age in ages(record) else {} for record in metrics]
            _series(axis, there, f"{key}/age{age}", colour, name)
        _finish(axis, metrics, "step", title, label)
        if key == "ratio_max" and axis.lines:
            logarithmic(axis)
        if key in ("clip_share", "ess"):
            axis.yaxis.set_major_formatter(PERCENT)

    return panel


def logarithmic(axis: Axes) -> None:
    """Makes the y axis logarithmic, with plain numbers, between decades too where it spans few."""
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.yaxis.set_minor_formatter(FuncFormatter(lambda x, _: _few(x, axis)))


def _few(x: float, axis: Axes) -> str:
    """Minor labels of a logarithmic axis, only where it spans less than two decades."""
    low, high = axis.get_ylim()
    leading = round(x / 10 ** math.floor(math.log10(x)))
    return f"{x:g}" if high / low < 100 and leading in (2, 5) else ""


def _series(axis: Axes, metrics: Sequence[Metrics], key: str, colour: str, label: str) -> None:
    """A training figure against steps: every step faint, a running mean bold.

    The mean never reaches across the reincarnation, where figures may jump.
    """
    xs, ys = report.curve(metrics, key, "step")
    if not xs:
        return
    half = len(metrics) // 40
    edge = reincarnation(metrics, "step") or -math.inf
    smooth = []
    for i, here in enumerate(xs):
        near = slice(max(0, i - half), i + half + 1)
        window = [
            y for x, y in zip(xs[near], ys[near], strict=True) if (x <= edge) == (here <= edge)
        ]
        smooth.append(math.fsum(window) / len(window))
    if half:
        axis.plot(xs, ys, color=colour, linewidth=0.8, alpha=0.35)
    axis.plot(xs, smooth, color=colour, label=label)


def _finish(axis: Axes, metrics: Sequence[Metrics], x: str, title: str, label: str) -> None:
    axis.set_title(title)
    axis.set_xlabel(X_LABELS[x])
    axis.set_ylabel(label)
    axis.xaxis.set_major_locator(MaxNLocator(6, integer=x != "seconds"))
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:,.10g}"))
    if axis.get_legend_handles_labels()[1]:
        axis.legend(loc="best")
    at = reincarnation(metrics, x)
    if at is not None:
        axis.axvline(at, color=GREY, linestyle=(0, (4, 3)), linewidth=1.1, zorder=1)
        axis.annotate(
            "reincarnation",
            (at, 1),
            xycoords=("data", "axes fraction"),
            xytext=(3, 1),
            textcoords="offset points",
            color="#666666",
            fontsize=7,
        )


def reincarnation(metrics: Sequence[Metrics], x: str) -> float | None:
    """Where the mix stage ended: the last step of it, in units of the x axis."""
    staged = [record for record in metrics if "stage" in record and x in record]
    for before, after in itertools.pairwise(staged):
        if before["stage"] == "mix" != after["stage"]:
            return float(before[x])
    return None


Panel = Callable[[Axes, Sequence[Metrics]], None]
FIGURES: Mapping[str, tuple[Panel, ...]] = {
    "accuracy_rollouts": (_accuracy_rollouts,),
    "accuracy_seconds": (_accuracy_seconds,),
    "reward": (_reward,),
    "response_length": (_response_length,),
    "entropy": (_entropy,),
    "kl": (_kl,),
    "ratio": (
        _by_age("ratio_mean", "Importance ratio, mean", "pi / behaviour policy"),
        _by_age("ratio_max", "Importance ratio, greatest", "pi / behaviour policy"),
    ),
    "off_policy": (
        _by_age("ess", "Effective sample size", "share of the rows' tokens"),
        _by_age("clip_share", "Clipped tokens", "share of the rows' tokens"),
    ),
    "gradient_norm": (_grad_norm,),
    "seconds": (_phases,),
}
