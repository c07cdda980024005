"""The figures of a comparison, drawn from its data alone."""

import math

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator, StrMethodFormatter

from experiments.report import figures
from experiments.report.comparison import BEST, EQUAL, Comparison
from experiments.report.figures import BLACK, DARK_GREY, GREY
from experiments.report.intervals import LEAST, Interval, median
from experiments.report.tables import goal, rate_text

TITLES = {EQUAL: "equal learning rate", BEST: "each at its own best learning rate"}
SHOWN = 4  # curves that can still be distinguished
TICKS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 4, 5, 7, 10, 15, 20, 30, 50)


def draw(runs: Comparison) -> dict[str, Figure]:
    """The figures by name.

    comparison: accuracy against fresh rollouts. comparison_ratios: every method's gain over its
    on-policy base. comparison_seconds, where seconds were kept: measured, and modelled with dearer
    rollouts. comparison_tuning, where more than one learning rate was tried.
    """
    made = {"comparison": _accuracy(runs), "comparison_ratios": _ratios(runs)}
    if runs.has("seconds"):
        made["comparison_seconds"] = _seconds(runs)
    if BEST in runs.settings:
        made["comparison_tuning"] = _tuning(runs)
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


# Accuracy against rollouts and seconds


def _accuracy(runs: Comparison) -> Figure:
    """One row a family, one column a setting."""
    size = (1.6 + 4.8 * len(runs.settings), 0.3 + 3.7 * len(runs.families))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(runs.families), len(runs.settings), squeeze=False, sharey=True)
    for row, base in zip(grid, runs.families, strict=True):
        for axis, setting in zip(row, runs.settings, strict=True):
            _curves(axis, runs, base, setting, "rollouts")
            _mark_gain(axis, runs, base, setting)
            axis.set_title(f"{runs.label(base)}: {TITLES[setting]}")
    return figure


def _curves(axis: Axes, runs: Comparison, base: str, setting: str, x: str) -> None:
    counts = []
    for name in main_methods(runs, base):
        curves = [(curve[x], curve["accuracy"]) for curve in runs.runs(name, setting)["curve"]]
        counts.append(len(curves))
        seeds = f"{len(curves)} seed{'s' if len(curves) > 1 else ''}"
        label = f"{runs.label(name)}, {rate_text(runs.rate(name, setting))} ({seeds})"
        figures.draw_band(axis, curves, _line(runs, name), label)
    axis.axhline(runs.target, color=GREY, linestyle=":", linewidth=1.2, zorder=1)
    seconds = "seconds of the run, without compilation"
    figures.rollout_axis(axis, *([seconds] if x == "seconds" else []))
    figures.share_axis(axis, "held-out accuracy, median")
    axis.yaxis.set_tick_params(labelleft=True)
    if max(counts) > 1:
        shown = "95 % bootstrap interval of the median"
        text = shown if min(counts) >= LEAST else "range over seeds"
        axis.plot([], [], color=GREY, linewidth=6, alpha=0.3, label=text)
    axis.legend(loc="lower right")


def _mark_gain(axis: Axes, runs: Comparison, base: str, setting: str) -> None:
    """Dots where the methods reach the target, and an arrow from the base to the cheapest."""
    target, spent = runs.target, {}
    for name in main_methods(runs, base):
        reached = median(runs.crossings(name, setting, target))
        if reached is not None and math.isfinite(reached.median):
            spent[name] = reached.median
            axis.plot(
                [reached.median], [target], marker="o", markersize=7, markeredgewidth=1.2,
                color=_line(runs, name)["color"], markeredgecolor="white", zorder=5,
            )  # fmt: skip
    best = min(spent, key=lambda name: spent[name], default=base)
    times = runs.ratio(best, setting, target)
    if best == base or times is None:
        return
    text, colour = f"{runs.label(base)} does not reach {goal(target)}", DARK_GREY
    if base in spent:
        colour = _line(runs, best)["color"]
        arrow = {"arrowstyle": "-|>", "color": colour, "lw": 1.6, "shrinkA": 6, "shrinkB": 6}
        ends = {"xy": (spent[best], target), "xytext": (spent[base], target)}
        axis.annotate("", **ends, arrowprops=arrow, zorder=4)
        spread = "–".join(f"{end:.1f}" if math.isfinite(end) else "∞" for end in times[1:3])
        text = f"{times.median:.1f} times fewer rollouts to {goal(target)} [{spread}]"
    # The title of the legend is where no curve crosses the text.
    font = {"weight": "bold", "size": 9}
    legend = axis.legend(loc="lower right", title=text, title_fontproperties=font)
    legend.get_title().set_color(colour)


def _seconds(runs: Comparison) -> Figure:
    """One row a family and setting: seconds as measured, and modelled with dearer rollouts."""
    rows = [(base, setting) for base in runs.families for setting in runs.settings]
    figure = Figure(figsize=(11.2, 0.3 + 3.6 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), 2, squeeze=False)
    for (base, setting), (left, right) in zip(rows, axes, strict=True):
        _curves(left, runs, base, setting, "seconds")
        left.set_title(f"{runs.label(base)}, {TITLES[setting]}: measured")
        _modelled(right, runs, base, setting)
    return figure


def _modelled(axis: Axes, runs: Comparison, base: str, setting: str) -> None:
    """Median seconds to the target if every fresh rollout cost so much more than it did."""
    cost, handles, notes = np.logspace(-4, 1, 101), [], []  # seconds
    for name in main_methods(runs, base):
        line = _line(runs, name) | {"marker": None}
        rollouts, seconds = (
            runs.crossings(name, setting, runs.target, x).to_numpy()[:, None]
            for x in ("rollouts", "seconds")
        )
        modelled = np.median(seconds + cost * rollouts, axis=0)
        reached = bool(np.isfinite(modelled).all())
        if reached:
            axis.plot(1000 * cost, modelled, **line)
        label = runs.label(name) + ("" if reached else ": not reached")
        handles.append(Line2D([], [], **line, label=label))
        even = None if name == base else runs.break_even(name, setting)
        if even is None:
            continue
        when = "at every cost"
        if even.median > cost[0]:
            axis.axvline(1000 * even.median, color=line["color"], linestyle=":", linewidth=1.2)
            when = f"from {1000 * even.median:.2g} ms"
        notes.append((f"{runs.label(name)} ahead of {runs.label(base)} {when}", line["color"]))
    for row, (text, colour) in enumerate(notes):
        axis.annotate(
            text, (1, 0), xycoords="axes fraction", xytext=(-4, 5 + 12 * row), ha="right",
            textcoords="offset points", color=colour, fontsize=8,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
        )  # fmt: skip
    axis.legend(handles=handles, loc="upper left")
    axis.set(xscale="log", yscale="log", xlim=(1000 * cost[0], 1000 * cost[-1]))
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axis.set_title("Model, not measured: if one rollout cost X ms more")
    axis.set_xlabel("X, added cost of one fresh rollout, ms")
    axis.set_ylabel(f"seconds to {goal(runs.target)}, median")


# Ratios to the on-policy base


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
    named = {index: name for index, name in enumerate(rows) if name is not None}
    found = {
        (index, setting): runs.ratio(name, setting, runs.target)
        for index, name in named.items()
        for setting in runs.settings
    }
    ends = [end for interval in found.values() if interval for end in interval[:3]]
    ends = [end for end in ends if math.isfinite(end) and end > 0]
    limits = min([0.8, *ends]) / 1.12, max([1.6, *ends]) * 1.3
    for (index, setting), interval in found.items():
        y = float(index)
        if len(runs.settings) > 1:
            y += -0.17 if setting == EQUAL else 0.17
        colour = _line(runs, named[index])["color"]
        _interval(axis, interval, y, colour, "white" if setting == EQUAL else colour, limits)
    for index in set(range(len(rows))) - set(named):
        axis.axhline(index, color="#DDDDDD", linewidth=0.8)
    axis.set_yticks(list(named), [runs.label(name) for name in named.values()])
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.grid(axis="y", visible=False)
    axis.tick_params(axis="y", length=0)
    _ratio_axis(axis, runs, limits)
    return figure


def _interval(
    axis: Axes,
    interval: Interval | None,
    y: float,
    colour: str,
    face: str,
    limits: tuple[float, float],
) -> None:
    if interval is None:
        figures.note(axis, "neither reaches", y, GREY)
        return
    middle, low, high = np.clip(interval[:3], limits[0] * 1.02, limits[1] / 1.02)
    axis.plot([low, high], [y, y], color=colour, linewidth=1.8, zorder=3)
    for end, value in ((low, interval.low), (high, interval.high)):
        if end != value:
            marker = ">" if value > end else "<"
            axis.plot([end], [y], marker=marker, color=colour, markersize=5, zorder=3)
    marker = "o" if middle == interval.median else ">" if interval.median else "<"
    axis.plot(
        [middle], [y], marker=marker, markersize=6.5, color=colour, zorder=4,
        markerfacecolor=face, markeredgewidth=1.6,
    )  # fmt: skip
    text = f"{interval.median:.2f}" if math.isfinite(interval.median) else "base never reaches"
    text = "method never reaches" if interval.median == 0 else text
    if interval.used < interval.of:
        text += f" ({interval.used} of {interval.of} seeds)"
    figures.note(axis, text, y, BLACK)


def _ratio_axis(axis: Axes, runs: Comparison, limits: tuple[float, float]) -> None:
    axis.axvline(1, color=DARK_GREY, linewidth=1.4, linestyle="--", zorder=2)
    axis.set(xscale="log", xlim=limits)
    axis.xaxis.set_major_locator(FixedLocator([t for t in TICKS if limits[0] <= t <= limits[1]]))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    bases = " or ".join(map(runs.label, runs.families))
    axis.set_title(f"Times fewer fresh rollouts to {goal(runs.target)} held-out accuracy than {bases}")
    axis.set_xlabel(f"rollouts of {bases} / rollouts of the method (right of 1: fewer rollouts)")
    labels = {EQUAL: "equal learning rate", BEST: "each at its own best"}
    for setting in runs.settings:
        axis.plot(
            [], [], color=GREY, marker="o", markersize=6.5, markeredgewidth=1.6, label=labels[setting],
            markerfacecolor="white" if setting == EQUAL else GREY,
        )  # fmt: skip
    text = "median over seeds and its 95 % bootstrap interval; an arrow goes on to infinity"
    figures.labels_below(axis.figure, [axis], text)


# Tuning


def _tuning(runs: Comparison) -> Figure:
    """Validation accuracy by learning rate, one panel a family."""
    most = max(map(len, runs.families.values()))
    size = (1.0 + 5.2 * len(runs.families), 3.8 + 0.17 * most)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, len(runs.families), squeeze=False, sharey=True)[0]
    for axis, (base, names) in zip(axes, runs.families.items(), strict=True):
        for name in names:
            _tuning_line(axis, runs, name)
        axis.set_xscale("log")
        axis.set_xticks(sorted(runs.data["learning_rates"]))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: rate_text(rate)))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_xlabel("learning rate")
        axis.set_title(f"{runs.label(base)}: tuning of the learning rate")
        figures.share_axis(axis, "validation accuracy, mean over the budget", whole=False)
        axis.yaxis.set_tick_params(labelleft=True)
        ring = {"marker": "o", "markersize": 10, "markerfacecolor": "none"}
        axis.plot([], [], linestyle="", **ring, markeredgecolor=GREY, label="chosen")
        axis.legend(loc="upper left", bbox_to_anchor=(0, -0.16), ncols=2, fontsize=7.5)
    return figure


def _tuning_line(axis: Axes, runs: Comparison, name: str) -> None:
    line = _line(runs, name)
    areas = {rate: runs.validation(name, rate) for rate in sorted(runs.data["learning_rates"])}
    for rate, values in areas.items():
        dots = {"marker": ".", "markersize": 3, "color": line["color"], "alpha": 0.5}
        axis.plot([rate] * len(values), values, linestyle="", **dots)
    means = [values.mean() for values in areas.values()]
    axis.plot(list(areas), means, **line, markersize=4.5, label=runs.label(name))
    best = runs.best[name]
    axis.plot(
        [best], [areas[best].mean()], marker="o", markersize=10, markerfacecolor="none",
        markeredgecolor=line["color"], markeredgewidth=1.4, zorder=5,
    )  # fmt: skip
