"""PrefixRL against its baselines at equal FLOPs: the paper's claims, table and figure.

prefix.json is as of `results.Tuned`, with "budget" (FLOPs), "bank" (traces, problems, attempts,
flops) and "bar" (PrefixRL on a larger bank at the first rate: bank, rollouts, accuracy by seed). A
method has "prefixed" as well; a trial's accuracy is that on hard problems without a prefix, and it
has "by_prefix" (of `by_prefix`).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from experiments.report import figures
from experiments.report.figures import AMBER, BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY
from experiments.report.intervals import SPREAD, cell, median
from experiments.report.results import Data, Tuned, significant, spent
from experiments.tables import Sheet, page, rate_text, share
from remix_jax.sinks.metrics import Metrics
from remix_jax.text import count

HARD, MIDDLE = "accuracy", "eval/middle"
PREFIXED, PLAIN, ONLY = "prefix", "grpo", "prefix-only"  # methods that the claims speak of
QUARTERS = 4
BIN = "reward/prefix_"
COLOURS = {True: (BLUE, SKY, GREEN), False: (GREY, BLACK, ORANGE, AMBER, PURPLE)}


def by_prefix(metrics: Sequence[Metrics]) -> dict[str, list[float | None]]:
    """Mean reward by tenth of the trace given away, in each quarter of a run (None: no row)."""
    trained = pd.DataFrame([step for step in metrics if step["step"] > 0])
    names = sorted(name for name in trained if name.startswith(BIN))
    means = {name.removeprefix(BIN): _quarters(trained[name]) for name in names}
    return {
        name: [None if pd.isna(value) else significant(value, 4) for value in values]
        for name, values in means.items()
    }


def _quarters(values: Any) -> pd.Series:
    """The mean of each quarter of a run's values; NaN where there is none."""
    means = pd.Series(np.asarray(values, float))
    return means.groupby(means.index // -(-len(means) // QUARTERS)).mean().reindex(range(QUARTERS))


class Claim(NamedTuple):
    """What the paper reports, whether these runs show it, and the figures."""

    claim: str
    verdict: str
    evidence: str


class Prefix(Tuned):
    """The content of prefix.json and what follows from it, each method at its own best rate."""

    kind = "prefix"
    cost = "flops"

    def __init__(self, data: Data):
        """Checks the data as `Tuned` does, and that the methods of the claims are there."""
        super().__init__(data)
        self.budget: float = data["budget"]
        for name in (PREFIXED, PLAIN, ONLY):
            self.method(name)

    def curves(self, name: str) -> pd.Series:
        """The curves of a method, by seed."""
        return self.at(name, self.best[name])["curve"]

    def accuracies(self, name: str, flops: float, suite: str = HARD) -> pd.Series:
        """Accuracy after so many FLOPs by seed, linear between evaluations.

        After the last evaluation that one's; NaN where what comes before training, the rejection
        phase first of all, has taken more.
        """
        return self.curves(name).map(
            lambda curve: float(np.interp(flops, curve["flops"], curve[suite], left=np.nan))
        )

    def final(self, name: str, suite: str = HARD) -> pd.Series:
        """Accuracy at the budget, by seed."""
        return self.accuracies(name, self.budget, suite)

    def start(self, name: str, suite: str = HARD) -> pd.Series:
        """Accuracy of the base, by seed."""
        return self.curves(name).map(lambda curve: curve[suite][0])

    def share_spent(self, name: str, levels: pd.Series) -> pd.Series:
        """The share of the budget at which each seed reaches its level; infinity if not within."""
        curves = self.curves(name).loc[lambda found: found.index.isin(levels.index)]
        found = {s: spent(curve["flops"], curve[HARD], levels[s]) for s, curve in curves.items()}
        shares = pd.Series(found, dtype=float) / self.budget
        return shares.where(shares <= 1, np.inf)

    def strongest_baseline(self) -> str:
        """The method without prefixes that is best at the budget, by the median over seeds."""
        others = [name for name in self.names if not self.method(name)["prefixed"]]
        return max(others, key=lambda name: self.final(name).median())

    def claims(self) -> list[Claim]:
        """The paper's claims on these runs, seed by seed."""
        strongest, made = self.strongest_baseline(), []
        for name in dict.fromkeys((strongest, PLAIN)):
            kind = "the strongest baseline" if name == strongest else "plain RL"
            made += self._against(name, f"{kind}, {self.label(name)}")
        for suite, what in (
            (HARD, "the hard problems without a prefix"),
            (MIDDLE, "chains of 7 to 10 operations, never trained on"),
        ):
            first, last = self.start(ONLY, suite), self.final(ONLY, suite)
            claim = (
                f"Training on prefixed problems alone transfers to {what} "
                "(twice the base's accuracy, ten points or more)."
            )
            holds = (last >= 2 * first) & (last - first >= 0.1)
            made.append(Claim(claim, _verdict(holds), _pairs(first, last, "to")))
        return made

    def _against(self, name: str, who: str) -> list[Claim]:
        """Half the FLOPs, and three times the accuracy."""
        shares = self.share_spent(PREFIXED, self.final(name))
        own, base = self.final(PREFIXED)[shares.index], self.final(name)[shares.index]
        half = f"PrefixRL has what {who}, ends with at half the FLOPs, rejection phase included."
        texts = ", ".join("never" if np.isinf(value) else f"{value:.0%}" for value in shares)
        texts = f"Share of the budget that it needs, seed by seed: {texts}."
        times = f"PrefixRL ends with three times the accuracy of {who}, at equal FLOPs."
        return [
            Claim(half, _verdict(shares <= 0.5), texts),
            Claim(times, _verdict(own >= 3 * base), _pairs(own, base, "against")),
        ]


def _verdict(holds: pd.Series) -> str:
    if len(holds) and holds.all():
        return "yes"
    return f"in {holds.sum()} of {len(holds)} seeds" if holds.any() else "no"


def _pairs(first: pd.Series, second: pd.Series, between: str) -> str:
    pairs = zip(first, second, strict=True)
    return ", ".join(f"{a:.1%} {between} {b:.1%}" for a, b in pairs) + "."


# Markdown


def markdown(runs: Prefix) -> str:
    """prefix.md: the methods, the claims, success by prefix, how it was made."""
    bank, bar = runs.data["bank"], runs.data["bar"]
    lines = ["# PrefixRL at equal FLOPs", "", *_methods(runs).markdown()]
    lines += ["## What the paper reports, on these runs", ""]
    lines += [f"* **{c.verdict}**: {c.claim} {c.evidence}" for c in runs.claims()]
    lines += ["", "## Success by the share of the trace that is given away", ""]
    lines += _bins(runs).markdown()
    lines += [
        f"Held-out accuracy on hard problems without a prefix at {_flops(runs.budget)} FLOPs in "
        f"all, {SPREAD}. Every method has the same learning rates to choose from, by validation "
        "accuracy on other hard problems. Methods with a bank of traces pay for its rejection "
        f"phase first: {bank['attempts']:,} responses, {_flops(bank['flops'])} FLOPs, for "
        f"{bank['traces']} traces of {bank['problems']} problems. A method without a figure at "
        "half the FLOPs has not begun to train by then.",
        "",
        f"With a larger bank, {bar['bank']['traces']} traces for {bar['bank']['attempts']:,} "
        f"responses and {_flops(bar['bank']['flops'])} FLOPs, which is beyond the budget, PrefixRL "
        f"is at {cell(median(bar['accuracy']), share)} % after {bar['rollouts']:,} rollouts at "
        f"learning rate {rate_text(runs.data['learning_rates'][0])}.",
        "",
    ]
    return page(lines, runs.data["about"])


def _methods(runs: Prefix) -> Sheet:
    rows = []
    for name in runs.names:
        curves = runs.curves(name)
        rollouts = curves.map(lambda curve: curve["rollouts"][curve["flops"] <= runs.budget].max())
        half = runs.accuracies(name, runs.budget / 2)
        row = [runs.label(name), rate_text(runs.best[name]), str(len(curves))]
        row += [cell(median(rollouts), count)]
        shares = runs.final(name), half, runs.final(name, MIDDLE)
        rows.append(row + [cell(median(values), share) for values in shares])
    header = ["", "learning rate", "seeds", "rollouts"]
    return Sheet([*header, "hard, %", "at half the FLOPs, %", "7 to 10 operations, %"], rows)


def _bins(runs: Prefix) -> Sheet:
    """Success by tenth of the trace, and held-out without one, early and late in the runs."""
    header, columns = ["tokens given away"], []
    for name in (PREFIXED, ONLY):
        header += [f"{runs.label(name)}: first quarter of the run, %", "last quarter, %"]
        found = [
            {"": list(_quarters(t["curve"][HARD])), **t["by_prefix"]}
            for t in runs.data["trials"]
            if t["method"] == name and t["learning_rate"] == runs.best[name]
        ]
        columns += [pd.DataFrame([{k: v[q] for k, v in t.items()} for t in found]) for q in (0, -1)]
    rows = []
    for key in sorted(set().union(*columns)):
        name = f"{float(key):.0%} to {float(key) + 0.1:.0%}" if key else "none (held-out problems)"
        rows.append([name, *(cell(median(values.get(key, ())), share) for values in columns)])
    return Sheet(header, rows)


def _flops(value: float) -> str:
    return f"{value:.2e}".replace("e+", "e")


# Figure


def draw(runs: Prefix) -> dict[str, Figure]:
    """The figure prefix: accuracy against all FLOPs, on hard and on middle problems."""
    figure = Figure(figsize=(11.5, 4.6), layout="constrained")
    axes = list(figure.subplots(1, 2))
    titles = "Hard problems, no prefix", "Chains of 7 to 10 operations, never trained on"
    paid = runs.data["bank"]["flops"]
    for axis, suite, title in zip(axes, (HARD, MIDDLE), titles, strict=True):
        colours = {prefixed: iter(found) for prefixed, found in COLOURS.items()}
        for name in runs.names:
            prefixed = runs.method(name)["prefixed"]
            line = {"color": next(colours[prefixed]), "linestyle": "-" if prefixed else "--"}
            curves = [(curve["flops"], curve[suite]) for curve in runs.curves(name)]
            figures.draw_band(axis, curves, line, runs.label(name), end=1.02 * runs.budget)
        axis.axvline(paid, color=GREY, linestyle=":", linewidth=1.2)
        axis.annotate(
            "traces paid for", (paid, 1.0), (4, -3), xycoords=("data", "axes fraction"),
            textcoords="offset points", color="#555555", fontsize=8, va="top",
        )  # fmt: skip
        axis.set_title(title)
        figures.share_axis(axis, "held-out accuracy")
        axis.set_xlim(0, runs.budget)
        axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / 1e12:g}"))
        axis.set_xlabel("FLOPs in all, rejection phase included, $10^{12}$")
    figures.labels_below(figure, axes)
    return {"prefix": figure}
