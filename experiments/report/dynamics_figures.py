"""The figures of training dynamics, drawn from dynamics.json alone."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from experiments.report import dynamics, figures
from experiments.report.dynamics import Dynamics
from experiments.report.figures import BLUE, COLOURS, GREY, MARKERS, ORANGE, PURPLE, line_style
from experiments.report.intervals import Interval, median
from experiments.report.results import Data
from experiments.report.tables import goal
from remix_jax.run import report

BAND = "bands: 95 % bootstrap interval of the median over seeds (range with fewer than three)"
RATIO = "pi / behaviour policy"


class Panel(NamedTuple):
    """One small figure: what it shows and how."""

    name: str
    title: str
    label: str
    scale: str = ""  # "shares" or "logarithmic"


ACCURACY = Panel(report.ACCURACY, "Held-out accuracy", "accuracy", "shares")
LENGTH = Panel("response_length", "Response length", "tokens")
ENTROPY = Panel("entropy", "Entropy of the policy", "nats a token")
RATIO_MEAN = Panel("ratio_mean", "Importance ratio, mean", RATIO)
RATIO_MAX = Panel("ratio_max", "Importance ratio, greatest", RATIO, "logarithmic")
CLIPPED = Panel("clip_share", "Clipped tokens", "share of the rows' tokens", "shares")
KL_BASE = Panel("kl_base", "KL to the base anchor", "nats a token")
KL_PREV = Panel("kl_prev", "KL to the precedent", "nats a token")
ESS = Panel("ess", "Effective sample size", "share of the rows' tokens", "shares")
METHODS = (ACCURACY, LENGTH, ENTROPY, RATIO_MEAN, RATIO_MAX, CLIPPED, KL_BASE, KL_PREV, ESS)
COLLAPSE = (ACCURACY, LENGTH, ENTROPY, RATIO_MAX, CLIPPED, KL_BASE)


def draw(results: Dynamics) -> dict[str, Figure]:
    """The figures by name, one a panel.

    A panel with numbers is sweep_<name>, "collapse" is collapse, any other dynamics_<name>; where
    its methods replay rows, the first of them that does is dynamics_ages as well.
    """
    made: dict[str, Figure] = {}
    for panel in results.data["panels"]:
        name = panel["name"]
        if any(arm["value"] is not None for arm in panel["arms"]):
            made[f"sweep_{name}"] = _sweep(results, panel)
        elif name == "collapse":
            made[name] = _grid(results, panel, COLLAPSE)
        else:
            made[f"dynamics_{name}"] = _grid(results, panel, METHODS)
            arm = replaying(results, panel)
            if arm and "dynamics_ages" not in made:
                made["dynamics_ages"] = _by_age(results.trials(name, arm["name"]), arm["label"])
    return made


def replaying(results: Dynamics, panel: Data) -> Data | None:
    """The first arm of the panel whose batches have rows of several ages."""
    for arm in panel["arms"]:
        if len(dynamics.ages_of(results.trials(panel["name"], arm["name"]))) > 1:
            return arm
    return None


# Figures


def _grid(results: Dynamics, panel: Data, shown: Sequence[Panel]) -> Figure:
    """One small figure a series, one line an arm."""
    rows = math.ceil(len(shown) / 3)
    figure = Figure(figsize=(12.6, 0.9 + 2.9 * rows), layout="constrained")
    axes = list(figure.subplots(rows, 3, squeeze=False).flat)
    for axis, series in zip(axes, shown, strict=True):
        for index, arm in enumerate(panel["arms"]):
            own = results.trials(panel["name"], arm["name"])
            _line(axis, own, series.name, line_style(index), arm["label"])
        _finish(axis, series)
    figures.title(figure, panel["title"])
    figures.labels_below(figure, axes, BAND)
    return figure


def _by_age(own: Sequence[Data], label: str) -> Figure:
    """Mean and greatest importance ratio and clipped tokens, one line an age of the rows."""
    figure = Figure(figsize=(12.6, 4.1), layout="constrained")
    axes = list(figure.subplots(1, 3))
    ends = [trial["reincarnation"] for trial in own if trial["reincarnation"] is not None]
    for axis, series in zip(axes, (RATIO_MEAN, RATIO_MAX, CLIPPED), strict=True):
        for age in dynamics.ages_of(own):
            name = "fresh" if age == 0 else f"{age} step{'s' if age > 1 else ''} old"
            style = {"color": COLOURS[age % len(COLOURS)], "marker": MARKERS[age % len(MARKERS)]}
            _line(axis, own, f"{series.name}/age{age}", style, name)
        _finish(axis, series)
        if ends:
            axis.axvline(ends[0], color=GREY, linestyle=(0, (4, 3)), linewidth=1.1, zorder=1)
            axis.annotate(
                "reincarnation", (ends[0], 1), xycoords=("data", "axes fraction"), xytext=(3, 1),
                textcoords="offset points", color="#666666", fontsize=7,
            )  # fmt: skip
    figures.title(figure, f"{label}: by age of the rows")
    figures.labels_below(figure, axes, BAND)
    return figure


def _sweep(results: Dynamics, panel: Data) -> Figure:
    """Accuracy curves by value on the left; on the right what became of the runs."""
    figure = Figure(figsize=(12.6, 5.4), layout="constrained")
    grid = figure.add_gridspec(2, 3, width_ratios=(1.35, 1, 1))
    left = figure.add_subplot(grid[:, 0])
    arms = [(arm, results.trials(panel["name"], arm["name"])) for arm in panel["arms"]]
    colours = _colours(panel["arms"])
    for arm, own in arms:
        dashes = "--" if arm["value"] is None else "-"
        style = {"color": colours[arm["name"]], "marker": None, "linestyle": dashes}
        _line(left, own, report.ACCURACY, style, arm["label"])
    _finish(left, ACCURACY)
    left.legend(loc="best", title="median over seeds", title_fontsize=8)
    axes = [figure.add_subplot(grid[i // 2, 1 + i % 2]) for i in range(4)]
    trials = [own for _, own in arms]
    _levels(axes[0], trials, results.data["levels"])
    for axis, (name, measure, colour, title, label) in zip(axes[1:], MEASURED, strict=True):
        spreads = [median(measure(trial, name) for trial in own) for own in trials]
        _points(axis, spreads, colour, "o", "")
        axis.set_title(title)
        axis.set_ylabel(label)
    axes[2].axhline(1, color=GREY, linestyle=":", linewidth=1.2, zorder=1)
    axes[2].yaxis.set_major_formatter(figures.plain)
    figures.logarithmic(axes[3])
    names = [arm["label"] if arm["value"] is None else f"{arm['value']:g}" for arm, _ in arms]
    for axis in axes:
        axis.set_xticks(range(len(names)), names)
        if max(map(len, names)) > 5:
            axis.tick_params(axis="x", labelrotation=25, labelsize=7.5)
        axis.set_xlim(-0.4, len(names) - 0.6)
    figures.title(figure, panel["title"])
    figure.supxlabel(BAND.replace("bands", "bands and bars"), fontsize=8, color="#666666")
    return figure


MEASURED: tuple[tuple[str, dynamics.Measure, str, str, str], ...] = (
    ("response_length", dynamics.mean, BLUE, "Response length, mean of the run", "tokens"),
    ("ratio_mean", dynamics.oldest_mean, PURPLE, "Mean ratio of the oldest rows", RATIO),
    ("ratio_max", dynamics.greatest, ORANGE, "Greatest ratio of the run", RATIO),
)


def _colours(arms: Sequence[Data]) -> dict[str, str]:
    """Light to dark by index among the values; an arm without a value is grey."""
    valued = [arm["name"] for arm in arms if arm["value"] is not None]
    shades = [0.88 - 0.88 * i / max(1, len(valued) - 1) for i in range(len(valued))]
    found = {n: to_hex(colormaps["viridis"](s)) for n, s in zip(valued, shades, strict=True)}
    return {arm["name"]: found.get(arm["name"], GREY) for arm in arms}


# Parts


def _levels(axis: Axes, trials: Sequence[Sequence[Data]], levels: Sequence[float]) -> None:
    for index, level in enumerate(levels):
        spreads = [dynamics.reached(own, level) for own in trials]
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index]
        _points(axis, spreads, colour, marker, f"to {goal(level)}")
        for place, spread in enumerate(spreads if level == min(levels) else []):
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


def _points(
    axis: Axes, spreads: Sequence[Interval | None], colour: str, marker: str, label: str
) -> None:
    """Medians with bars, joined; an infinite median leaves a gap, an infinite bar is an arrow."""
    finite = [s if s and math.isfinite(s.median) else None for s in spreads]
    if not any(finite):
        return
    middles = [spread.median if spread else math.nan for spread in finite]
    axis.plot(middles, color=colour, marker=marker, markersize=4.5, label=label, linewidth=1.4)
    for index, spread in enumerate(finite):
        if spread:
            high = spread.high if math.isfinite(spread.high) else spread.median
            axis.plot([index, index], [spread.low, high], color=colour, linewidth=1.2)
            if high != spread.high:
                arrow = {"marker": "^", "markersize": 8, "alpha": 0.5}
                axis.plot([index], [spread.median], color=colour, **arrow)


def _line(axis: Axes, own: Sequence[Data], name: str, style: dict[str, Any], label: str) -> None:
    """Median and band over the seeds that have the series."""
    curves = [dynamics.series(trial, name) for trial in own if name in trial["series"]]
    if curves:
        line = {"markersize": 3.5, "linewidth": 1.5} | style
        figures.draw_band(axis, curves, line, label, markers=8)


def _finish(axis: Axes, series: Panel) -> None:
    axis.set_title(series.title)
    figures.rollout_axis(axis)
    if series.scale == "shares":
        figures.share_axis(axis, series.label, whole=series.name == report.ACCURACY)
    else:
        axis.set_ylabel(series.label)
        axis.yaxis.set_major_formatter(figures.plain)
    if series.scale == "logarithmic" and axis.lines:
        figures.logarithmic(axis)
