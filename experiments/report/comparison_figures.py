"""The figures of a comparison, drawn from its data alone."""

import math
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

from experiments.report import figures
from experiments.report.comparison import BEST, EQUAL, Comparison
from experiments.report.figures import GREY
from experiments.report.intervals import INFINITE, median
from experiments.tables import goal, rate_text

TITLES = {EQUAL: "equal learning rate", BEST: "each at its own best learning rate"}
SHOWN = 4  # curves that can still be distinguished
TICKS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 4, 5, 7, 10, 15, 20, 30, 50)


def draw(runs: Comparison) -> dict[str, Figure]:
    """The figures by name.

    comparison: accuracy against fresh rollouts; comparison_seconds: against seconds, where those
    were kept; comparison_ratios: every method's gain over its on-policy base.
    """
    made = {"comparison": _accuracy(runs, "rollouts"), "comparison_ratios": _ratios(runs)}
    if runs.has("seconds"):
        made["comparison_seconds"] = _accuracy(runs, "seconds")
    return made


def main_methods(runs: Comparison, base: str) -> list[str]:
    """The methods of a family that the curves show: all of up to four, else base and ReMix."""
    family = runs.families[base]
    if len(family) <= SHOWN:
        return family
    return [n for n in family if n in (base, f"remix-{base}") or n.startswith("remix-plus")]


def _line(runs: Comparison, name: str) -> dict:
    """The style of a method by its index in its family, so that PPO's and GRPO's look alike."""
    return figures.line_style(runs.families[runs.reference(name)].index(name))


def _accuracy(runs: Comparison, x: str) -> Figure:
    """One row a family, one column a setting."""
    size = (1.6 + 4.8 * len(runs.settings), 0.6 + 3.7 * len(runs.families))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(runs.families), len(runs.settings), squeeze=False, sharey=True)
    for row, base in zip(grid, runs.families, strict=True):
        for axis, setting in zip(row, runs.settings, strict=True):
            for name in main_methods(runs, base):
                curves = [(c[x], c["accuracy"]) for c in runs.runs(name, setting)["curve"]]
                rate, count = rate_text(runs.rate(name, setting)), len(curves)
                label = f"{runs.label(name)}, {rate} ({count} seed{'s' if count > 1 else ''})"
                figures.draw_band(axis, curves, _line(runs, name), label)
            axis.axhline(runs.target, color=GREY, linestyle=":", linewidth=1.2, zorder=1)
            figures.count_axis(axis, x)
            figures.share_axis(axis, "held-out accuracy, median")
            axis.yaxis.set_tick_params(labelleft=True)
            axis.set_title(f"{runs.label(base)}: {TITLES[setting]}")
            axis.legend(loc="lower right")
            if x == "rollouts":
                _mark_gain(axis, runs, base, setting)
    if runs.trials["seed"].nunique() > 1:
        figure.supxlabel(figures.BAND, fontsize=8, color="#666666")
    return figure


def _mark_gain(axis: Axes, runs: Comparison, base: str, setting: str) -> None:
    """Dots where the methods reach the target, and an arrow from the base to the cheapest."""
    target, spent = runs.target, {}
    for name in main_methods(runs, base):
        reached = median(runs.crossings(name, setting, target))
        if reached is not None and math.isfinite(reached.median):
            spent[name], colour = reached.median, _line(runs, name)["color"]
            dot: dict[str, Any] = {
                "markersize": 7,
                "markeredgewidth": 1.2,
                "markeredgecolor": "white",
            }
            axis.plot([reached.median], [target], marker="o", color=colour, zorder=5, **dot)
    best = min(spent, key=lambda name: spent[name], default=base)
    times = median(runs.ratios(best, setting, target))
    if best == base or times is None:
        return
    text, colour = f"{runs.label(base)} does not reach {goal(target)}", figures.DARK_GREY
    if base in spent:
        colour = _line(runs, best)["color"]
        arrow = {"arrowstyle": "-|>", "color": colour, "lw": 1.6, "shrinkA": 6, "shrinkB": 6}
        start, end = (spent[base], target), (spent[best], target)
        axis.annotate("", xy=end, xytext=start, arrowprops=arrow, zorder=4)
        text = f"{times.median:.1f} times fewer rollouts to {goal(target)}"
        if times.used > 1:
            low, high = (f"{end:.1f}" if math.isfinite(end) else INFINITE for end in times[1:3])
            text += f" [{low}–{high}]"
    # The title of the legend is where no curve crosses the text.
    font = {"weight": "bold", "size": 9}
    legend = axis.legend(loc="lower right", title=text, title_fontproperties=font)
    legend.get_title().set_color(colour)


def _ratios(runs: Comparison) -> Figure:
    """Base / method in rollouts to the target: hollow at the equal rate, filled at the best.

    An interval or median beyond the axis ends in an arrow: the base (right) or the method (left)
    never reached the target there.
    """
    rows: list[str | None] = []  # method, or None: a gap between families
    for family in runs.families.values():
        rows += [None, *family[1:]] if rows else family[1:]
    figure = Figure(figsize=(8.6, 1.9 + 0.42 * max(len(rows), 1)), layout="constrained")
    axis = figure.subplots()
    found = {
        (index, setting): median(runs.ratios(name, setting, runs.target))
        for index, name in enumerate(rows)
        for setting in runs.settings
        if name is not None
    }
    ends = [end for interval in found.values() if interval for end in interval[:3]]
    ends = [end for end in ends if math.isfinite(end) and end > 0]
    limits = min([0.8, *ends]) / 1.12, max([1.6, *ends]) * 1.3
    for (index, setting), interval in found.items():
        offset = 0.17 * (len(runs.settings) - 1) * (-1 if setting == EQUAL else 1)
        colour = _line(runs, rows[index] or "")["color"]
        face = "white" if setting == EQUAL else colour
        figures.draw_interval(axis, interval, index + offset, colour, face, limits)
        text = "neither reaches"
        if interval:
            text = f"{interval.median:.2f}" if interval.median else "method never reaches"
            text = text if math.isfinite(interval.median) else "base never reaches"
            if interval.used < interval.of:
                text += f" ({interval.used} of {interval.of} seeds)"
        axis.annotate(
            text, (1, index + offset), xycoords=("axes fraction", "data"), xytext=(5, 0),
            textcoords="offset points", va="center", fontsize=7, annotation_clip=False,
            color=figures.BLACK if interval else GREY,
        )  # fmt: skip
    for index, name in enumerate(rows):
        if name is None:
            axis.axhline(index, color="#DDDDDD", linewidth=0.8)
    figures.row_axis(axis, [runs.label(name) if name else "" for name in rows])
    axis.axvline(1, color=figures.DARK_GREY, linewidth=1.4, linestyle="--", zorder=2)
    axis.set(xscale="log", xlim=limits)
    axis.xaxis.set_major_locator(FixedLocator([t for t in TICKS if limits[0] <= t <= limits[1]]))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    bases, reached = " or ".join(map(runs.label, runs.families)), goal(runs.target)
    axis.set_title(f"Times fewer fresh rollouts to {reached} held-out accuracy than {bases}")
    axis.set_xlabel(f"rollouts of {bases} / rollouts of the method (right of 1: fewer rollouts)")
    for setting in runs.settings:
        face = "white" if setting == EQUAL else GREY
        line: dict[str, Any] = {
            "color": GREY,
            "marker": "o",
            "markersize": 6.5,
            "markeredgewidth": 1.6,
        }
        axis.plot([], [], **line, markerfacecolor=face, label=TITLES[setting])
    text = "median over seeds and its 95 % bootstrap interval; an arrow goes on to infinity"
    figures.labels_below(figure, [axis], text)
    return figure
