"""PrefixRL's figure: accuracy against all FLOPs, on hard and on middle problems."""

import pathlib

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from remix_jax.reporting import bootstrap
from remix_jax.reporting import prefix_numbers as numbers
from remix_jax.reporting.prefix_numbers import Data
from remix_jax.run import figures as plotting
from remix_jax.run.figures import AMBER, BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY

_PREFIXED = (BLUE, SKY, GREEN)
_OTHERS = (GREY, BLACK, ORANGE, AMBER, PURPLE)


def draw(data: Data, path: pathlib.Path) -> pathlib.Path:
    """Draws the figure; returns its path."""
    with matplotlib.rc_context(plotting.STYLE):
        figure = Figure(figsize=(11.5, 4.6), layout="constrained")
        panels = (
            (numbers.HARD, "Hard problems, no prefix"),
            (numbers.MIDDLE, "Chains of 7 to 10 operations, never trained on"),
        )
        axes = figure.subplots(1, 2)
        for axis, (suite, title) in zip(axes, panels, strict=True):
            _panel(axis, data, suite)
            axis.set_title(title)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
        return plotting.save(figure, path)


def _panel(axis: Axes, data: Data, suite: str) -> None:
    colours = {True: iter(_PREFIXED), False: iter(_OTHERS)}
    for arm in data["arms"]:
        own = numbers.trials(data, arm["name"])
        band = bootstrap.band([numbers.curve(t, suite) for t in own])
        colour = next(colours[arm["prefixed"]])
        style = "-" if arm["prefixed"] else "--"
        inside = band.x <= 1.02 * data["budget"]
        axis.plot(band.x[inside], band.median[inside], style, color=colour, label=arm["label"])
        axis.fill_between(
            band.x[inside], band.low[inside], band.high[inside], color=colour, alpha=0.15, lw=0
        )
    axis.axvline(data["bank"]["flops"], color=GREY, linestyle=":", linewidth=1.2)
    axis.annotate(
        "traces paid for", (data["bank"]["flops"], 1.0), (4, -3),
        xycoords=("data", "axes fraction"), textcoords="offset points", color="#555555",
        fontsize=8, va="top",
    )  # fmt: skip
    axis.set_xlim(0, data["budget"])
    axis.set_ylim(0, 1)
    axis.yaxis.set_major_formatter(plotting.PERCENT)
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / 1e12:g}"))
    axis.set_xlabel("FLOPs in all, rejection phase included, $10^{12}$")
    axis.set_ylabel("held-out accuracy")
