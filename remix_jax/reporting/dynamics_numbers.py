"""What follows from the trials of dynamics.json. Pure functions."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from remix_jax.errors import InputError
from remix_jax.reporting import bootstrap, records
from remix_jax.run import report

KEYS = ("about", "levels", "panels", "trials", "findings")
BUDGET = 1024  # rollouts at which early accuracy is read
VERDICTS = ("seen", "not seen", "reversed")
Data = Mapping[str, Any]
Trial = Mapping[str, Any]


def check(data: Data) -> None:
    """Raises InputError unless every arm has trials and every trial an arm."""
    records.require_keys(data, KEYS, "dynamics")
    arms = [(panel["name"], arm["name"]) for panel in data["panels"] for arm in panel["arms"]]
    if not arms:
        raise InputError("dynamics: expected at least one panel with an arm")
    doubled = {arm for arm in arms if arms.count(arm) > 1}
    if doubled:
        raise InputError(f"dynamics: {sorted(doubled)[0]} is there twice")
    there = [(trial["panel"], trial["arm"], trial["seed"]) for trial in data["trials"]]
    for panel, arm in arms:
        if not any(key[:2] == (panel, arm) for key in there):
            raise InputError(f"dynamics: panel {panel!r}, arm {arm!r} has no trial")
    for key in there:
        if key[:2] not in arms:
            raise InputError(f"dynamics: a trial of {key[0]!r}, {key[1]!r}: no such panel and arm")
        if there.count(key) > 1:
            raise InputError(f"dynamics: {key[0]}, {key[1]}, seed {key[2]} is there twice")
    for finding in data["findings"]:
        if finding["verdict"] not in VERDICTS:
            raise InputError(
                f"dynamics: verdict {finding['verdict']!r} of {finding['claim']!r}; expected one "
                f"of {', '.join(VERDICTS)}"
            )


def trials(data: Data, panel: str, arm: str) -> list[Trial]:
    """The trials of an arm, by seed in ascending order."""
    own = [t for t in data["trials"] if t["panel"] == panel and t["arm"] == arm]
    return sorted(own, key=lambda trial: trial["seed"])


def series(trial: Trial, name: str) -> bootstrap.Curve:
    """(rollouts, values) of a series; empty where the run does not have it."""
    found = trial["series"].get(name, {"rollouts": [], "value": []})
    return found["rollouts"], found["value"]


def band(own: Sequence[Trial], name: str) -> bootstrap.Band:
    """Median and interval of a series over the seeds."""
    return bootstrap.band([series(trial, name) for trial in own])


def reached(own: Sequence[Trial], level: float) -> bootstrap.Interval | None:
    """Fresh rollouts to the level, over seeds; never counts as infinity."""
    spent = [report.crossing(*series(trial, report.ACCURACY), level) for trial in own]
    return bootstrap.median(spent, missing=math.inf)


# Numbers of one trial; None where it does not have the series


def mean(trial: Trial, name: str) -> float | None:
    """Mean over the run."""
    _, values = series(trial, name)
    return math.fsum(values) / len(values) if values else None


def last(trial: Trial, name: str) -> float | None:
    """The last value."""
    _, values = series(trial, name)
    return values[-1] if values else None


def greatest(trial: Trial, name: str) -> float | None:
    """The greatest value."""
    _, values = series(trial, name)
    return max(values, default=None)


def at_budget(trial: Trial, name: str) -> float | None:
    """The value at 1,024 fresh rollouts, linear between points; None outside the run."""
    return report.interpolate(*series(trial, name), BUDGET)


def oldest_mean(trial: Trial, name: str) -> float | None:
    """Mean over the run, of the rows of the greatest age that the run has."""
    found = ages([trial])
    return mean(trial, f"{name}/age{found[-1]}") if found else None


def ages(own: Sequence[Trial]) -> list[int]:
    """Ages of rows of which any of the trials has ratios."""
    names = {name for trial in own for name in trial["series"] if name.startswith("ratio_mean/age")}
    return sorted(int(name.rpartition("/age")[2]) for name in names)
