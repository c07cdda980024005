"""Every method's gain over its on-policy base in one figure, with intervals."""

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

from remix_jax.reporting import bootstrap
from remix_jax.reporting import comparison_numbers as numbers
from remix_jax.reporting.comparison_numbers import BEST, EQUAL, Data
from remix_jax.reporting.plotting_methods import REFERENCE, method_style
from remix_jax.run.figures import BLACK, GREY

TICKS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 4, 5, 7, 10, 15, 20, 30, 50)
LABELS = {EQUAL: "equal learning rate", BEST: "each at its own best"}


def draw_ratios(data: Data) -> Figure:
    """Base / method in rollouts to the target: hollow at the equal rate, filled at the best.

    An interval or median beyond the axis ends in an arrow: the base (right) or the method (left)
    never reached the target there.
    """
    rows: list[str | None] = []  # method, or None: a gap between families
    for family in numbers.families(data).values():
        rows += [None, *family[1:]] if rows else family[1:]
    figure = Figure(figsize=(8.6, 1.9 + 0.42 * max(len(rows), 1)), layout="constrained")
    axis = figure.subplots()
    found = {
        (name, which): numbers.ratio(data, name, which, data["target"])
        for name in rows
        if name is not None
        for which in numbers.settings(data)
    }
    low, high = _limits(list(found.values()))
    for place, name in enumerate(rows):
        if name is None:
            axis.axhline(place, color="#DDDDDD", linewidth=0.8)
            continue
        for which in numbers.settings(data):
            _draw_one(axis, data, name, which, place, found[name, which], (low, high))
    _finish(axis, data, rows, (low, high))
    return figure


def _limits(found: list[bootstrap.Interval | None]) -> tuple[float, float]:
    ends = [end for interval in found if interval for end in interval[:3]]
    ends = [end for end in ends if math.isfinite(end) and end > 0]
    return min([0.8, *ends]) / 1.12, max([1.6, *ends]) * 1.3


def _draw_one(
    axis: Axes,
    data: Data,
    name: str,
    which: str,
    place: float,
    interval: bootstrap.Interval | None,
    limits: tuple[float, float],
) -> None:
    colour, y = method_style(data, name)["color"], place
    if len(numbers.settings(data)) > 1:
        y += -0.17 if which == EQUAL else 0.17
    if interval is None:
        _say(axis, "neither reaches", y, GREY)
        return
    middle, low, high = np.clip(interval[:3], limits[0] * 1.02, limits[1] / 1.02)
    axis.plot([low, high], [y, y], color=colour, linewidth=1.8, zorder=3)
    for end, value in ((low, interval.low), (high, interval.high)):
        if end != value:
            marker = ">" if value > end else "<"
            axis.plot([end], [y], marker=marker, color=colour, markersize=5, zorder=3)
    inside = middle == interval.median
    axis.plot(
        [middle], [y], marker="o" if inside else ">" if interval.median else "<", markersize=6.5,
        color=colour, zorder=4, markerfacecolor="white" if which == EQUAL else colour,
        markeredgewidth=1.6,
    )  # fmt: skip
    text = f"{interval.median:.2f}" if math.isfinite(interval.median) else "base never reaches"
    text = "method never reaches" if interval.median == 0 else text
    if interval.used < interval.of:
        text += f" ({interval.used} of {interval.of} seeds)"
    _say(axis, text, y, BLACK)


def _say(axis: Axes, text: str, y: float, colour: str) -> None:
    """Writes right of the axis."""
    axis.annotate(
        text, (1, y), xycoords=("axes fraction", "data"), xytext=(5, 0), color=colour, fontsize=7,
        textcoords="offset points", va="center", annotation_clip=False,
    )  # fmt: skip


def _finish(axis: Axes, data: Data, rows: list[str | None], limits: tuple[float, float]) -> None:
    axis.axvline(1, color=REFERENCE, linewidth=1.4, linestyle="--", zorder=2)
    axis.set_xscale("log")
    axis.set_xlim(*limits)
    axis.xaxis.set_major_locator(FixedLocator([t for t in TICKS if limits[0] <= t <= limits[1]]))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    named = [(place, name) for place, name in enumerate(rows) if name is not None]
    axis.set_yticks([place for place, _ in named])
    axis.set_yticklabels([numbers.label(data, name) for _, name in named])
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.grid(axis="y", visible=False)
    axis.tick_params(axis="y", length=0)
    bases = " or ".join(numbers.label(data, base) for base in numbers.families(data))
    goal = f"{100 * data['target']:g} % held-out accuracy"
    axis.set_title(f"Times fewer fresh rollouts to {goal} than {bases}")
    axis.set_xlabel(f"rollouts of {bases} / rollouts of the method (right of 1: fewer rollouts)")
    handles = [
        Line2D(
            [], [], color=GREY, marker="o", markersize=6.5, markeredgewidth=1.6, linewidth=1.8,
            markerfacecolor="white" if which == EQUAL else GREY, label=LABELS[which],
        )
        for which in numbers.settings(data)
    ]  # fmt: skip
    axis.figure.legend(
        handles=handles, loc="outside lower center", ncols=2, fontsize=8, title_fontsize=8,
        title="median over seeds and its 95 % bootstrap interval; an arrow goes on to infinity",
    )  # fmt: skip
