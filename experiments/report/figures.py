"""What all figures of a report share: how methods look, bands over seeds, axes, files."""

import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, StrMethodFormatter

from experiments.report.intervals import band
from remix_jax.run.figures import (
    AMBER, BLACK, BLUE, GREEN, GREY, ORANGE, PERCENT, PURPLE, SKY, STYLE, logarithmic, save,
)  # fmt: skip

__all__ = [
    "AMBER", "BLACK", "BLUE", "COLOURS", "DARK_GREY", "GREEN", "GREY", "MARKERS", "ORANGE",
    "PERCENT", "PURPLE", "SKY", "draw_band", "labels_below", "line_style", "logarithmic", "note",
    "plain", "rollout_axis", "share_axis", "title", "render",
]  # fmt: skip
DARK_GREY = "#4D4D4D"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, AMBER, SKY)
MARKERS = ("s", "^", "D", "v", "P", "X", "o")
plain = FuncFormatter(lambda value, _: f"{value:.6g}")


def line_style(index: int) -> dict[str, Any]:
    """The first is grey and dashed, the others coloured: distinct without colour as well."""
    if index == 0:
        return {"color": DARK_GREY, "marker": "o", "linestyle": "--"}
    turn, colour = divmod(index - 1, len(COLOURS))
    return {
        "color": COLOURS[colour],
        "marker": MARKERS[(index - 1) % len(MARKERS)],
        "linestyle": ("-", "-.", ":")[turn % 3],
    }


def render(
    draw: Callable[[Any], Mapping[str, Figure]], results: Any, directory: pathlib.Path
) -> list[pathlib.Path]:
    """Draws figures in their common style, each to a PNG file under its name; returns the paths."""
    directory.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        made = draw(results)
        return [save(figure, directory / f"{name}.png") for name, figure in made.items()]


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
    axis.plot(x, found["median"], **{"markersize": 4, "markevery": every, "label": label} | line)


def rollout_axis(axis: Axes, label: str = "fresh rollouts generated") -> None:
    """An x axis of counts from 0."""
    axis.set_xlabel(label)
    axis.set_xlim(left=0)
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:,.10g}"))
    axis.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))


def share_axis(axis: Axes, label: str, whole: bool = True) -> None:
    """A y axis in percent, from 0 to 100 where it is `whole`."""
    axis.set_ylabel(label)
    axis.yaxis.set_major_formatter(PERCENT)
    if whole:
        axis.set_ylim(0, 1)


def note(axis: Axes, text: str, y: float, colour: str) -> None:
    """Writes right of the axis, at the height y of the data."""
    axis.annotate(
        text, (1, y), xycoords=("axes fraction", "data"), xytext=(5, 0), color=colour, fontsize=7,
        textcoords="offset points", va="center", annotation_clip=False,
    )  # fmt: skip


def title(figure: Figure, text: str) -> None:
    """The title of a figure of several panels."""
    figure.suptitle(text, x=0.01, ha="left", fontsize=11, fontweight="bold")


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
