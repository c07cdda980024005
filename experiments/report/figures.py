"""What all figures of a report share: how methods look, bands over seeds, axes, files."""

import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogFormatter, MaxNLocator, StrMethodFormatter

from experiments.report.intervals import Interval, band

# Those of Okabe and Ito, told apart by every kind of colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
BLUE, ORANGE, GREEN, PURPLE, AMBER, SKY = COLOURS
GREY, DARK_GREY, BLACK = "#8A8A8A", "#4D4D4D", "#222222"
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
MARKERS = ("s", "^", "D", "v", "P", "X", "o")
BAND = "bands: 95 % bootstrap interval of the median over seeds (range with fewer than three)"
COUNTED = {
    "rollouts": "fresh rollouts generated",
    "seconds": "seconds of the run, without compilation",
}
plain = FuncFormatter(lambda value, _: f"{value:.6g}")


def line_style(index: int) -> dict[str, Any]:
    """The first is grey and dashed, the others coloured: distinct without colour as well."""
    if index == 0:
        return {"color": DARK_GREY, "marker": "o", "linestyle": "--"}
    turn, colour = divmod(index - 1, len(COLOURS))
    marker, dashes = MARKERS[(index - 1) % len(MARKERS)], ("-", "-.", ":")[turn % 3]
    return {"color": COLOURS[colour], "marker": marker, "linestyle": dashes}


def render(
    draw: Callable[[Any], Mapping[str, Figure]], results: Any, directory: pathlib.Path
) -> list[pathlib.Path]:
    """Draws figures in their common style, each to a PNG file under its name; returns the paths."""
    directory.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        made = draw(results)
        paths = {directory / f"{name}.png": figure for name, figure in made.items()}
        for path, figure in paths.items():
            figure.savefig(path)
        return list(paths)


# Parts of a panel


def draw_band(
    axis: Axes,
    curves: Iterable[tuple[Sequence[float], Sequence[float]]],
    line: Mapping[str, Any],
    label: str,
    markers: int = 12,
    end: float | None = None,
) -> None:
    """The median of curves over seeds as a line, its interval as a band, up to `end`."""
    found = band(curves).loc[:end]
    x = found.index.to_numpy()
    axis.fill_between(x, found["low"], found["high"], color=line["color"], alpha=0.17, linewidth=0)
    every = max(1, len(x) // markers)
    style = {"markersize": 4, "markevery": every, "label": label, **line}
    axis.plot(x, found["median"], **style)


def draw_interval(
    axis: Axes,
    interval: Interval | None,
    y: float,
    colour: str,
    face: str,
    limits: tuple[float, float],
) -> None:
    """A median with its interval in row y; what lies beyond the limits of the axis is an arrow."""
    if interval is None:
        return
    middle, low, high = np.clip(interval[:3], limits[0] * 1.02, limits[1] / 1.02)
    axis.plot([low, high], [y, y], color=colour, linewidth=1.8, zorder=3)
    for at, value in ((low, interval.low), (high, interval.high), (middle, interval.median)):
        marker = "o" if at == value else ">" if value > at else "<"
        if marker != "o" or at is middle:
            axis.plot(
                [at], [y], marker=marker, markersize=6.5 if at is middle else 5, color=colour,
                markerfacecolor=face if at is middle else colour, markeredgewidth=1.6, zorder=4,
            )  # fmt: skip


def count_axis(axis: Axes, x: str = "rollouts") -> None:
    """An x axis of rollouts or seconds from 0."""
    axis.set_xlabel(COUNTED[x])
    axis.set_xlim(left=0)
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:,.10g}"))
    axis.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))


def share_axis(axis: Axes, label: str, whole: bool = True) -> None:
    """A y axis in percent, from 0 to 100 where it is `whole`."""
    axis.set_ylabel(label)
    axis.yaxis.set_major_formatter(PERCENT)
    if whole:
        axis.set_ylim(0, 1)


def logarithmic(axis: Axes) -> None:
    """Makes the y axis logarithmic, with plain numbers, between decades too where it spans few."""
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(LogFormatter())
    axis.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))


def row_axis(axis: Axes, labels: Sequence[str]) -> None:
    """A y axis of rows with names, the first one above."""
    named = [index for index, label in enumerate(labels) if label]
    axis.set_yticks(named, [labels[index] for index in named])
    axis.set_ylim(len(labels) - 0.4, -0.6)
    axis.grid(axis="y", visible=False)
    axis.tick_params(axis="y", length=0)


def labels_below(figure: Figure, axes: Sequence[Axes], text: str = "", columns: int = 4) -> None:
    """One legend under all panels, with every line that any of them has."""
    handles: dict[str, Any] = {}
    for axis in axes:
        found, labels = axis.get_legend_handles_labels()
        handles |= dict(zip(labels, found, strict=True))
    figure.legend(
        list(handles.values()), list(handles), loc="outside lower center", fontsize=8,
        ncols=max(1, min(len(handles), columns)), title=text or None, title_fontsize=8,
    )  # fmt: skip
