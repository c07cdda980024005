"""The off-policy family's table and figure, from family.json: accuracy at equal fresh rollouts."""

import math
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from remix_jax.errors import InputError
from remix_jax.reporting import records
from remix_jax.reporting.comparison_numbers import rate_text
from remix_jax.run import figures as plotting
from remix_jax.run import report

KEYS = ("about", "rollouts", "learning_rates", "selection_seeds", "methods", "trials")
NAME = "family"
COLOURS = ("#BBBBBB", plotting.BLUE, plotting.BLACK)
Data = Mapping[str, Any]


def trials_of(data: Data, method: str, rate: float) -> list[Mapping[str, Any]]:
    """The trials of a method at a learning rate, by seed."""
    found = [t for t in data["trials"] if (t["method"], t["learning_rate"]) == (method, rate)]
    return sorted(found, key=lambda trial: trial["seed"])


def best_learning_rate(data: Data, method: str) -> float:
    """The rate of the best validation accuracy: mean over evaluations and the selection seeds."""

    def score(rate: float) -> float:
        chosen = [
            trial["curve"]["validation"]
            for trial in trials_of(data, method, rate)
            if trial["seed"] in data["selection_seeds"]
        ]
        if not chosen:
            raise InputError(f"family: {method} has no trial at {rate_text(rate)} to choose by")
        return math.fsum(math.fsum(v) / len(v) for v in chosen) / len(chosen)

    if len(data["learning_rates"]) == 1:
        return data["learning_rates"][0]
    return max(data["learning_rates"], key=score)


def accuracies(data: Data, method: str) -> list[list[float | None]]:
    """Held-out accuracy at each count of rollouts, of each seed, at the method's best rate.

    Linear between evaluations; a method that samples nothing has only its last one.
    """
    trials = trials_of(data, method, best_learning_rate(data, method))
    found = []
    for at in data["rollouts"]:
        of_seeds = []
        for trial in trials:
            xs, ys = trial["curve"]["rollouts"], trial["curve"]["accuracy"]
            if xs[-1] > 0:
                of_seeds.append(report.interpolate(xs, ys, at))
            else:
                of_seeds.append(ys[-1] if at == data["rollouts"][-1] else None)
        found.append(of_seeds)
    return found


def median(values: Sequence[float | None]) -> float | None:
    """None if a value is missing, or all are."""
    there = [value for value in values if value is not None]
    return statistics.median(there) if there and len(there) == len(values) else None


def table(data: Data) -> str:
    """The table in Markdown: median and range over the seeds, a line a method."""
    counts = [f"{count:,}" for count in data["rollouts"]]
    head = ["method", "base", "rows beside or instead of fresh ones", "rate", *counts]
    lines = [" | ".join(head), " | ".join(["---"] * 4 + ["---:"] * len(counts))]
    for method in data["methods"]:
        rate = rate_text(best_learning_rate(data, method["name"]))
        cells = [_cell(values) for values in accuracies(data, method["name"])]
        label = f"**{method['label']}**" if method["kind"] == "reference" else method["label"]
        row = [f"{label} (`{method['name']}`)", method["base"], method["rows"], rate, *cells]
        lines.append(" | ".join(row))
    return "\n".join(f"| {line} |" for line in lines)


def markdown(data: Data) -> str:
    """The table, and what it was made with."""
    seeds = len({trial["seed"] for trial in data["trials"]})
    rates = ", ".join(map(rate_text, data["learning_rates"]))
    tuned = f"Each method at the learning rate, of {rates}, that was best on validation problems."
    if len(data["learning_rates"]) == 1:
        tuned = f"All at learning rate {rates}: none is tuned."
    about = "\n".join(f"* {key}: {value}" for key, value in data["about"].items())
    return (
        "# The off-policy family on the arithmetic task\n\nHeld-out accuracy, %, after so many "
        f"fresh rollouts: median of {seeds} seeds, lowest to highest. {tuned} sft samples "
        f"nothing: its figure is its last one.\n\n{table(data)}\n\n{about}\n"
    )


def _cell(values: Sequence[float | None]) -> str:
    middle = median(values)
    if middle is None:
        return "-"
    known = [value for value in values if value is not None]
    return f"{100 * middle:.1f} [{100 * min(known):.1f}-{100 * max(known):.1f}]"


def draw(data: Data) -> Figure:
    """A line a method: its median accuracy at each count of rollouts, and the seeds' range."""
    ordered = sorted(
        data["methods"], key=lambda m: -(median(accuracies(data, m["name"])[-1]) or 0.0)
    )
    figure = Figure(figsize=(9.6, 1.4 + 0.27 * len(ordered)), layout="constrained")
    axis = figure.subplots()
    for place, method in enumerate(ordered):
        axis.axhline(place, color="#EEEEEE", linewidth=0.8, zorder=1)
        for colour, values in zip(COLOURS, accuracies(data, method["name"]), strict=True):
            middle = median(values)
            if middle is None:
                continue
            known = [100 * value for value in values if value is not None]
            axis.plot([min(known), max(known)], [place, place], color=colour, linewidth=1.6)
            axis.plot([100 * middle], [place], marker="o", color=colour, markersize=5, zorder=3)
    axis.set_yticks(range(len(ordered)))
    axis.set_yticklabels([m["label"] for m in ordered])
    for label, method in zip(axis.get_yticklabels(), ordered, strict=True):
        label.set_fontweight("bold" if method["kind"] == "reference" else "normal")
    axis.set_ylim(len(ordered) - 0.4, -0.6)
    axis.set_xlabel("held-out accuracy, %")
    rates = data["learning_rates"]
    one = f"all at learning rate {rate_text(rates[0])}"
    at_rate = one if len(rates) == 1 else "each at its own best learning rate"
    axis.set_title(f"Accuracy at equal rollouts, {at_rate}", loc="right")
    for colour, count in zip(COLOURS, data["rollouts"], strict=True):
        axis.plot([], [], marker="o", color=colour, label=f"{count:,} rollouts", linewidth=1.6)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    return figure


def write(data: Data, directory: str | pathlib.Path) -> None:
    """Writes family.json, family.md and family.png; the latter two follow from the first.

    Raises:
      InputError: the data are incomplete.
    """
    records.require_keys(data, KEYS, NAME)
    directory = pathlib.Path(directory)
    records.write_json(data, directory / f"{NAME}.json")
    (directory / f"{NAME}.md").write_text(markdown(data), encoding="utf-8")
    plotting.save(draw(data), directory / f"{NAME}.png")


def read(path: str | pathlib.Path) -> Data:
    """The data of a family.json (`records.read_json`)."""
    return records.read_json(path, KEYS)
