"""The off-policy family: accuracy at equal fresh rollouts, table and figure."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from experiments.report import figures
from experiments.report.figures import BLACK, BLUE
from experiments.report.intervals import median
from experiments.report.results import Tuned
from experiments.report.tables import SPREAD, Sheet, cell, page, rate_text, share

KEYS = ("about", "rollouts", "learning_rates", "selection_seeds", "methods", "trials")
COLOURS = ("#BBBBBB", BLUE, BLACK)


class Family(Tuned):
    """The content of family.json: as of `Tuned`, with "rollouts", the counts that are read.

    A method has "base", "rows" (what is trained on beside or instead of fresh rows) and "kind"
    (reference or family) as well.
    """

    kind = "family"

    def accuracies(self, name: str, rollouts: float) -> pd.Series:
        """Held-out accuracy after so many rollouts by seed, at the method's best rate.

        Linear between evaluations. A method that samples nothing has its last one, at the last
        count; NaN elsewhere.
        """
        last = rollouts == self.data["rollouts"][-1]

        def one(curve: dict[str, np.ndarray]) -> float:
            xs, ys = curve["rollouts"], curve["accuracy"]
            if xs[-1] < 1:
                return ys[-1] if last else np.nan
            return float(np.interp(rollouts, xs, ys, left=np.nan, right=np.nan))

        return self.at(name, self.best[name])["curve"].map(one)


def table(runs: Family) -> Sheet:
    """A line a method: what it is, its rate, accuracy at each count of rollouts."""
    header = ["method", "base", "rows beside or instead of fresh ones", "rate"]
    rows = []
    for method in runs.data["methods"]:
        name, label = method["name"], method["label"]
        label = f"**{label}**" if method["kind"] == "reference" else label
        row = [f"{label} (`{name}`)", method["base"], method["rows"], rate_text(runs.best[name])]
        found = [median(runs.accuracies(name, at)) for at in runs.data["rollouts"]]
        rows.append([*row, *(cell(value, share) for value in found)])
    return Sheet([*header, *(f"{at:,}" for at in runs.data["rollouts"])], rows, words=4)


def markdown(runs: Family) -> str:
    """family.md: the table, and what it was made with."""
    rates = ", ".join(map(rate_text, runs.data["learning_rates"]))
    tuned = f"Each method at the learning rate, of {rates}, that was best on validation problems."
    if len(runs.data["learning_rates"]) == 1:
        tuned = (
            f"**Not tuned**: all at learning rate {rates}, which suits some and not others. This "
            "is no ranking."
        )
    seeds = runs.trials["seed"].nunique()
    lines = [
        "# The off-policy family on the arithmetic task",
        "",
        f"Held-out accuracy, %, after so many fresh rollouts: {SPREAD}, {seeds} seeds. {tuned} sft "
        "samples nothing: its figure is its last one.",
        "",
        *table(runs).markdown(),
    ]
    return page(lines, runs.data["about"])


def draw(runs: Family) -> dict[str, Figure]:
    """The figure family: a line a method, its median accuracies and their intervals."""
    counts = runs.data["rollouts"]
    ends = {name: runs.accuracies(name, counts[-1]).median() for name in runs.names}
    ordered = [runs.method(name) for name in sorted(runs.names, key=lambda name: -ends[name])]
    figure = Figure(figsize=(9.6, 1.4 + 0.27 * len(ordered)), layout="constrained")
    axis = figure.subplots()
    for colour, at in zip(COLOURS, counts, strict=True):
        axis.plot([], [], marker="o", color=colour, label=f"{at:,} rollouts", linewidth=1.6)
        for y, method in enumerate(ordered):
            found = median(runs.accuracies(method["name"], at))
            if found is not None:
                low, high = 100 * found.low, 100 * found.high
                axis.plot([low, high], [y, y], color=colour, linewidth=1.6)
                axis.plot([100 * found.median], [y], marker="o", color=colour, markersize=5, zorder=3)
    axis.set_yticks(range(len(ordered)), [method["label"] for method in ordered])
    for label, method in zip(axis.get_yticklabels(), ordered, strict=True):
        label.set_fontweight("bold" if method["kind"] == "reference" else "normal")
    axis.grid(axis="y", color="#EEEEEE")
    axis.set_ylim(len(ordered) - 0.4, -0.6)
    axis.set_xlabel("held-out accuracy, %")
    rates = runs.data["learning_rates"]
    at_rate = "each at its own best learning rate"
    if len(rates) == 1:
        at_rate = f"all at learning rate {rate_text(rates[0])}: not tuned"
    axis.set_title(f"Accuracy at equal rollouts, {at_rate}", loc="right")
    figures.labels_below(figure, [axis])
    return {"family": figure}
