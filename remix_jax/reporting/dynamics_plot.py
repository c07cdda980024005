"""The figures of training dynamics, drawn from dynamics.json alone."""

import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, StrMethodFormatter

from remix_jax.reporting import bootstrap
from remix_jax.reporting import dynamics_numbers as numbers
from remix_jax.reporting.dynamics_numbers import Data, Trial
from remix_jax.reporting.plotting_methods import MARKERS, line_style
from remix_jax.run import report
from remix_jax.run.figures import (
    AMBER,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PERCENT,
    PURPLE,
    SKY,
    STYLE,
    X_LABELS,
    logarithmic,
    save,
)

BAND = "bands: 95 % bootstrap interval of the median over seeds (range with fewer than three)"
AGE_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, AMBER, SKY)


class Series(NamedTuple):
    """One small figure: what it shows and how."""

    name: str
    title: str
    label: str
    shares: bool = False
    logarithmic: bool = False


ACCURACY = Series(report.ACCURACY, "Held-out accuracy", "accuracy", shares=True)
LENGTH = Series("response_length", "Response length", "tokens")
ENTROPY = Series("entropy", "Entropy of the policy", "nats a token")
RATIO_MEAN = Series("ratio_mean", "Importance ratio, mean", "pi / behaviour policy")
RATIO_MAX = Series(
    "ratio_max", "Importance ratio, greatest", "pi / behaviour policy", logarithmic=True
)
CLIPPED = Series("clip_share", "Clipped tokens", "share of the rows' tokens", shares=True)
KL_BASE = Series("kl_base", "KL to the base anchor", "nats a token")
KL_PREV = Series("kl_prev", "KL to the precedent", "nats a token")
ESS = Series("ess", "Effective sample size", "share of the rows' tokens", shares=True)
METHODS = (ACCURACY, LENGTH, ENTROPY, RATIO_MEAN, RATIO_MAX, CLIPPED, KL_BASE, KL_PREV, ESS)
COLLAPSE = (ACCURACY, LENGTH, ENTROPY, RATIO_MAX, CLIPPED, KL_BASE)


def draw(data: Data, directory: str | pathlib.Path) -> list[pathlib.Path]:
    """Draws one figure a panel, and one by age of the rows; returns their paths."""
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Figure] = {}
    with matplotlib.rc_context(STYLE):
        for panel in data["panels"]:
            name = panel["name"]
            if any(arm["value"] is not None for arm in panel["arms"]):
                figures[f"sweep_{name}"] = _sweep(data, panel)
            elif name == "collapse":
                figures[name] = _grid(data, panel, COLLAPSE)
            else:
                figures[f"dynamics_{name}"] = _grid(data, panel, METHODS)
                replaying = [arm for arm in panel["arms"] if len(_ages(data, panel, arm)) > 1]
                if replaying and "dynamics_ages" not in figures:
                    figures["dynamics_ages"] = _by_age(data, panel, replaying[0])
        return [save(figure, directory / f"{name}.png") for name, figure in figures.items()]


def _ages(data: Data, panel: Mapping[str, Any], arm: Mapping[str, Any]) -> list[int]:
    return numbers.ages(numbers.trials(data, panel["name"], arm["name"]))


# Figures


def _grid(data: Data, panel: Mapping[str, Any], shown: Sequence[Series]) -> Figure:
    """One small figure a series, one line an arm."""
    rows = math.ceil(len(shown) / 3)
    figure = Figure(figsize=(12.6, 0.9 + 2.9 * rows), layout="constrained")
    axes = list(figure.subplots(rows, 3, squeeze=False).flat)
    for axis, series in zip(axes, shown, strict=True):
        for place, arm in enumerate(panel["arms"]):
            own = numbers.trials(data, panel["name"], arm["name"])
            _line(axis, own, series.name, line_style(place), arm["label"])
        _finish(axis, series)
    _legend(figure, axes, panel["title"])
    return figure


def _by_age(data: Data, panel: Mapping[str, Any], arm: Mapping[str, Any]) -> Figure:
    """Mean and greatest importance ratio and clipped tokens, one line an age of the rows."""
    own = numbers.trials(data, panel["name"], arm["name"])
    figure = Figure(figsize=(12.6, 4.1), layout="constrained")
    axes = list(figure.subplots(1, 3))
    for axis, series in zip(axes, (RATIO_MEAN, RATIO_MAX, CLIPPED), strict=True):
        for age in numbers.ages(own):
            style = {
                "color": AGE_COLOURS[age % len(AGE_COLOURS)],
                "marker": MARKERS[age % len(MARKERS)],
            }
            name = "fresh" if age == 0 else f"{age} step{'s' if age > 1 else ''} old"
            _line(axis, own, f"{series.name}/age{age}", style, name)
        _finish(axis, series)
        ends = [trial["reincarnation"] for trial in own if trial["reincarnation"] is not None]
        if ends:
            axis.axvline(ends[0], color=GREY, linestyle=(0, (4, 3)), linewidth=1.1, zorder=1)
            axis.annotate(
                "reincarnation", (ends[0], 1), xycoords=("data", "axes fraction"), xytext=(3, 1),
                textcoords="offset points", color="#666666", fontsize=7,
            )  # fmt: skip
    _legend(figure, axes, f"{arm['label']}: by age of the rows")
    return figure


def _sweep(data: Data, panel: Mapping[str, Any]) -> Figure:
    """Accuracy curves by value on the left; on the right what became of the runs."""
    figure = Figure(figsize=(12.6, 5.4), layout="constrained")
    grid = figure.add_gridspec(2, 3, width_ratios=(1.35, 1, 1))
    left = figure.add_subplot(grid[:, 0])
    for arm, colour in zip(panel["arms"], _sequence(panel["arms"]), strict=True):
        own = numbers.trials(data, panel["name"], arm["name"])
        dashes = "--" if arm["value"] is None else "-"
        style = {"color": colour, "marker": None, "linestyle": dashes}
        _line(left, own, report.ACCURACY, style, arm["label"])
    _finish(left, ACCURACY)
    left.legend(loc="best", title="median over seeds", title_fontsize=8)
    parts: tuple[Callable[..., None], ...] = (_levels, _lengths, _mean_ratios, _greatest_ratios)
    for place, part in enumerate(parts):
        axis = figure.add_subplot(grid[place // 2, 1 + place % 2])
        part(axis, data, panel)
        names = [
            arm["label"] if arm["value"] is None else f"{arm['value']:g}" for arm in panel["arms"]
        ]
        axis.set_xticks(range(len(names)), names)
        if max(map(len, names)) > 5:
            axis.tick_params(axis="x", labelrotation=25, labelsize=7.5)
        axis.set_xlim(-0.4, len(names) - 0.6)
    figure.suptitle(panel["title"], x=0.01, ha="left", fontsize=11, fontweight="bold")
    figure.supxlabel(BAND.replace("bands", "bands and bars"), fontsize=8, color="#666666")
    return figure


def _sequence(arms: Sequence[Mapping[str, Any]]) -> list[str]:
    """Light to dark by place among the values; an arm without a value is grey."""
    valued = [arm["name"] for arm in arms if arm["value"] is not None]
    shades = [0.88 - 0.88 * i / max(1, len(valued) - 1) for i in range(len(valued))]
    colours = {
        name: to_hex(colormaps["viridis"](shade))
        for name, shade in zip(valued, shades, strict=True)
    }
    return [colours.get(arm["name"], GREY) for arm in arms]


# The right side of a sweep


def _levels(axis: Axes, data: Data, panel: Mapping[str, Any]) -> None:
    for place, level in enumerate(data["levels"]):
        spreads = [numbers.reached(own, level) for own in _all(data, panel)]
        text = f"to {100 * level:g} %"
        _points(axis, spreads, AGE_COLOURS[place % len(AGE_COLOURS)], MARKERS[place], text)
    for place, own in enumerate(_all(data, panel)):
        spread = numbers.reached(own, min(data["levels"]))
        if spread is None or math.isinf(spread.median):
            axis.text(
                place, 0.03, "never", transform=axis.get_xaxis_transform(), ha="center",
                fontsize=7, color=GREY,
            )  # fmt: skip
    axis.set_title("Fresh rollouts to an accuracy")
    axis.set_ylabel("fresh rollouts")
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:,.10g}"))
    axis.set_ylim(0, 1.25 * axis.get_ylim()[1])  # room for the legend above all points
    if axis.get_legend_handles_labels()[1]:
        axis.legend(loc="upper center", ncols=4, fontsize=7, columnspacing=1.2)


def _lengths(axis: Axes, data: Data, panel: Mapping[str, Any]) -> None:
    _measured(axis, data, panel, "response_length", numbers.mean, BLUE)
    axis.set_title("Response length, mean of the run")
    axis.set_ylabel("tokens")


def _mean_ratios(axis: Axes, data: Data, panel: Mapping[str, Any]) -> None:
    _measured(axis, data, panel, "ratio_mean", numbers.oldest_mean, PURPLE)
    axis.axhline(1, color=GREY, linestyle=":", linewidth=1.2, zorder=1)
    axis.set_title("Mean ratio of the oldest rows")
    axis.set_ylabel("pi / behaviour policy")
    axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:.6g}"))


def _greatest_ratios(axis: Axes, data: Data, panel: Mapping[str, Any]) -> None:
    _measured(axis, data, panel, "ratio_max", numbers.greatest, ORANGE)
    axis.set_title("Greatest ratio of the run")
    axis.set_ylabel("pi / behaviour policy")
    logarithmic(axis)


def _all(data: Data, panel: Mapping[str, Any]) -> list[list[Trial]]:
    return [numbers.trials(data, panel["name"], arm["name"]) for arm in panel["arms"]]


def _measured(
    axis: Axes,
    data: Data,
    panel: Mapping[str, Any],
    name: str,
    measure: Callable[[Trial, str], float | None],
    colour: str,
) -> None:
    values = [[measure(trial, name) for trial in own] for own in _all(data, panel)]
    _points(axis, [bootstrap.median(value) for value in values], colour, "o", "")


def _points(
    axis: Axes,
    spreads: Sequence[bootstrap.Interval | None],
    colour: str,
    marker: str,
    label: str,
) -> None:
    """Medians with bars, joined; an infinite median leaves a gap, an infinite bar is an arrow."""
    middles = [
        spread.median if spread and math.isfinite(spread.median) else math.nan for spread in spreads
    ]
    if all(map(math.isnan, middles)):
        return
    axis.plot(middles, color=colour, marker=marker, markersize=4.5, label=label, linewidth=1.4)
    for place, (spread, middle) in enumerate(zip(spreads, middles, strict=True)):
        if spread is None or math.isnan(middle):
            continue
        high = spread.high if math.isfinite(spread.high) else middle
        axis.plot([place, place], [spread.low, high], color=colour, linewidth=1.2)
        if high != spread.high:
            axis.plot([place], [middle], color=colour, marker="^", markersize=8, alpha=0.5)


# Parts


def _line(
    axis: Axes, own: Sequence[Trial], name: str, style: Mapping[str, Any], label: str
) -> None:
    """Median and band over the seeds that have the series."""
    there = [trial for trial in own if name in trial["series"]]
    if not there:
        return
    band = numbers.band(there, name)
    axis.fill_between(band.x, band.low, band.high, color=style["color"], alpha=0.16, linewidth=0)
    every = max(1, len(band.x) // 8)
    axis.plot(
        band.x, band.median, **style, markersize=3.5, markevery=every, linewidth=1.5, label=label
    )


def _finish(axis: Axes, series: Series) -> None:
    axis.set_title(series.title)
    axis.set_xlabel(X_LABELS["rollouts"])
    axis.set_ylabel(series.label)
    axis.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:,.10g}"))
    axis.set_xlim(left=0)
    if series.shares:
        axis.yaxis.set_major_formatter(PERCENT)
    else:
        axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:.6g}"))
    if series.name == report.ACCURACY:
        axis.set_ylim(0, 1)
    if series.logarithmic and axis.lines:
        logarithmic(axis)


def _legend(figure: Figure, axes: Sequence[Axes], title: str) -> None:
    """One legend under all the small figures, with every line that any of them has."""
    handles: dict[str, Any] = {}
    for axis in axes:
        found, labels = axis.get_legend_handles_labels()
        handles |= dict(zip(labels, found, strict=True))
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    figure.legend(
        list(handles.values()), list(handles), loc="outside lower center",
        ncols=min(len(handles), 4), title=BAND, title_fontsize=8,
    )  # fmt: skip
