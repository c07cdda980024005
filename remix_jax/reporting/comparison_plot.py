"""The figures of a comparison, drawn from its data alone."""

import math
import pathlib
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator, StrMethodFormatter

from remix_jax.reporting import bootstrap
from remix_jax.reporting import comparison_numbers as numbers
from remix_jax.reporting.comparison_forest import draw_ratios
from remix_jax.reporting.comparison_numbers import BEST, EQUAL, Data
from remix_jax.reporting.plotting_methods import REFERENCE, method_style
from remix_jax.run.figures import GREY, PERCENT, STYLE, X_LABELS, save

TITLES = {EQUAL: "equal learning rate", BEST: "each at its own best learning rate"}


def draw(data: Data, directory: str | pathlib.Path) -> list[pathlib.Path]:
    """Draws the figures of a comparison; returns their paths.

    comparison.png: accuracy against fresh rollouts. comparison_ratios.png: every method's gain over
    its on-policy base. comparison_seconds.png, where seconds were kept: measured, and modelled with
    dearer rollouts. comparison_tuning.png, where more than one learning rate was tried.
    """
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    with matplotlib.rc_context(STYLE):
        paths.append(save(_accuracy_figure(data), directory / "comparison.png"))
        paths.append(save(draw_ratios(data), directory / "comparison_ratios.png"))
        if numbers.has(data, "seconds"):
            paths.append(save(_seconds_figure(data), directory / "comparison_seconds.png"))
        if BEST in numbers.settings(data):
            paths.append(save(_tuning_figure(data), directory / "comparison_tuning.png"))
    return paths


_CROWD = 4  # curves that can still be told apart


def main_methods(data: Data, base: str) -> list[str]:
    """The methods of a family that the curves show: all of up to four, else base and ReMix."""
    family = numbers.families(data)[base]
    if len(family) <= _CROWD:
        return family
    return [
        name for name in family if name in (base, f"remix-{base}") or name.startswith("remix-plus")
    ]


# Accuracy against rollouts and seconds


def _accuracy_figure(data: Data) -> Figure:
    """One row a family, one column a setting."""
    families, settings = list(numbers.families(data)), numbers.settings(data)
    size = (1.6 + 4.8 * len(settings), 0.3 + 3.7 * len(families))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(families), len(settings), squeeze=False, sharey=True)
    for row, base in zip(grid, families, strict=True):
        for axis, which in zip(row, settings, strict=True):
            _curves(axis, data, base, which, "rollouts")
            _mark_gain(axis, data, base, which)
            axis.set_title(f"{numbers.label(data, base)}: {TITLES[which]}")
    return figure


def _curves(axis: Axes, data: Data, base: str, which: str, x: str) -> None:
    counts = []
    for name in main_methods(data, base):
        trials = numbers.setting(data, name, which).values()
        curves = [(trial["curve"][x], trial["curve"]["accuracy"]) for trial in trials]
        band, style = bootstrap.band(curves), method_style(data, name)
        counts.append(len(curves))
        axis.fill_between(
            band.x, band.low, band.high, color=style["color"], alpha=0.18, linewidth=0
        )
        every = max(1, len(band.x) // 12)
        rate = numbers.rate_text(numbers.learning_rate(data, name, which))
        text = f"{numbers.label(data, name)}, {rate} ({_seeds(len(curves))})"
        axis.plot(band.x, band.median, **style, markersize=4, markevery=every, label=text)
    axis.axhline(data["target"], color=GREY, linestyle=":", linewidth=1.2, zorder=1)
    axis.set_xlabel(X_LABELS[x])
    axis.set_ylabel("held-out accuracy, median")
    axis.yaxis.set_tick_params(labelleft=True)
    axis.set_ylim(0, 1)
    axis.set_xlim(left=0)
    axis.yaxis.set_major_formatter(PERCENT)
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:,.10g}"))
    axis.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    if max(counts) > 1:
        shown = "95 % bootstrap interval of the median"
        text = shown if min(counts) >= bootstrap.LEAST else "range over seeds"
        axis.plot([], [], color=GREY, linewidth=6, alpha=0.3, label=text)
    axis.legend(loc="lower right")


def _seeds(count: int) -> str:
    return f"{count} seed{'s' if count > 1 else ''}"


def _mark_gain(axis: Axes, data: Data, base: str, which: str) -> None:
    """Dots where the methods reach the target, and an arrow from the base to the cheapest."""
    target = data["target"]
    places = {}
    for name in main_methods(data, base):
        spent = list(numbers.crossings(data, name, which, target).values())
        reached = bootstrap.median(spent, missing=math.inf)
        if reached is not None and math.isfinite(reached.median):
            places[name] = reached.median
            axis.plot(
                [reached.median], [target], marker="o", markersize=7, markeredgewidth=1.2,
                color=method_style(data, name)["color"], markeredgecolor="white", zorder=5,
            )  # fmt: skip
    best = min(places, key=lambda name: places[name], default=base)
    times = numbers.ratio(data, best, which, target)
    if best == base or times is None:
        return
    goal, colour = f"{100 * target:g} %", method_style(data, best)["color"]
    if base not in places:
        _title_legend(axis, f"{numbers.label(data, base)} does not reach {goal}", REFERENCE)
        return
    axis.annotate(
        "",
        xy=(places[best], target),
        xytext=(places[base], target),
        arrowprops={
            "arrowstyle": "-|>", "color": colour, "linewidth": 1.6, "shrinkA": 6, "shrinkB": 6,
        },
        zorder=4,
    )  # fmt: skip
    spread = "–".join(f"{end:.1f}" if math.isfinite(end) else "∞" for end in times[1:3])
    _title_legend(axis, f"{times.median:.1f} times fewer rollouts to {goal} [{spread}]", colour)


def _title_legend(axis: Axes, text: str, colour: str) -> None:
    """Says it as the title of the legend, the one place that no curve crosses."""
    font = {"weight": "bold", "size": 9}
    legend = axis.legend(loc="lower right", title=text, title_fontproperties=font)
    legend.get_title().set_color(colour)


def _seconds_figure(data: Data) -> Figure:
    """One row a family and setting: seconds as measured, and modelled with dearer rollouts."""
    rows = [(base, which) for base in numbers.families(data) for which in numbers.settings(data)]
    figure = Figure(figsize=(11.2, 0.3 + 3.6 * len(rows)), layout="constrained")
    for (base, which), (left, right) in zip(
        rows, figure.subplots(len(rows), 2, squeeze=False), strict=True
    ):
        _curves(left, data, base, which, "seconds")
        left.set_title(f"{numbers.label(data, base)}, {TITLES[which]}: measured")
        _modelled(right, data, base, which)
    return figure


def _modelled(axis: Axes, data: Data, base: str, which: str) -> None:
    """Median seconds to the target if every fresh rollout cost so much more than it did."""
    cost, handles = np.logspace(-4, 1, 101), []  # seconds
    for name in main_methods(data, base):
        style = method_style(data, name)
        runs = [
            numbers.crossings(data, name, which, data["target"], x).values()
            for x in ("rollouts", "seconds")
        ]
        rollouts, seconds = (
            np.array([math.inf if value is None else value for value in spent]) for spent in runs
        )
        modelled = np.median(seconds[:, None] + cost * rollouts[:, None], axis=0)
        label = numbers.label(data, name)
        if np.isfinite(modelled).all():
            axis.plot(1000 * cost, modelled, **style | {"marker": None})
        else:
            label += ": not reached"
        handles.append(Line2D([], [], **style | {"marker": None}, label=label))
    others = [name for name in main_methods(data, base) if name != base]
    for i, name in enumerate(others):
        _mark_break_even(axis, data, name, which, i, float(cost[0]))
    axis.legend(handles=handles, loc="upper left")
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlim(1000 * cost[0], 1000 * cost[-1])
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axis.set_title("Model, not measured: if one rollout cost X ms more")
    axis.set_xlabel("X, added cost of one fresh rollout, ms")
    axis.set_ylabel(f"seconds to {100 * data['target']:g} %, median")


def _mark_break_even(axis: Axes, data: Data, name: str, which: str, row: int, least: float) -> None:
    """A line at the cost from which the method is ahead of its base, and a sentence."""
    even = numbers.break_even(data, name, which)
    if even is None:
        return
    colour, method = method_style(data, name)["color"], numbers.label(data, name)
    ahead = f"{method} ahead of {numbers.label(data, numbers.reference(data, name))}"
    if even.median > least:
        axis.axvline(1000 * even.median, color=colour, linestyle=":", linewidth=1.2)
        ahead += f" from {1000 * even.median:.2g} ms"
    else:
        ahead += " at every cost"
    axis.annotate(
        ahead,
        (1, 0),
        xycoords="axes fraction",
        xytext=(-4, 5 + 12 * row),
        textcoords="offset points",
        ha="right",
        color=colour,
        fontsize=8,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
    )


# Tuning


def _tuning_figure(data: Data) -> Figure:
    """Mean validation accuracy against the learning rate, one panel a family."""
    families = numbers.families(data)
    most = max(map(len, families.values()))
    size = (1.0 + 5.2 * len(families), 3.8 + 0.17 * most)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, len(families), squeeze=False, sharey=True)[0]
    for axis, (base, names) in zip(axes, families.items(), strict=True):
        for name in names:
            _tuning_line(axis, data, name)
        _rate_axis(axis, data["learning_rates"])
        axis.set_title(f"{numbers.label(data, base)}: tuning of the learning rate")
        axis.set_ylabel("validation accuracy, mean over the budget")
        axis.yaxis.set_tick_params(labelleft=True)
        axis.yaxis.set_major_formatter(PERCENT)
        axis.plot(
            [], [], linestyle="", marker="o", markersize=10, markerfacecolor="none",
            markeredgecolor=GREY, label="chosen",
        )  # fmt: skip
        axis.legend(loc="upper left", bbox_to_anchor=(0, -0.16), ncols=2, fontsize=7.5)
    return figure


def _tuning_line(axis: Axes, data: Data, name: str) -> None:
    style, rates = method_style(data, name), sorted(data["learning_rates"])
    seeds = [list(numbers.validation(data, name, rate).values()) for rate in rates]
    means = [float(np.mean(values)) for values in seeds]
    for rate, values in zip(rates, seeds, strict=True):
        axis.plot(
            [rate] * len(values), values, linestyle="", marker=".", markersize=3,
            color=style["color"], alpha=0.5,
        )  # fmt: skip
    axis.plot(rates, means, **style, markersize=4.5, label=numbers.label(data, name))
    best = numbers.best_learning_rate(data, name)
    axis.plot(
        [best], [means[rates.index(best)]], marker="o", markersize=10, markerfacecolor="none",
        markeredgecolor=style["color"], markeredgewidth=1.4, zorder=5,
    )  # fmt: skip


def _rate_axis(axis: Axes, rates: Sequence[float]) -> None:
    axis.set_xscale("log")
    axis.set_xticks(sorted(rates))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: numbers.rate_text(rate)))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlabel("learning rate")
