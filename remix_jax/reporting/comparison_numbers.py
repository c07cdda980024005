"""What follows from the trials of a comparison: settings, crossings, ratios. Pure functions.

`data` is the content of comparison.json (`remix_jax.reporting.comparison.write`). Nothing derived
is stored: tables and figures call these functions.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from remix_jax.errors import InputError
from remix_jax.reporting import bootstrap, records
from remix_jax.run import report

KEYS = (
    "about", "levels", "target", "equal_learning_rate", "learning_rates", "methods",
    "selection_seeds", "trials",
)  # fmt: skip
COSTS = ("rollouts", "tokens", "flops", "seconds")
EQUAL, BEST = "equal", "best"
Data = Mapping[str, Any]
Trial = Mapping[str, Any]


def check(data: Data) -> None:
    """Raises InputError unless every number of tables and figures can be computed.

    Also where the comparison would not be a fair one: methods tuned over different learning rates
    or different seeds, or one seed that stands for two base models.
    """
    records.require_keys(data, KEYS, "comparison")
    names = [method["name"] for method in data["methods"]]
    if not names:
        raise InputError("comparison: expected at least one method")
    for method in data["methods"]:
        if (
            method["reference"] not in names
            or reference(data, method["reference"]) != (method["reference"])
        ):
            raise InputError(
                f"comparison: the reference of {method['name']!r} is {method['reference']!r}; "
                "expected a method that is its own reference"
            )
    if data["equal_learning_rate"] not in data["learning_rates"]:
        raise InputError(
            f"comparison: equal_learning_rate {rate_text(data['equal_learning_rate'])} is not in "
            f"learning_rates {', '.join(map(rate_text, data['learning_rates']))}"
        )
    _check_trials(data, names)
    for name in names:
        if not _at(data, name, data["equal_learning_rate"]):
            raise InputError(
                f"comparison: {name!r} has no trial at the equal learning rate "
                f"{rate_text(data['equal_learning_rate'])}"
            )
    if len(data["learning_rates"]) > 1:
        _check_grid(data, names)


def _check_trials(data: Data, names: Sequence[str]) -> None:
    seen: set[tuple[Any, ...]] = set()
    bases: dict[int, str] = {}
    for trial in data["trials"]:
        where = trial_name(trial)
        if trial["method"] not in names:
            raise InputError(f"comparison: {where}: the method is none of {', '.join(names)}")
        if trial["learning_rate"] not in data["learning_rates"]:
            raise InputError(f"comparison: {where}: the learning rate is not in learning_rates")
        key = trial["method"], trial["learning_rate"], trial["seed"]
        if key in seen:
            raise InputError(f"comparison: {where} is there twice")
        seen.add(key)
        if bases.setdefault(trial["seed"], trial["base"]) != trial["base"]:
            raise InputError(
                f"comparison: {where} starts from {trial['base']!r}, another trial of that seed "
                f"from {bases[trial['seed']]!r}; trials of one seed are paired and need one base"
            )
        if not trial["curve"]["rollouts"]:
            raise InputError(f"comparison: {where} has no evaluation")


def _check_grid(data: Data, names: Sequence[str]) -> None:
    """Every method was tried at every rate on every selection seed, with validation accuracy."""
    for name in names:
        for rate in data["learning_rates"]:
            there = _at(data, name, rate)
            lacking = [seed for seed in data["selection_seeds"] if seed not in there]
            if lacking or not data["selection_seeds"]:
                raise InputError(
                    f"comparison: {name!r} has no trial at learning rate {rate_text(rate)} for "
                    f"selection seed {', '.join(map(str, lacking)) or '(none named)'}; "
                    "all methods need the same rates and seeds"
                )
            for seed in data["selection_seeds"]:
                if "validation" not in there[seed]["curve"]:
                    raise InputError(
                        f"comparison: {trial_name(there[seed])} has no validation accuracy, by "
                        "which the learning rate is selected"
                    )


def trial_name(trial: Trial) -> str:
    """A trial in words, for messages."""
    return f"{trial['method']} at {rate_text(trial['learning_rate'])}, seed {trial['seed']}"


def rate_text(rate: float) -> str:
    """A learning rate as people write it: 1e-4, 2.5e-3."""
    mantissa, _, exponent = f"{rate:.1e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}"


# Methods and their trials


def label(data: Data, name: str) -> str:
    """The method's name for people."""
    return _method(data, name)["label"]


def reference(data: Data, name: str) -> str:
    """The name of the method's on-policy base."""
    return _method(data, name)["reference"]


def _method(data: Data, name: str) -> Mapping[str, str]:
    return next(method for method in data["methods"] if method["name"] == name)


def families(data: Data) -> dict[str, list[str]]:
    """On-policy base -> its methods, itself first, otherwise in the order of the file."""
    grouped: dict[str, list[str]] = {}
    for method in data["methods"]:
        grouped.setdefault(method["reference"], [method["reference"]])
        if method["name"] != method["reference"]:
            grouped[method["reference"]].append(method["name"])
    return grouped


def settings(data: Data) -> list[str]:
    """The settings that there are: equal, and best where more than one rate was tried."""
    return [EQUAL, BEST] if len(data["learning_rates"]) > 1 else [EQUAL]


def learning_rate(data: Data, name: str, which: str) -> float:
    """The learning rate of a method in a setting ("equal" or "best")."""
    return data["equal_learning_rate"] if which == EQUAL else best_learning_rate(data, name)


def setting(data: Data, name: str, which: str) -> dict[int, Trial]:
    """The trials of a method in a setting ("equal" or "best"), by seed in ascending order."""
    return _at(data, name, learning_rate(data, name, which))


def _at(data: Data, name: str, rate: float) -> dict[int, Trial]:
    there = {
        trial["seed"]: trial
        for trial in data["trials"]
        if trial["method"] == name and trial["learning_rate"] == rate
    }
    return dict(sorted(there.items()))


def bases(data: Data) -> list[str]:
    """The base models, in the order of their first seeds."""
    by_seed = sorted((trial["seed"], trial["base"]) for trial in data["trials"])
    return list(dict.fromkeys(base for _, base in by_seed))


# Selection


def best_learning_rate(data: Data, name: str) -> float:
    """The rate with the greatest mean validation accuracy over budget and selection seeds.

    Raises:
      InputError: more than one rate, and one of the trials needed is not there or without
        validation accuracy.
    """
    rates = data["learning_rates"]
    if len(rates) == 1:
        return rates[0]
    _check_grid(data, [name])
    return max(rates, key=lambda rate: float(np.mean(list(validation(data, name, rate).values()))))


def validation(data: Data, name: str, rate: float) -> dict[int, float]:
    """Mean validation accuracy over the budget, by selection seed.

    The area under the curve of validation accuracy against fresh rollouts (trapezoids), divided by
    the budget: the most rollouts of any of the method's trials. A run that broke off before counts
    as 0 from there, so that a rate at which training breaks is not chosen for its first steps.
    """
    own = [trial for trial in data["trials"] if trial["method"] == name]
    budget = max(trial["curve"]["rollouts"][-1] for trial in own)
    areas = {}
    for seed, trial in _at(data, name, rate).items():
        if seed in data["selection_seeds"]:
            curve = trial["curve"]
            areas[seed] = float(np.trapezoid(curve["validation"], curve["rollouts"])) / budget
    return areas


def edge(data: Data, name: str) -> str | None:
    """ "smallest" or "greatest" where the best rate is at an edge of the grid, else None."""
    best, rates = best_learning_rate(data, name), data["learning_rates"]
    if len(rates) < 2 or min(rates) < best < max(rates):
        return None
    return "smallest" if best == min(rates) else "greatest"


# Crossings and ratios


def has(data: Data, key: str) -> bool:
    """Whether every trial has the list `key` in its curve; otherwise tables leave it out."""
    return all(key in trial["curve"] for trial in data["trials"])


def crossings(
    data: Data, name: str, which: str, level: float, x: str = "rollouts"
) -> dict[int, float | None]:
    """What each seed spent until its held-out accuracy reached the level; None where it never did.

    The rule is that of `report.rollouts_to`: confirmed by the next evaluation, interpolated.
    """
    return {
        seed: report.crossing(trial["curve"][x], trial["curve"]["accuracy"], level)
        for seed, trial in setting(data, name, which).items()
    }


def ratios(
    data: Data, name: str, which: str, level: float, x: str = "rollouts"
) -> dict[int, float | None]:
    """On-policy base / method, of what it took to reach the level, for the seeds that both have."""
    own = crossings(data, name, which, level, x)
    base = crossings(data, reference(data, name), which, level, x)
    return {seed: times(base[seed], own[seed]) for seed in own if seed in base}


def times(base: float | None, own: float | None) -> float | None:
    """How many times less `own` took than `base`.

    A run that never reaches the level took infinitely much: infinity where only `own` reached it,
    0 where only `base` did. None (no answer) where neither did or one of them began there.
    """
    if base == 0 or own == 0 or (base is None and own is None):
        return None
    if base is None or own is None:
        return float("inf") if base is None else 0.0
    return base / own


def ratio(
    data: Data, name: str, which: str, level: float, x: str = "rollouts"
) -> bootstrap.Interval | None:
    """Median over seeds of `ratios`, with its interval."""
    return bootstrap.median(list(ratios(data, name, which, level, x).values()))


def ratios_by_base(
    data: Data, name: str, which: str, level: float
) -> dict[str, bootstrap.Interval | None]:
    """The ratio of rollouts for each base model by itself."""
    trials = setting(data, name, which)
    grouped: dict[str, list[float | None]] = defaultdict(list)
    for seed, value in ratios(data, name, which, level).items():
        grouped[trials[seed]["base"]].append(value)
    return {base: bootstrap.median(grouped[base]) for base in bases(data)}


def break_even(data: Data, name: str, which: str) -> bootstrap.Interval | None:
    """A model: added seconds a rollout above which the method reaches the target before its base.

    Seed by seed (own seconds - base's seconds) / (base's rollouts - own rollouts), at least 0; only
    over the seeds where both reached the target and the method with fewer rollouts.
    """
    target, base = data["target"], reference(data, name)
    own_r, own_s, base_r, base_s = (
        crossings(data, method, which, target, x)
        for method in (name, base)
        for x in ("rollouts", "seconds")
    )
    return bootstrap.median(
        [
            _break_even(base_r[seed], base_s[seed], own_r[seed], own_s[seed])
            for seed in own_r
            if seed in base_r
        ]
    )


def _break_even(
    base: float | None, base_seconds: float | None, own: float | None, own_seconds: float | None
) -> float | None:
    if base is None or base_seconds is None or own is None or own_seconds is None or own >= base:
        return None
    return max(0.0, (own_seconds - base_seconds) / (base - own))


def accuracies(trials: Iterable[Trial], key: str, best: bool) -> list[float]:
    """Last or greatest accuracy of each trial; `key` is "accuracy" or the name of a suite."""
    curves = [
        trial["curve"]["accuracy"] if key == "accuracy" else trial["curve"]["suites"][key]
        for trial in trials
    ]
    return [max(values) if best else values[-1] for values in curves]


def suites(data: Data) -> list[str]:
    """The held-out suites that every trial has, in the order of the first trial."""
    first, *others = [trial["curve"].get("suites", {}) for trial in data["trials"]]
    return [name for name in first if all(name in other for other in others)]
