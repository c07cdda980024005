"""PrefixRL against its baselines at equal FLOPs: records, the paper's claims, table and figure."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from experiments.report import figures
from experiments.report.figures import AMBER, BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY
from experiments.report.intervals import median
from experiments.report.results import Data, Tuned, column, significant, spent
from experiments.report.tables import SPREAD, Sheet, cell, page, rate_text, share
from remix_jax.errors import InputError
from remix_jax.sinks.metrics import Metrics
from remix_jax.text import count

KEYS = (
    "about", "budget", "bank", "bar", "learning_rates", "selection_seeds", "methods", "trials",
)  # fmt: skip
HARD, MIDDLE, VALIDATION = "hard", "middle", "validation"
PREFIXED, PLAIN, ONLY = "prefix", "grpo", "prefix-only"  # methods that the claims speak of
QUARTERS = 4
BIN = "reward/prefix_"
COLOURS = {True: (BLUE, SKY, GREEN), False: (GREY, BLACK, ORANGE, AMBER, PURPLE)}


def record(
    metrics: Sequence[Metrics],
    *,
    method: str,
    learning_rate: float,
    seed: int,
    paid: float,
    suites: Mapping[str, str],
    broken: bool = False,
) -> dict[str, Any]:
    """What prefix.json keeps of one run.

    Args:
      metrics: one run, in order of steps.
      paid: FLOPs spent for it before training that its own count leaves out.
      suites: name in the record -> name of the metric: hard, middle and validation.
      broken: the run ended before its last step, by a loss that is not finite.
    Returns:
      method, learning_rate, seed, "broken" where it is; curve: flops, rollouts and the suites'
      accuracies at every evaluation; by_prefix: mean reward by tenth of the trace given away, in
      each quarter of the run (None where no such row came).
    Raises:
      InputError: no evaluation, or one without one of the figures.
    """
    where = f"prefix: {method} at {learning_rate:g}, seed {seed}"
    steps = [step for step in metrics if suites[HARD] in step]
    steps = [step | {"flops": step["flops"] + paid} if "flops" in step else step for step in steps]
    curve = {}
    for name, key in {"rollouts": "rollouts", "flops": "flops", **suites}.items():
        values = column(steps, key, where)
        if values is None:
            raise InputError(f"{where}: no evaluation with {key}")
        curve[name] = values
    trained = pd.DataFrame([step for step in metrics if step["step"] > 0])
    by_prefix = {
        name.removeprefix(BIN): [
            None if pd.isna(mean) else significant(mean, 4) for mean in _quarters(trained[name])
        ]
        for name in sorted(trained)
        if name.startswith(BIN)
    }
    identity = {"method": method, "learning_rate": learning_rate, "seed": seed}
    identity |= {"broken": True} if broken else {}
    return identity | {"curve": curve, "by_prefix": by_prefix}


def _quarters(values: Sequence[float]) -> pd.Series:
    """The mean of each quarter of a run's values; NaN where there is none."""
    size = max(1, -(-len(values) // QUARTERS))
    means = pd.Series(values, dtype=float).reset_index(drop=True)
    return means.groupby(means.index // size).mean().reindex(range(QUARTERS))


class Claim(NamedTuple):
    """What the paper reports, whether these runs show it, and the figures."""

    claim: str
    verdict: str
    evidence: str


class Prefix(Tuned):
    """The content of prefix.json and what follows from it.

    Attributes:
      data: as of `Tuned`, with "budget" (FLOPs), "bank" (traces, problems, attempts, flops) and
        "bar" (PrefixRL on a larger bank at the first rate: bank, rollouts, accuracy by seed);
        a method has "prefixed" as well.
    """

    kind = "prefix"
    cost = "flops"

    def __init__(self, data: Data):
        """Checks the data.

        Raises:
          InputError: methods were not tuned alike, or one of which the claims speak is not there.
        """
        super().__init__(data)
        self.budget: float = data["budget"]
        for name in (PREFIXED, PLAIN, ONLY):
            if name not in self.names:
                raise InputError(f"prefix: no method {name!r}, of which the claims speak")

    def best_runs(self, name: str) -> pd.Series:
        """The curves of a method at its own best rate, by seed."""
        return self.at(name, self.best[name])["curve"]

    def accuracies(self, name: str, flops: float, suite: str = HARD) -> pd.Series:
        """Accuracy after so many FLOPs by seed, linear between evaluations.

        After the last evaluation that one's; NaN where what comes before training, the rejection
        phase first of all, has taken more.
        """
        return self.best_runs(name).map(
            lambda curve: np.interp(flops, curve["flops"], curve[suite], left=np.nan)
        )

    def final(self, name: str, suite: str = HARD) -> pd.Series:
        """Accuracy at the budget, by seed.

        Raises:
          InputError: a run begins beyond the budget.
        """
        found = self.accuracies(name, self.budget, suite)
        if found.isna().any():
            raise InputError(f"prefix: {name} begins beyond the budget")
        return found

    def start(self, name: str, suite: str = HARD) -> pd.Series:
        """Accuracy of the base, by seed."""
        return self.best_runs(name).map(lambda curve: curve[suite][0])

    def share_spent(self, name: str, levels: pd.Series) -> pd.Series:
        """The share of the budget at which each seed reaches its level; infinity if not within."""
        curves = self.best_runs(name)
        both = curves.index.intersection(levels.index)
        found = [spent(curves[s]["flops"], curves[s][HARD], levels[s]) for s in both]
        shares = pd.Series(found, index=both, dtype=float) / self.budget
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
        base = self.final(name)
        shares = self.share_spent(PREFIXED, base)
        texts = ["never" if np.isinf(value) else f"{value:.0%}" for value in shares]
        half = Claim(
            f"PrefixRL has what {who}, ends with at half the FLOPs, rejection phase included.",
            _verdict(shares <= 0.5),
            f"Share of the budget that it needs, seed by seed: {', '.join(texts)}.",
        )
        own = self.final(PREFIXED)[shares.index]
        claim = f"PrefixRL ends with three times the accuracy of {who}, at equal FLOPs."
        base = base[shares.index]
        return [half, Claim(claim, _verdict(own >= 3 * base), _pairs(own, base, "against"))]


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
    header = [
        "", "learning rate", "seeds", "rollouts", "hard, %", "at half the FLOPs, %",
        "7 to 10 operations, %",
    ]  # fmt: skip
    rows = []
    for name in runs.names:
        curves = runs.best_runs(name)
        rollouts = curves.map(lambda curve: curve["rollouts"][curve["flops"] <= runs.budget].max())
        half = runs.accuracies(name, runs.budget / 2)
        shares = [runs.final(name), half, runs.final(name, MIDDLE)]
        row = [runs.label(name), rate_text(runs.best[name]), str(len(curves))]
        row += [cell(median(rollouts), count), *(cell(median(v), share) for v in shares)]
        rows.append(row)
    return Sheet(header, rows)


def _bins(runs: Prefix) -> Sheet:
    """Success by tenth of the trace, and held-out without one, early and late in the runs."""
    header, columns = ["tokens given away"], []
    for name in (PREFIXED, ONLY):
        header += [f"{runs.label(name)}: first quarter of the run, %", "last quarter, %"]
        curves = runs.best_runs(name)
        found = [
            {"": list(_quarters(curves[t["seed"]][HARD]))} | t["by_prefix"]
            for t in runs.data["trials"]
            if t["method"] == name and t["learning_rate"] == runs.best[name]
        ]
        columns += [
            {key: [own.get(key, [None])[quarter] for own in found] for own in found for key in own}
            for quarter in (0, -1)
        ]
    rows = []
    for key in sorted({key for values in columns for key in values}):
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
    for axis, suite, title in zip(axes, (HARD, MIDDLE), titles, strict=True):
        _panel(axis, runs, suite)
        axis.set_title(title)
    figures.labels_below(figure, axes)
    return {"prefix": figure}


def _panel(axis: Axes, runs: Prefix, suite: str) -> None:
    colours = {prefixed: iter(found) for prefixed, found in COLOURS.items()}
    for name in runs.names:
        curves = [(curve["flops"], curve[suite]) for curve in runs.best_runs(name)]
        prefixed = runs.method(name)["prefixed"]
        line = {"color": next(colours[prefixed]), "linestyle": "-" if prefixed else "--"}
        figures.draw_band(axis, curves, line, runs.label(name), end=1.02 * runs.budget)
    paid = runs.data["bank"]["flops"]
    axis.axvline(paid, color=GREY, linestyle=":", linewidth=1.2)
    axis.annotate(
        "traces paid for", (paid, 1.0), (4, -3), xycoords=("data", "axes fraction"),
        textcoords="offset points", color="#555555", fontsize=8, va="top",
    )  # fmt: skip
    figures.share_axis(axis, "held-out accuracy")
    axis.set_xlim(0, runs.budget)
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / 1e12:g}"))
    axis.set_xlabel("FLOPs in all, rejection phase included, $10^{12}$")
