"""The figures of a comparison, drawn from its comparison.json alone."""

import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from remix_jax.errors import InputError
from remix_jax.reporting import report
from remix_jax.reporting.plotting import (
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
    save,
)

REFERENCE = "#4D4D4D"
OTHERS = (BLUE, ORANGE, GREEN, PURPLE, AMBER, SKY)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def draw(json_path: str | pathlib.Path) -> list[pathlib.Path]:
    """Draws comparison.png and comparison_seconds.png beside a comparison.json.

    Args:
      json_path: what `remix_jax.reporting.comparison.compare` wrote.
    Returns:
      The paths of the two files.
    Raises:
      InputError: the file is not there or holds something else.
    """
    path = pathlib.Path(json_path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        data["arms"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: expected a comparison.json ({error})") from None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 4.2), layout="constrained")
        axis = figure.subplots()
        _accuracy(axis, data, "by_rollouts", X_LABELS["rollouts"])
        _mark_gain(axis, data)
        paths = [save(figure, path.with_name("comparison.png"))]

        figure = Figure(figsize=(9.6, 4.0), layout="constrained")
        left, right = figure.subplots(1, 2)
        _accuracy(left, data, "by_seconds", X_LABELS["seconds"])
        left.set_title("Measured here")
        _modelled(right, data)
        paths.append(save(figure, path.with_name("comparison_seconds.png")))
    return paths


def _style(i: int) -> dict[str, Any]:
    """The reference grey and dashed, the others coloured: told apart without colour as well."""
    colour = REFERENCE if i == 0 else OTHERS[(i - 1) % len(OTHERS)]
    return {
        "color": colour,
        "marker": MARKERS[i % len(MARKERS)],
        "linestyle": "--" if i == 0 else "-",
    }


def _accuracy(axis: Axes, data: Mapping[str, Any], name: str, label: str) -> None:
    for i, arm in enumerate(data["arms"]):
        band, style = arm[f"band_{name}"], _style(i)
        seeds = len(arm[name])
        if seeds > 1:
            axis.fill_between(
                band["x"], band["low"], band["high"], color=style["color"], alpha=0.16, linewidth=0
            )
        every = max(1, len(band["x"]) // 12)
        axis.plot(
            band["x"],
            band["median"],
            **style,
            markersize=4,
            markevery=every,
            label=f"{arm['label']} ({seeds} seed{'s' if seeds > 1 else ''})",
        )
    axis.axhline(data["target"], color=GREY, linestyle=":", linewidth=1.2, zorder=1)
    axis.set_xlabel(label)
    axis.set_ylabel("held-out accuracy")
    axis.set_ylim(0, 1)
    axis.yaxis.set_major_formatter(PERCENT)
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:,.10g}"))
    axis.xaxis.set_major_locator(MaxNLocator(7))
    if any(len(arm[name]) > 1 for arm in data["arms"]):
        axis.plot([], [], color=GREY, linewidth=6, alpha=0.3, label="least to greatest over seeds")
    axis.legend(loc="lower right")


def _middle(values: Sequence[float | None]) -> float:
    """Median over seeds where a level that was not reached counts as infinity."""
    spread = report.spread(values, missing=math.inf)
    return math.inf if spread is None else spread.median


def _mark_gain(axis: Axes, data: Mapping[str, Any]) -> None:
    """Dots where the methods reach the target, and an arrow from the reference to the cheapest."""
    target, arms = data["target"], data["arms"]
    places = [_middle(arm["rollouts_to"][str(target)]) for arm in arms]
    for i, place in enumerate(places):
        if math.isfinite(place):
            axis.plot(
                [place], [target], marker="o", markersize=7, color=_style(i)["color"],
                markeredgecolor="white", markeredgewidth=1.2, zorder=5,
            )  # fmt: skip
    best = min(range(len(arms)), key=places.__getitem__)
    times = report.spread(arms[best]["times_fewer"][str(target)])
    if best == 0 or not math.isfinite(places[0]) or times is None:
        return
    colour = _style(best)["color"]
    axis.annotate(
        "",
        xy=(places[best], target),
        xytext=(places[0], target),
        arrowprops={
            "arrowstyle": "-|>", "color": colour, "linewidth": 1.6, "shrinkA": 6, "shrinkB": 6,
        },
        zorder=4,
    )  # fmt: skip
    # Right of the reference's curve there is room, unless it reaches the target very late.
    room = places[0] < 0.55 * axis.get_xlim()[1]
    axis.annotate(
        f"{times.median:.1f} times fewer rollouts to {100 * target:g} %",
        (places[0], target) if room else (places[best], target),
        xytext=(8, -6),
        textcoords="offset points",
        ha="left",
        va="top",
        color=colour,
        fontweight="bold",
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
    )


def _modelled(axis: Axes, data: Mapping[str, Any]) -> None:
    """Median seconds to the target if every fresh rollout cost so much more than it did."""
    target = str(data["target"])
    cost = np.logspace(-4, 1, 101)  # seconds
    for i, arm in enumerate(data["arms"]):
        pairs = zip(arm["rollouts_to"][target], arm["seconds_to"][target], strict=True)
        runs = [(r, s) for r, s in pairs if r is not None and s is not None]
        if len(runs) * 2 <= len(arm["rollouts_to"][target]):
            continue
        seconds = np.array([[s + c * r for c in cost] for r, s in runs])
        style = _style(i) | {"marker": None}
        axis.plot(1000 * cost, np.median(seconds, axis=0), label=arm["label"], **style)
    for i, arm in enumerate(data["arms"][1:], start=1):
        even = report.spread(arm["break_even_seconds"])
        if even is not None and even.median > cost[0]:
            colour = _style(i)["color"]
            axis.axvline(1000 * even.median, color=colour, linestyle=":", linewidth=1.2)
            axis.annotate(
                f"{arm['label']} ahead of {data['reference']} from {1000 * even.median:.2g} ms",
                (1000 * even.median, 0),
                xycoords=("data", "axes fraction"),
                xytext=(4, 5 + 11 * (i - 1)),
                textcoords="offset points",
                color=colour,
                fontsize=8,
            )
    if axis.lines:
        axis.legend(loc="upper left")
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axis.set_title("Modelled: if a rollout cost more")
    axis.set_xlabel("added cost of one fresh rollout, ms")
    axis.set_ylabel(f"seconds to {100 * data['target']:g} %")
