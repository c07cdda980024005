"""The sheet of figures of a run, DIR/figures/overview.png: drawn at its end, or again by

    python -m experiments.overview --workdir=DIR         # also while the run goes on

Its panels are the rows of a table. Colours are those of Okabe and Ito, told apart by every kind of
colour vision.
"""

import contextlib
import itertools
import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from absl import flags
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogFormatter, MaxNLocator, StrMethodFormatter

from experiments import main
from remix_jax import files, processes
from remix_jax.config import Config
from remix_jax.errors import InputError
from remix_jax.run import loop
from remix_jax.run.checkpoint import SaveError
from remix_jax.run.report import ACCURACY, curve, suites
from remix_jax.sinks.console import PHASES, ages
from remix_jax.sinks.metrics import METRICS_FILE, Metrics, read_metrics

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREY, BLACK = "#8A8A8A", "#222222"
STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 14,
    "axes.labelcolor": BLACK,
    "axes.edgecolor": "#666666",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.8,
    "legend.edgecolor": "none",
    "legend.framealpha": 0.85,
    "legend.fontsize": 8,
    "savefig.dpi": 160,
}
PERCENT = FuncFormatter(lambda x, _: f"{100 * x:.6g} %")


class Panel(NamedTuple):
    """Curves against the training step, or against `x`."""

    title: str
    label: str  # of the y axis
    keys: dict[str, str]  # metric -> its name in the legend; AGE and SUITE: each of them
    scale: str = "linear"  # linear, share, log or stacked
    x: str = "step"


LENGTHS = {"response_length": "training", "eval/response_length": "held-out"}
RESPONSES = {
    "truncated_rate": "truncated",
    "format_rate": "answer could be read",
    "zero_variance": "groups of one reward",
}
NORMS = {"grad_norm": "policy", "critic_grad_norm": "critic"}
SECONDS = {f"seconds/{phase}": phase for phase in PHASES}
OF_TOKENS, RATIO = "share of the rows' tokens", "pi / behaviour policy"
PANELS = (
    Panel("Held-out accuracy", "accuracy", {"SUITE": "", ACCURACY: "mean"}, "share", "rollouts"),
    Panel("Training reward", "mean over fresh rows", {"reward": "reward", "accuracy": "accuracy"}),
    Panel("Response length", "tokens", LENGTHS),
    Panel("Responses", "share of fresh rows", RESPONSES, "share"),
    Panel("Entropy of the policy", "nats a token", {"entropy": ""}),
    Panel("KL divergence", "nats a token", {"kl_base": "to the base", "kl_prev": "to precedent"}),
    Panel("Importance ratio, mean", RATIO, {"ratio_mean/AGE": ""}),
    Panel("Importance ratio, greatest", RATIO, {"ratio_max/AGE": ""}, "log"),
    Panel("Effective sample size", OF_TOKENS, {"ess/AGE": ""}, "share"),
    Panel("Clipped tokens", OF_TOKENS, {"clip_share/AGE": ""}, "share"),
    Panel("Gradient norm before clipping", "norm", NORMS, "log"),
    Panel("Seconds spent, by phase", "seconds, without compilation", SECONDS, "stacked"),
)


def run(config: Config, workdir: str | os.PathLike[str], **how: Any) -> loop.Outcome:
    """`loop.run`; then the sheet is drawn, unless no step was done or the process is to end now."""
    try:
        outcome = loop.run(config, workdir, **how)
    except (loop.FaultError, SaveError):
        with contextlib.suppress(OSError):  # where the disk is full as well, that error says it
            if processes.is_first():
                draw_run(workdir)
        raise
    # Of several processes the first one has the metrics.
    if outcome.metrics and outcome.metrics[-1]["step"] > 0 and not outcome.preempted:
        draw_run(workdir)
    return outcome


def draw_run(workdir: str | os.PathLike[str]) -> None:
    """Draws the sheet of a run's directory, local or in a bucket, into it, and says so.

    Raises:
      InputError: no run's metrics are there, or the directory cannot be reached.
    """
    root = files.resolve(workdir, "--workdir")
    if not (root / METRICS_FILE).exists():
        raise InputError(f"--workdir={root}: no {METRICS_FILE} of a run is there")
    with files.Mirror(root, (METRICS_FILE,)) as mirror:
        draw(read_metrics(mirror.local), mirror.local / "figures")
    print(f"* {mirror.error or f'the figures are in {root}/figures'}", flush=True)


def draw(metrics: Sequence[Metrics], directory: pathlib.Path) -> pathlib.Path:
    """Draws overview.png into `directory` (made if need be) and returns its path.

    A dashed vertical line marks policy reincarnation, the change of stage, where there was one.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(12.9, 12.0), layout="constrained")
        for axis, panel in zip(figure.subplots(4, 3).flat, PANELS, strict=True):
            draw_panel(axis, panel, metrics)
        figure.savefig(directory / "overview.png")
    return directory / "overview.png"


def draw_panel(axis: Axes, panel: Panel, metrics: Sequence[Metrics]) -> None:
    """One panel: every step faint, a running mean bold; held-out figures as they are."""
    at, half = reincarnation(metrics, panel.x), len(metrics) // 40
    if panel.scale == "stacked":
        each = {n: [float(r.get(key, 0.0)) for r in metrics] for key, n in panel.keys.items()}
        spent = {name: np.cumsum(values) for name, values in each.items() if any(values)}
        if spent:
            steps = [record["step"] for record in metrics]
            axis.stackplot(steps, *spent.values(), labels=list(spent), colors=COLOURS)
    named = [] if panel.scale == "stacked" else _named(panel.keys, metrics)
    for (key, name), colour in zip(named, itertools.cycle(COLOURS), strict=False):
        xs, ys = curve(metrics, key, panel.x)
        line: Any = {"color": colour, "label": name}
        if key in suites(metrics):
            axis.plot(xs, ys, linewidth=1.1, **line)
        elif key.startswith("eval/") and xs:
            line |= {"color": BLACK, "marker": "o", "markersize": 3.5}
            axis.plot(xs, ys, linewidth=2.2, **line)
        elif xs:
            if half:
                axis.plot(xs, ys, color=colour, linewidth=0.8, alpha=0.35)
            marker = "o" if len(xs) < 3 else ""  # too short for a line
            axis.plot(xs, _smooth(xs, ys, half, at), marker=marker, markersize=3, **line)
    axis.set(title=panel.title, ylabel=panel.label)
    axis.set_xlabel("training step" if panel.x == "step" else "fresh rollouts generated")
    axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:,.10g}"))
    if panel.scale == "share":
        axis.yaxis.set_major_formatter(PERCENT)
        axis.set_ylim(bottom=0)
    if panel.scale == "log" and axis.lines:
        logarithmic(axis)
    if any(axis.get_legend_handles_labels()[1]):
        axis.legend(loc="best")
    if at is not None:
        axis.axvline(at, color=GREY, linestyle=(0, (4, 3)), linewidth=1.1, zorder=1)
        place: Any = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
        axis.annotate("reincarnation", (at, 1), xytext=(3, 1), color="#666666", fontsize=7, **place)


def reincarnation(metrics: Sequence[Metrics], x: str) -> float | None:
    """Where the mix stage ended: the last step of it, in units of the x axis."""
    staged = [record for record in metrics if "stage" in record and x in record]
    pairs = itertools.pairwise(staged)
    ends = (float(a[x]) for a, b in pairs if a["stage"] == "mix" != b["stage"])
    return next(ends, None)


def logarithmic(axis: Axes) -> None:
    """Makes the y axis logarithmic, with plain numbers, between decades too where it spans few."""
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(LogFormatter())
    axis.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))


def _named(keys: dict[str, str], metrics: Sequence[Metrics]) -> list[tuple[str, str]]:
    """The curves of a panel: AGE is every age of which some step has rows, SUITE every suite."""
    found = []
    for key, name in keys.items():
        if key == "SUITE":
            found += [(suite, suite.removeprefix("eval/")) for suite in suites(metrics)]
        elif key.endswith("/AGE"):
            for age in sorted({age for record in metrics for age in ages(record)}):
                older = f"{age} step{'s' if age > 1 else ''} old" if age else "fresh"
                found.append((key.replace("AGE", f"age{age}"), older))
        else:
            found.append((key, name))
    return found


def _smooth(xs: list[float], ys: list[float], half: int, edge: float | None) -> list[float]:
    """A running mean that never reaches across `edge`, where figures may jump."""
    edge = -math.inf if edge is None else edge
    means = []
    for i, here in enumerate(xs):
        near = range(max(0, i - half), min(i + half + 1, len(xs)))
        window = [ys[j] for j in near if (xs[j] <= edge) == (here <= edge)]
        means.append(math.fsum(window) / len(window))
    return means


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "directory of a run, local or in a bucket")
    main.run(lambda: draw_run(flags.FLAGS.workdir), required=["workdir"])
