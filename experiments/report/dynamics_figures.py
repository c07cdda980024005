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
from experiments.report.figures import COLOURS, GREY, MARKERS
from experiments.report.intervals import Interval
from experiments.report.results import Data
from experiments.tables import goal
from remix_jax.run import report


class Panel(NamedTuple):
    """One small figure: what it shows and how."""

    name: str
    title: str
    label: str
    scale: str = ""  # "shares" or "logarithmic"


class Line(NamedTuple):
    """One line in each of them: over the seeds of some trials."""

    label: str
    trials: Sequence[Data]
    style: dict[str, Any]
    suffix: str = ""  # of the series


ACCURACY = Panel(report.ACCURACY, "Held-out accuracy", "accuracy", "shares")
LENGTH = Panel("response_length", "Response length", "tokens")
ENTROPY = Panel("entropy", "Entropy of the policy", "nats a token")
RATIO_MEAN = Panel("ratio_mean", "Importance ratio, mean", "pi / behaviour policy")
RATIO_MAX = Panel("ratio_max", "Importance ratio, greatest", "pi / behaviour policy", "logarithmic")
CLIPPED = Panel("clip_share", "Clipped tokens", "share of the rows' tokens", "shares")
KL_BASE = Panel("kl_base", "KL to the base anchor", "nats a token")
KL_PREV = Panel("kl_prev", "KL to the precedent", "nats a token")
ESS = Panel("ess", "Effective sample size", "share of the rows' tokens", "shares")
METHODS = (ACCURACY, LENGTH, ENTROPY, RATIO_MEAN, RATIO_MAX, CLIPPED, KL_BASE, KL_PREV, ESS)
COLLAPSE = (ACCURACY, LENGTH, ENTROPY, RATIO_MAX, CLIPPED, KL_BASE)
BY_AGE = (RATIO_MEAN, RATIO_MAX, CLIPPED)


def draw(data: Data) -> dict[str, Figure]:
    """The figures by name, one a panel.

    A panel with numbers is sweep_<name>, "collapse" is collapse, any other dynamics_<name>; where
    its methods replay rows, the first of them that does is dynamics_ages as well.
    """
    made: dict[str, Figure] = {}
    for panel in data["panels"]:
        name, arms = panel["name"], panel["arms"]
        styles = [figures.line_style(index) for index in range(len(arms))]
        sweep = any(arm["value"] is not None for arm in arms)
        lines = [
            Line(arm["label"], dynamics.trials_of(data, name, arm["name"]), style)
            for arm, style in zip(arms, _shades(arms) if sweep else styles, strict=True)
        ]
        if sweep:
            values = [a["label"] if a["value"] is None else f"{a['value']:g}" for a in arms]
            made[f"sweep_{name}"] = _sweep(panel["title"], lines, values, data["levels"])
        elif name == "collapse":
            made[name] = _grid(panel["title"], COLLAPSE, lines)
        else:
            made[f"dynamics_{name}"] = _grid(panel["title"], METHODS, lines)
            aged = next((line for line in lines if len(dynamics.ages_of(line.trials)) > 1), None)
            if aged and "dynamics_ages" not in made:
                made["dynamics_ages"] = _by_age(aged)
    return made


def _shades(arms: Sequence[Data]) -> list[dict[str, Any]]:
    """Light to dark by index among the values; an arm without a value is grey and dashed."""
    valued = [arm["name"] for arm in arms if arm["value"] is not None]
    styles: list[dict[str, Any]] = []
    for arm in arms:
        style = {"color": GREY, "marker": None, "linestyle": "--"}
        if arm["name"] in valued:
            shade = 0.88 - 0.88 * valued.index(arm["name"]) / max(1, len(valued) - 1)
            style |= {"color": to_hex(colormaps["viridis"](shade)), "linestyle": "-"}
        styles.append(style)
    return styles


def _grid(title: str, panels: Sequence[Panel], lines: Sequence[Line]) -> Figure:
    """One small figure a series, one legend below."""
    rows = math.ceil(len(panels) / 3)
    figure = Figure(figsize=(12.6, 0.9 + 2.9 * rows), layout="constrained")
    axes = list(figure.subplots(rows, 3, squeeze=False).flat)
    for axis, panel in zip(axes, panels, strict=True):
        _draw(axis, panel, lines)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    figures.labels_below(figure, axes, figures.BAND)
    return figure


def _by_age(arm: Line) -> Figure:
    """Importance ratios and clipped tokens of an arm, one line an age of the rows."""
    lines = []
    for age in dynamics.ages_of(arm.trials):
        name = "fresh" if age == 0 else f"{age} step{'s' if age > 1 else ''} old"
        style = {"color": COLOURS[age % len(COLOURS)], "marker": MARKERS[age % len(MARKERS)]}
        lines.append(Line(name, arm.trials, style, f"/age{age}"))
    figure = _grid(f"{arm.label}: by age of the rows", BY_AGE, lines)
    end = arm.trials[0]["reincarnation"]
    for axis in figure.axes if end is not None else ():
        axis.axvline(end, color=GREY, linestyle=(0, (4, 3)), linewidth=1.1, zorder=1)
        axis.annotate(
            "reincarnation", (end, 1), xycoords=("data", "axes fraction"), xytext=(3, 1),
            textcoords="offset points", color="#666666", fontsize=7,
        )  # fmt: skip
    return figure


def _sweep(
    title: str, lines: Sequence[Line], values: Sequence[str], levels: Sequence[float]
) -> Figure:
    """Accuracy curves by value on the left; on the right rollouts to each level."""
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw(left, ACCURACY, lines)
    left.legend(loc="best", title="median over seeds", title_fontsize=8)
    for index, level in enumerate(levels):
        spreads = [dynamics.reached(line.trials, level) for line in lines]
        _points(right, spreads, COLOURS[index], MARKERS[index], f"to {goal(level)}")
        for x, spread in enumerate(spreads if level == min(levels) else ()):
            if spread is None or math.isinf(spread.median):
                place = {"transform": right.get_xaxis_transform(), "ha": "center"}
                right.text(x, 0.03, "never", **place, fontsize=7, color=GREY)
    right.set_title("Fresh rollouts to an accuracy")
    right.set_ylabel("fresh rollouts")
    right.yaxis.set_major_formatter(StrMethodFormatter("{x:,.10g}"))
    right.set_ylim(0, 1.25 * right.get_ylim()[1])  # room for the legend above all points
    right.set_xticks(range(len(values)), values)
    right.set_xlim(-0.4, len(values) - 0.6)
    if right.get_legend_handles_labels()[1]:
        right.legend(loc="upper center", ncols=4)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    figure.supxlabel(figures.BAND.replace("bands", "bands and bars"), fontsize=8, color="#666666")
    return figure


def _points(
    axis: Axes, spreads: Sequence[Interval | None], colour: str, marker: str, label: str
) -> None:
    """Medians with bars, joined; an infinite median leaves a gap, an infinite bar is an arrow."""
    finite = [s if s and math.isfinite(s.median) else None for s in spreads]
    if not any(finite):
        return
    middles = [spread.median if spread else math.nan for spread in finite]
    axis.plot(middles, color=colour, marker=marker, markersize=4.5, label=label, linewidth=1.4)
    for x, spread in enumerate(finite):
        if spread:
            high = spread.high if math.isfinite(spread.high) else spread.median
            axis.plot([x, x], [spread.low, high], color=colour, linewidth=1.2)
            if high != spread.high:
                axis.plot([x], [high], color=colour, marker="^", markersize=8, alpha=0.5)


def _draw(axis: Axes, panel: Panel, lines: Sequence[Line]) -> None:
    """Median and band of every line, over the seeds that have the series."""
    for line in lines:
        name = panel.name + line.suffix
        curves = [dynamics.series(t, name) for t in line.trials if name in t["series"]]
        if curves:
            style = {"markersize": 3.5, "linewidth": 1.5} | line.style
            figures.draw_band(axis, curves, style, line.label, markers=8)
    axis.set_title(panel.title)
    figures.count_axis(axis)
    if panel.scale == "shares":
        figures.share_axis(axis, panel.label, whole=panel is ACCURACY)
    else:
        axis.set_ylabel(panel.label)
        axis.yaxis.set_major_formatter(figures.plain)
    if panel.scale == "logarithmic" and axis.lines:
        figures.logarithmic(axis)
