"""PrefixRL against its baselines at equal FLOPs: from metrics to results.

`trial` makes the record of one run, `write` the files. What follows from the records is in
`prefix_numbers` and `prefix_plot`.
"""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from remix_jax.errors import InputError
from remix_jax.reporting import bootstrap, prefix_plot, records
from remix_jax.reporting import prefix_numbers as numbers
from remix_jax.reporting.comparison_tables import about_lines, cell, percent
from remix_jax.reporting.prefix_numbers import Data
from remix_jax.sinks.metrics import Metrics

QUARTERS = 4
_BIN = "reward/prefix_"


def trial(
    metrics: Sequence[Metrics],
    *,
    arm: str,
    learning_rate: float,
    seed: int,
    paid: float,
    suites: dict[str, str],
) -> dict[str, Any]:
    """The record of one run: what prefix.json keeps of it.

    Args:
      metrics: one run, in order of steps.
      paid: FLOPs spent for it before training that its own count leaves out.
      suites: name in the record -> name of the metric: hard, middle and validation.
    Returns:
      arm, learning_rate, seed; curve: flops, rollouts and the suites' accuracies at every
      evaluation; by_prefix: mean reward by tenth of the trace given away, in each quarter of the
      run (None where no such row came).
    Raises:
      InputError: an evaluation without one of the figures.
    """
    steps = [step for step in metrics if suites[numbers.HARD] in step]
    where = f"prefix: {arm} at {learning_rate:g}, seed {seed}"
    if not steps:
        raise InputError(f"{where}: no step with {suites[numbers.HARD]}")
    columns = {"rollouts": "rollouts", "flops": "flops", **suites}
    for step in steps:
        for key in columns.values():
            if not records.finite(step.get(key)):
                raise InputError(f"{where}: step {step['step']} has no {key}")
    curve = {
        name: [records.significant(step[key] + (paid if name == "flops" else 0)) for step in steps]
        for name, key in columns.items()
    }
    identity = {"arm": arm, "learning_rate": learning_rate, "seed": seed}
    return identity | {"curve": curve, "by_prefix": _by_prefix(metrics)}


def _by_prefix(metrics: Sequence[Metrics]) -> dict[str, list[float | None]]:
    trained = [step for step in metrics if step["step"] > 0]
    names = sorted({key for step in trained for key in step if key.startswith(_BIN)})
    size = -(-len(trained) // QUARTERS)
    quarters = [trained[i * size : (i + 1) * size] for i in range(QUARTERS)]

    def mean(steps: Sequence[Metrics], name: str) -> float | None:
        values = [step[name] for step in steps if name in step]
        return records.significant(sum(values) / len(values), 4) if values else None

    return {name.removeprefix(_BIN): [mean(steps, name) for steps in quarters] for name in names}


def write(data: dict[str, Any], directory: str | pathlib.Path) -> None:
    """Writes prefix.json, prefix.md and prefix.png.

    Args:
      data: "about" (strings shown under the tables), "budget" (FLOPs), "bank" (traces, problems,
        attempts, flops), "bar" (PrefixRL on a larger bank at the first rate: bank, rollouts,
        accuracy by seed), "learning_rates", "selection_seeds", "arms" ({"name", "label",
        "prefixed"}) and "trials" (of `trial`).
    Raises:
      InputError: the data are incomplete, or arms were not tuned alike.
    """
    numbers.check(data)
    directory = pathlib.Path(directory)
    records.write_json(data, directory / "prefix.json")
    (directory / "prefix.md").write_text(markdown(data), encoding="utf-8")
    prefix_plot.draw(data, directory / "prefix.png")


def read(path: str | pathlib.Path) -> dict[str, Any]:
    """The data of a prefix.json, checked (`records.read_json`)."""
    return records.read_json(path, numbers.KEYS, numbers.check)


def markdown(data: Data) -> str:
    """prefix.md: the table at equal FLOPs, the claims, success by prefix, how it was made."""
    bank = data["bank"]
    lines = ["# PrefixRL at equal FLOPs", "", *_arms(data), ""]
    lines += ["## What the paper reports, on these runs", ""]
    lines += [f"* **{c.verdict}**: {c.claim} {c.evidence}" for c in numbers.claims(data)]
    lines += ["", "## Success by the share of the trace that is given away", "", *_bins(data), ""]
    lines += [
        f"Held-out accuracy on hard problems without a prefix at {_flops(data['budget'])} FLOPs in "
        "all, median over seeds [95 % bootstrap interval; the range with fewer than three]. Every "
        "arm has the same learning rates to choose from, by validation accuracy on other hard "
        "problems. Arms with a bank of traces pay for its rejection phase first: "
        f"{bank['attempts']:,} responses, {_flops(bank['flops'])} FLOPs, for {bank['traces']} "
        f"traces of {bank['problems']} problems. An arm without a figure at half the "
        "FLOPs has not begun to train by then.",
        "",
        *_bar(data),
        *about_lines(data["about"]),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _arms(data: Data) -> list[str]:
    header = [
        "", "learning rate", "seeds", "rollouts", "hard, %", "at half the FLOPs, %",
        "7 to 10 operations, %",
    ]  # fmt: skip
    lines = ["| " + " | ".join(header) + " |", "|---|" + "---:|" * (len(header) - 1)]
    half = data["budget"] / 2
    for arm in data["arms"]:
        own = numbers.trials(data, arm["name"])
        rollouts = [_rollouts(data, t) for t in own]
        cells = [arm["label"], f"{numbers.best_learning_rate(data, arm['name']):g}", str(len(own))]
        cells.append(cell(bootstrap.median(rollouts), "{:,.0f}".format))
        measures: tuple[Callable[[numbers.Trial], float | None], ...] = (
            lambda t: numbers.final(data, t),
            lambda t: numbers.at(t, half),
            lambda t: numbers.final(data, t, numbers.MIDDLE),
        )
        cells += [cell(bootstrap.median([m(t) for t in own]), percent) for m in measures]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _rollouts(data: Data, trial: numbers.Trial) -> float:
    """Fresh rollouts trained on within the budget."""
    xs, ys = trial["curve"]["flops"], trial["curve"]["rollouts"]
    return max((y for x, y in zip(xs, ys, strict=True) if x <= data["budget"]), default=0)


def _bins(data: Data) -> list[str]:
    """Success by tenth of the trace, and held-out without one, early and late in the runs."""
    arms = (numbers.PREFIXED, numbers.ONLY)
    own = {name: numbers.trials(data, name) for name in arms}
    names = sorted({b for found in own.values() for t in found for b in t["by_prefix"]})
    header = ["tokens given away"]
    for name in arms:
        who = numbers.label(data, name)
        header += [f"{who}: first quarter of the run, %", "last quarter, %"]
    lines = ["| " + " | ".join(header) + " |", "|---|" + "---:|" * (len(header) - 1)]
    for name in (None, *names):
        cells = ["none (held-out problems)"]
        if name is not None:
            cells = [f"{float(name):.0%} to {float(name) + 0.1:.0%}"]
        for arm in arms:
            for quarter in (0, -1):
                values = [_success(t, name)[quarter] for t in own[arm]]
                cells.append(cell(bootstrap.median(values), percent))
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _success(trial: numbers.Trial, name: str | None) -> list[float | None]:
    """Mean success by quarter of the run: of rows with such a prefix, or held-out without one."""
    if name is not None:
        return trial["by_prefix"].get(name, [None] * QUARTERS)
    values = trial["curve"][numbers.HARD]
    size = -(-len(values) // QUARTERS)
    parts = [values[i * size : (i + 1) * size] for i in range(QUARTERS)]
    return [sum(part) / len(part) if part else None for part in parts]


def _bar(data: Data) -> list[str]:
    bar, bank = data["bar"], data["bar"]["bank"]
    return [
        f"With a larger bank, {bank['traces']} traces for {bank['attempts']:,} responses and "
        f"{_flops(bank['flops'])} FLOPs, which is beyond the budget, PrefixRL is at "
        f"{cell(bootstrap.median(bar['accuracy']), percent)} % after {bar['rollouts']:,} rollouts "
        f"at learning rate {data['learning_rates'][0]:g}.",
        "",
    ]


def _flops(value: float) -> str:
    return f"{value:.2e}".replace("e+", "e")
