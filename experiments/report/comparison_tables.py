"""The tables of a comparison, on the terminal and in Markdown."""

import math

from rich.console import Group, RenderableType
from rich.text import Text

from experiments.report.comparison import BEST, EQUAL, Comparison
from experiments.report.intervals import INFINITE, RESAMPLES, SPREAD, cell, median
from experiments.report.results import COSTS
from experiments.tables import Sheet, goal, page, rate_text, share


def _title(runs: Comparison, setting: str) -> str:
    rate = rate_text(runs.data["equal_learning_rate"])
    own = "Each at its own best learning rate"
    return f"Equal learning rate, {rate}" if setting == EQUAL else own


def _names(runs: Comparison) -> list[str]:
    # Once: a base that has a base itself is in both families.
    return list(dict.fromkeys(name for family in runs.families.values() for name in family))


def _others(runs: Comparison) -> list[str]:
    return [name for name in _names(runs) if not runs.is_base(name)]


def _goals(runs: Comparison) -> list[str]:
    return [f"to {goal(level)}" for level in runs.data["levels"]]


# Sheets


def cost_sheet(runs: Comparison, setting: str, x: str) -> Sheet:
    """What each method spent to each level; x is one of rollouts, tokens, flops, seconds."""
    title, scale, form = _unit(runs, x)
    rows = []
    for name in _names(runs):
        spent = [runs.crossings(name, setting, level, x) / scale for level in runs.data["levels"]]
        row = [runs.label(name), rate_text(runs.rate(name, setting))]
        row += [cell(median(values), form.format) for values in spent]
        rows.append(row + ([] if x == "rollouts" else [_ratio(runs, name, setting, x=x)]))
    last = [] if x == "rollouts" else [f"base / method, to {goal(runs.target)}"]
    return Sheet(["", "rate", *_goals(runs), *last], rows, f"{title} to a held-out accuracy")


def _unit(runs: Comparison, x: str) -> tuple[str, float, str]:
    """Name with unit, what one unit is, and how many of them are written."""
    greatest = max(curve[x][-1] for curve in runs.trials["curve"])
    power = max(0, 3 * int(math.log10(max(greatest, 1)) // 3))
    return {
        "rollouts": ("Fresh rollouts", 1.0, "{:,.0f}"),
        "seconds": ("Seconds", 1.0, "{:,.1f}"),
        "tokens": ("Generated tokens, thousands,", 1e3, "{:,.0f}"),
        "flops": (f"Training FLOPs, 10^{power},", 10.0**power, "{:,.3g}"),
    }[x]


def _ratio(runs: Comparison, name: str, setting: str, level: float = 0, x: str = "rollouts") -> str:
    """The cell of a ratio, by default to the target."""
    if runs.is_base(name):
        return "1"
    found = median(runs.ratios(name, setting, level or runs.target, x))
    return cell(found, "{:.2f}".format, infinite=INFINITE)


def ratio_sheet(runs: Comparison, setting: str) -> Sheet:
    """Rollouts of the on-policy base over those of the method, and final accuracy."""
    rows = []
    for name in _names(runs):
        final = runs.accuracies(name, setting, "accuracy")
        cells = [_ratio(runs, name, setting, level) for level in runs.data["levels"]]
        rows.append([runs.label(name), *cells, cell(median(final), share), str(len(final))])
    title = "Times fewer fresh rollouts than the on-policy base, paired by seed"
    return Sheet(["", *_goals(runs), "final, %", "seeds"], rows, title)


def suites_sheet(runs: Comparison, setting: str, best: bool) -> Sheet:
    """Final or best accuracy of each method on each suite."""
    keys = [*(f"eval/{suite}" for suite in runs.suites), "accuracy"]
    rows = []
    for name in _names(runs):
        found = [median(runs.accuracies(name, setting, key, best)) for key in keys]
        rows.append([runs.label(name), *(cell(value, share) for value in found)])
    title = "Best accuracy of the run by suite, %" if best else "Final accuracy by suite, %"
    return Sheet(["", *runs.suites, "mean"], rows, title)


def base_sheet(runs: Comparison, setting: str) -> Sheet:
    """The ratio of rollouts to the target, for each base model by itself."""

    def text(value: float) -> str:
        return f"{value:.2f}" if math.isfinite(value) else INFINITE

    rows = []
    for name in _others(runs):
        found = runs.ratios_by_base(name, setting, runs.target).values()
        cells = [f"{text(value.median)} ({value.used})" if value else "-" for value in found]
        rows.append([runs.label(name), *cells])
    title = f"Base / method in rollouts to {goal(runs.target)}, by base model: median (seeds with "
    return Sheet(["", *runs.bases], rows, title + "an answer)")


def break_even_sheet(runs: Comparison) -> Sheet:
    """A model: from which added cost of a rollout on a method is ahead of its base in time."""
    rows = []
    for name in _others(runs):
        found = [runs.break_even(name, setting) for setting in runs.settings]
        cells = [cell(value, lambda seconds: f"{1000 * seconds:.2g}", " ms") for value in found]
        rows.append([runs.label(name), *cells])
    title = (
        "Model, not a measurement: added cost of one rollout from which the method reaches "
        f"{goal(runs.target)} before its on-policy base"
    )
    return Sheet(["", *("equal rate", "own best")[: len(runs.settings)]], rows, title)


def tuning_sheet(runs: Comparison) -> Sheet:
    """Mean validation accuracy over the budget by learning rate; the chosen rate in brackets."""
    rates, rows = sorted(runs.data["learning_rates"]), []
    for name in _names(runs):
        shares = {rate: share(runs.validation(name, rate).mean()) for rate in rates}
        shares[runs.best[name]] = f"({shares[runs.best[name]]})"
        rows.append([runs.label(name), *shares.values()])
    seeds = ", ".join(map(str, runs.data["selection_seeds"]))
    title = f"Mean validation accuracy over the budget, %, mean of seeds {seeds}; (chosen)"
    return Sheet(["", *map(rate_text, rates)], rows, title)


# Pages


def terminal(runs: Comparison) -> RenderableType:
    """Both settings for the terminal, two tables each, and what was tuned; 120 columns wide."""
    parts: list[RenderableType] = []
    for setting in runs.settings:
        parts.append(Text(f"{_title(runs, setting)}: {SPREAD}", style="bold"))
        sheets = cost_sheet(runs, setting, "rollouts"), ratio_sheet(runs, setting)
        parts += [sheet.terminal() for sheet in sheets]
    return Group(*parts, *map(Text, _tuning_sentences(runs)))


def markdown(runs: Comparison) -> str:
    """comparison.md: every table, and the sentences that say how its numbers were made."""
    lines = [f"# Fresh rollouts to an accuracy: {_families(runs)}", ""]
    lines += [*_tuning_sentences(runs), "", _how(runs), ""]
    for setting in runs.settings:
        sheets = [cost_sheet(runs, setting, "rollouts"), ratio_sheet(runs, setting)]
        sheets += [cost_sheet(runs, setting, x) for x in COSTS[1:] if runs.has(x)]
        sheets += [suites_sheet(runs, setting, best) for best in (False, True)]
        lines += [f"## {_title(runs, setting)}", ""]
        for sheet in (*sheets, base_sheet(runs, setting)):
            lines += sheet.markdown()
    lines += ["## Tuning and time", ""]
    if BEST in runs.settings:
        lines += tuning_sheet(runs).markdown()
    if runs.has("seconds"):
        lines += break_even_sheet(runs).markdown()
    return page(lines, runs.data["about"])


def _tuning_sentences(runs: Comparison) -> list[str]:
    rates = sorted(runs.data["learning_rates"])
    if len(rates) == 1:
        return [f"All methods ran at learning rate {rate_text(rates[0])}; nothing was tuned."]
    sentences = [
        f"Tuned: learning rates {', '.join(map(rate_text, rates))} for every method, on seeds "
        f"{', '.join(map(str, runs.data['selection_seeds']))}, chosen by the mean validation "
        "accuracy over the budget; validation problems are none of the held-out ones."
    ]
    edges = {rates[-1]: "greatest", rates[0]: "smallest"}
    for name in _names(runs):
        if runs.best[name] in edges:
            sentences.append(
                f"{runs.label(name)}: its best rate {rate_text(runs.best[name])} is the "
                f"{edges[runs.best[name]]} that was tried; a better one may lie beyond."
            )
    return sentences


def _families(runs: Comparison) -> str:
    return " and ".join(
        f"{runs.label(base)} against {len(family) - 1} other method{'s' if len(family) > 2 else ''}"
        for base, family in runs.families.items()
    )


def _how(runs: Comparison) -> str:
    count, seeds = len(runs.bases), runs.trials["seed"].nunique()
    models = f"{count} independently made base models" if count > 1 else "one base model"
    return (
        f"{seeds} seeds on {models}; trials of one seed begin with the same one. Numbers are "
        f"the {SPREAD}: percentile bootstrap, {RESAMPLES:,} resamples of the seeds as "
        "they are (not within base models, which would leave out how much those differ); with "
        "fewer than three seeds the interval is the range. A level is reached at the first "
        "held-out evaluation at or above it that the next one confirms, interpolated linearly from "
        'the evaluation before; "never" counts as infinity. Ratios are taken seed by seed against '
        "the on-policy base in the same setting: ∞ where only the method reached the level, 0 "
        "where only the base did, no answer where neither did; a count such as (4 of 5) says how "
        "many seeds had an answer. Seconds are without compilation and evaluation. Best accuracy "
        "is the greatest of the run, on the held-out problems themselves."
    )
