"""The tables of a comparison, on the terminal and in Markdown, from its data alone."""

import math
import statistics
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from remix_jax.reporting import bootstrap
from remix_jax.reporting import comparison_numbers as numbers
from remix_jax.reporting.comparison_numbers import BEST, COSTS, EQUAL, Data

Show = Callable[[float], str]
INFINITE = "∞"  # a ratio where only the method reached the level
SPREAD = "median over seeds [95 % bootstrap interval]"


class Sheet(NamedTuple):
    """A table of strings: the first column left, the others right."""

    title: str
    header: list[str]
    rows: list[list[str]]


def setting_title(data: Data, which: str) -> str:
    """The setting in words."""
    rate = numbers.rate_text(data["equal_learning_rate"])
    return (
        f"Equal learning rate, {rate}" if which == EQUAL else "Each at its own best learning rate"
    )


def cell(
    interval: bootstrap.Interval | None, show: Show, unit: str = "", infinite: str = "never"
) -> str:
    """ "median [low–high] unit", or the one value where there is no spread to show."""
    if interval is None:
        return "-"
    middle, low, high = (
        show(value) if math.isfinite(value) else infinite
        for value in (interval.median, interval.low, interval.high)
    )
    text = middle if low == middle == high else f"{middle} [{low}–{high}]"
    text += unit if math.isfinite(interval.median) else ""
    return text if interval.used == interval.of else f"{text} ({interval.used} of {interval.of})"


def percent(value: float) -> str:
    """A share as a percentage with one decimal, without the sign."""
    return f"{100 * value:.1f}"


def _goals(data: Data) -> list[str]:
    return [f"to {100 * level:g} %" for level in data["levels"]]


def _names(data: Data) -> list[str]:
    return [name for family in numbers.families(data).values() for name in family]


def _start(data: Data, name: str, which: str) -> list[str]:
    rate = numbers.rate_text(numbers.learning_rate(data, name, which))
    return [numbers.label(data, name), rate]


# Sheets


def cost_sheet(data: Data, which: str, x: str) -> Sheet:
    """What each method spent to each level; x is one of rollouts, tokens, flops, seconds."""
    name, scale, show = _unit(data, x)
    rows = []
    for method in _names(data):
        row = _start(data, method, which)
        for level in data["levels"]:
            spent = numbers.crossings(data, method, which, level, x).values()
            scaled = [None if value is None else value / scale for value in spent]
            row.append(cell(bootstrap.median(scaled, missing=math.inf), show))
        if x != "rollouts":
            row.append(_ratio_cell(data, method, which, data["target"], x))
        rows.append(row)
    header = ["", "rate", *_goals(data)]
    if x != "rollouts":
        header.append(f"base / method, to {100 * data['target']:g} %")
    return Sheet(f"{name} to a held-out accuracy", header, rows)


def _unit(data: Data, x: str) -> tuple[str, float, Show]:
    """Name with unit, what one unit is, and how many of them are shown."""
    if x == "rollouts":
        return "Fresh rollouts", 1.0, "{:,.0f}".format
    if x == "seconds":
        return "Seconds", 1.0, "{:,.1f}".format
    if x == "tokens":
        return "Generated tokens, thousands,", 1e3, "{:,.0f}".format
    greatest = max(trial["curve"]["flops"][-1] for trial in data["trials"])
    power = max(0, 3 * int(math.log10(max(greatest, 1)) // 3))
    return f"Training FLOPs, 10^{power},", 10.0**power, "{:,.3g}".format


def _times(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else INFINITE


def _ratio_cell(data: Data, method: str, which: str, level: float, x: str = "rollouts") -> str:
    if numbers.reference(data, method) == method:
        return "1"
    return cell(numbers.ratio(data, method, which, level, x), "{:.2f}".format, infinite=INFINITE)


def ratio_sheet(data: Data, which: str) -> Sheet:
    """Rollouts of the on-policy base over those of the method, and final accuracy."""
    rows = []
    for method in _names(data):
        trials = numbers.setting(data, method, which).values()
        final = bootstrap.median(numbers.accuracies(trials, "accuracy", best=False))
        row = [numbers.label(data, method)]
        row += [_ratio_cell(data, method, which, level) for level in data["levels"]]
        rows.append([*row, cell(final, percent), str(len(trials))])
    title = "Times fewer fresh rollouts than the on-policy base, paired by seed"
    return Sheet(title, ["", *_goals(data), "final, %", "seeds"], rows)


def suites_sheet(data: Data, which: str, best: bool) -> Sheet:
    """Final or best accuracy of each method on each suite."""
    keys = [*numbers.suites(data), "accuracy"]
    rows = []
    for method in _names(data):
        trials = numbers.setting(data, method, which).values()
        values = [bootstrap.median(numbers.accuracies(trials, key, best)) for key in keys]
        rows.append([numbers.label(data, method), *(cell(value, percent) for value in values)])
    title = "Best accuracy of the run by suite, %" if best else "Final accuracy by suite, %"
    return Sheet(title, ["", *keys[:-1], "mean"], rows)


def base_sheet(data: Data, which: str) -> Sheet:
    """The ratio of rollouts to the target, for each base model by itself."""
    rows = []
    for method in _names(data):
        if numbers.reference(data, method) != method:
            found = numbers.ratios_by_base(data, method, which, data["target"]).values()
            cells = [
                "-" if value is None else f"{_times(value.median)} ({value.used})"
                for value in found
            ]
            rows.append([numbers.label(data, method), *cells])
    title = (
        f"Base / method in rollouts to {100 * data['target']:g} %, by base model: "
        "median (seeds with an answer)"
    )
    return Sheet(title, ["", *numbers.bases(data)], rows)


def break_even_sheet(data: Data) -> Sheet:
    """A model: from which added cost of a rollout on a method is ahead of its base in time."""
    rows = []
    for method in _names(data):
        if numbers.reference(data, method) != method:
            found = [numbers.break_even(data, method, which) for which in numbers.settings(data)]
            cells = [cell(value, lambda seconds: f"{1000 * seconds:.2g}", " ms") for value in found]
            rows.append([numbers.label(data, method), *cells])
    header = ["", *("equal rate", "own best")[: len(numbers.settings(data))]]
    title = (
        "Model, not a measurement: added cost of one rollout from which the method reaches "
        f"{100 * data['target']:g} % before its on-policy base"
    )
    return Sheet(title, header, rows)


def tuning_sheet(data: Data) -> Sheet:
    """Mean validation accuracy over the budget by learning rate; the chosen rate in brackets."""
    rates = sorted(data["learning_rates"])
    rows = []
    for method in _names(data):
        best = numbers.best_learning_rate(data, method)
        row = [numbers.label(data, method)]
        for rate in rates:
            areas = list(numbers.validation(data, method, rate).values())
            text = f"{100 * statistics.mean(areas):.1f}"
            row.append(f"({text})" if rate == best else text)
        rows.append(row)
    seeds = ", ".join(map(str, data["selection_seeds"]))
    title = f"Mean validation accuracy over the budget, %, mean of seeds {seeds}; (chosen)"
    return Sheet(title, ["", *map(numbers.rate_text, rates)], rows)


# On the terminal


def tables(data: Data) -> RenderableType:
    """Both settings for the terminal, two tables each, and what was tuned; 120 columns wide."""
    parts: list[RenderableType] = []
    for which in numbers.settings(data):
        parts.append(Text(f"{setting_title(data, which)}: {SPREAD}", style="bold"))
        parts += [_rich(cost_sheet(data, which, "rollouts")), _rich(ratio_sheet(data, which))]
    return Group(*parts, *(Text(sentence) for sentence in _tuning_sentences(data)))


def _rich(sheet: Sheet) -> Table:
    table = Table(title=Text(sheet.title), title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column(sheet.header[0], min_width=20)
    for name in sheet.header[1:]:
        table.add_column(Text(name), justify="right", no_wrap=True)
    for row in sheet.rows:
        table.add_row(*map(Text, row))
    return table


def _tuning_sentences(data: Data) -> list[str]:
    if len(data["learning_rates"]) == 1:
        return [
            f"All methods ran at learning rate {numbers.rate_text(data['learning_rates'][0])}; "
            "nothing was tuned."
        ]
    grid = ", ".join(map(numbers.rate_text, sorted(data["learning_rates"])))
    sentences = [
        f"Tuned: learning rates {grid} for every method, on seeds "
        f"{', '.join(map(str, data['selection_seeds']))}, chosen by the mean validation accuracy "
        "over the budget; validation problems are none of the held-out ones."
    ]
    for method in _names(data):
        side = numbers.edge(data, method)
        if side:
            rate = numbers.rate_text(numbers.best_learning_rate(data, method))
            sentences.append(
                f"{numbers.label(data, method)}: its best rate {rate} is the {side} that was "
                "tried; a better one may lie beyond."
            )
    return sentences


# In Markdown


def markdown(data: Data) -> str:
    """comparison.md: every table, and the sentences that say how its numbers were made."""
    lines = [f"# Fresh rollouts to an accuracy: {_families_text(data)}", ""]
    lines += [*_tuning_sentences(data), "", *_how(data), ""]
    for which in numbers.settings(data):
        lines += [f"## {setting_title(data, which)}", ""]
        lines += _markdown(cost_sheet(data, which, "rollouts"))
        lines += _markdown(ratio_sheet(data, which))
        for x in COSTS[1:]:
            if numbers.has(data, x):
                lines += _markdown(cost_sheet(data, which, x))
        lines += _markdown(suites_sheet(data, which, best=False))
        lines += _markdown(suites_sheet(data, which, best=True))
        lines += _markdown(base_sheet(data, which))
    lines += ["## Tuning and time", ""]
    if BEST in numbers.settings(data):
        lines += _markdown(tuning_sheet(data))
    if numbers.has(data, "seconds"):
        lines += _markdown(break_even_sheet(data))
    return "\n".join([*lines, *about_lines(data["about"])]).rstrip() + "\n"


def _families_text(data: Data) -> str:
    return " and ".join(
        f"{numbers.label(data, base)} against {len(family) - 1} other method"
        f"{'s' if len(family) > 2 else ''}"
        for base, family in numbers.families(data).items()
    )


def _how(data: Data) -> list[str]:
    found, seeds = numbers.bases(data), {trial["seed"] for trial in data["trials"]}
    models = f"{len(found)} independently made base models" if len(found) > 1 else "one base model"
    return [
        f"{len(seeds)} seeds on {models}; trials of one seed begin with the same one. Numbers are "
        f"the {SPREAD}: percentile bootstrap, {bootstrap.RESAMPLES:,} resamples of the seeds as "
        "they are (not within base models, which would leave out how much those differ); with "
        "fewer than three seeds the interval is the range. A level is reached at the first "
        "held-out evaluation at or above it that the next one confirms, interpolated linearly from "
        'the evaluation before; "never" counts as infinity. Ratios are taken seed by seed against '
        "the on-policy base in the same setting: ∞ where only the method reached the level, 0 "
        "where only the base did, no answer where neither did; a count such as (4 of 5) says how "
        "many seeds had an answer. Seconds are without compilation and evaluation. Best accuracy "
        "is the greatest of the run, on the held-out problems themselves."
    ]


def _markdown(sheet: Sheet) -> list[str]:
    return [
        f"**{sheet.title}**",
        "",
        "| " + " | ".join(sheet.header) + " |",
        "|---|" + "---:|" * (len(sheet.header) - 1),
        *("| " + " | ".join(row) + " |" for row in sheet.rows),
        "",
    ]


def about_lines(about: Mapping[str, Any]) -> list[str]:
    """The description of how results were made, as a Markdown list."""
    return [f"* {name.replace('_', ' ')}: {value}" for name, value in about.items()]
