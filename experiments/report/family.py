"""The off-policy family: accuracy at equal fresh rollouts, table and figure.

family.json is as of `results.Tuned`, with "rollouts", the counts that are read. A method has
"base", "rows" (trained on beside or instead of fresh ones) and "kind" (reference or family) too.
"""

import math

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from experiments.report import figures
from experiments.report.intervals import SPREAD, cell, median
from experiments.report.results import Curve, Tuned, value_at
from experiments.tables import Sheet, page, rate_text, share

COLOURS = ("#BBBBBB", figures.BLUE, figures.BLACK)


class Family(Tuned):
    """The content of family.json and what follows from it."""

    kind = "family"

    def accuracies(self, name: str, rollouts: float) -> pd.Series:
        """Held-out accuracy after so many rollouts by seed, at the method's best rate.

        Linear between evaluations. A method that samples nothing has its last one, at the last
        count; NaN elsewhere.
        """

        def one(curve: Curve) -> float:
            if curve["rollouts"][-1] >= 1:
                return value_at(curve["rollouts"], curve["accuracy"], rollouts)
            return curve["accuracy"][-1] if rollouts == self.data["rollouts"][-1] else np.nan

        return self.at(name, self.best[name])["curve"].map(one)

    @property
    def tuning(self) -> str:
        """How the learning rates were chosen, in words."""
        rates = ", ".join(map(rate_text, self.data["learning_rates"]))
        if len(self.data["learning_rates"]) == 1:
            return f"not tuned, all at learning rate {rates}"
        return f"each at the learning rate, of {rates}, that was best on validation problems"


def table(runs: Family) -> Sheet:
    """A line a method: what it is, its rate, accuracy at each count of rollouts."""
    header, rows = ["method", "base", "rows beside or instead of fresh ones", "rate"], []
    for method in runs.data["methods"]:
        name, label = method["name"], method["label"]
        label = f"**{label}**" if method["kind"] == "reference" else label
        row = [f"{label} (`{name}`)", method["base"], method["rows"], rate_text(runs.best[name])]
        found = [median(runs.accuracies(name, at)) for at in runs.data["rollouts"]]
        rows.append([*row, *(cell(value, share) for value in found)])
    return Sheet([*header, *(f"{at:,}" for at in runs.data["rollouts"])], rows, words=4)


def markdown(runs: Family) -> str:
    """family.md: the table, and what it was made with."""
    sentence = (
        f"Held-out accuracy, %, after so many fresh rollouts: {SPREAD}, "
        f"{runs.trials['seed'].nunique()} seeds; **{runs.tuning}**. sft samples nothing: its "
        "figure is its last one."
    )
    title = "# The off-policy family on the arithmetic task"
    return page([title, "", sentence, "", *table(runs).markdown()], runs.data["about"])


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
            figures.draw_interval(axis, found, y, colour, colour, (-math.inf, math.inf))
    figures.row_axis(axis, [method["label"] for method in ordered])
    for label, method in zip(axis.get_yticklabels(), ordered, strict=True):
        label.set_fontweight("bold" if method["kind"] == "reference" else "normal")
    axis.xaxis.set_major_formatter(figures.PERCENT)
    axis.set_xlabel("held-out accuracy")
    axis.set_title(f"Accuracy at equal rollouts, {runs.tuning}", loc="right")
    figures.labels_below(figure, [axis])
    return {"family": figure}
