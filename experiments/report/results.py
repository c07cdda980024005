"""Results as they are stored: the records of runs, their checks, and the best learning rate."""

import functools
import json
import math
import pathlib
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from experiments.report.tables import rate_text
from remix_jax.errors import InputError
from remix_jax.run import report
from remix_jax.sinks.metrics import Metrics

COSTS = ("rollouts", "tokens", "flops", "seconds")
VALIDATION = "validation/"
Data = Mapping[str, Any]


def significant(value: float, digits: int = 5) -> float:
    """The number with so many significant digits; whole numbers become int, which is shorter."""
    rounded = float(f"{value:.{digits}g}")
    return int(rounded) if rounded.is_integer() else rounded


# Files


def write_json(data: Data, path: pathlib.Path) -> None:
    """Writes a dict, one key a line and each item of "trials" on a line of its own.

    Raises:
      InputError: a number in it is not finite.
    """
    text = functools.partial(json.dumps, ensure_ascii=False, allow_nan=False)
    try:
        lines = [
            f"{text(key)}: [\n" + ",\n".join(map(text, value)) + "\n]"
            if key == "trials"
            else f"{text(key)}: {text(value)}"
            for key, value in data.items()
        ]
    except ValueError:
        raise InputError(f"{path}: a number is not finite, which JSON cannot hold") from None
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def read_json(path: pathlib.Path) -> Any:
    """Reads what `write_json` wrote.

    Raises:
      InputError: no such file, or no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected a JSON file of results ({error})") from None


def require_keys(data: Any, keys: Sequence[str], where: object) -> None:
    """Raises InputError unless `data` is a dict with all of the keys."""
    if not isinstance(data, dict):
        raise InputError(f"{where}: expected a JSON object with {', '.join(keys)}")
    missing = [key for key in keys if key not in data]
    if missing:
        raise InputError(f"{where}: {', '.join(missing)} missing; expected {', '.join(keys)}")


def require_unique(
    found: Sequence[Hashable], where: str, name: Callable[[Any], str] = str
) -> None:
    """Raises InputError where an item is there twice."""
    twice = pd.Series(found, dtype=object)
    twice = twice[twice.duplicated()]
    if len(twice):
        raise InputError(f"{where}: {name(twice.iloc[0])} is there twice")


# Records of runs


def column(steps: Sequence[Metrics], key: str, where: str) -> list[float] | None:
    """A figure of some steps to 5 significant digits; None where no step has it.

    Raises:
      InputError: some have it and some do not, or it is not finite.
    """
    found = [step[key] for step in steps if key in step]
    if not found:
        return None
    if len(found) < len(steps) or not all(map(math.isfinite, found)):
        raise InputError(
            f"{where}: {key} must be a finite number in all of the {len(steps)} evaluations or in "
            "none"
        )
    return [significant(value) for value in found]


def record(
    metrics: Sequence[Metrics],
    *,
    method: str,
    learning_rate: float,
    seed: int,
    base: str,
    broken: bool = False,
) -> dict[str, Any]:
    """What a comparison's JSON keeps of one run.

    Args:
      metrics: one run, in order of steps. Used are the steps with a held-out evaluation: rollouts,
        tokens, flops and seconds so far, eval/mean, eval/<suite>, eval/response_length, and
        validation/<name> (several are averaged).
      base: the name of the base model that the run began with.
      broken: it ended before its last step, by a loss that is not finite.
    Returns:
      method, learning_rate, seed, base and curve: lists over the evaluations, numbers to 5
      significant digits. A list is left out where the run has no such metric at all. "broken" is
      there, and true, only in the record of a broken run.
    Raises:
      InputError: no evaluation, or one without a metric that other evaluations have.
    """
    where = f"comparison: {method} at {learning_rate:g}, seed {seed}"
    steps = [step for step in metrics if report.ACCURACY in step]
    if not steps:
        raise InputError(f"{where}: no step with {report.ACCURACY}; expected an evaluated run")
    keys = {"rollouts": "rollouts", "accuracy": report.ACCURACY}
    keys |= {name: name for name in COSTS} | {"response_length": "eval/response_length"}
    found = {name: column(steps, key, where) for name, key in keys.items()}
    if found["rollouts"] is None:
        raise InputError(f"{where}: no rollouts in the evaluations")
    curve: dict[str, Any] = {name: values for name, values in found.items() if values is not None}
    names = dict.fromkeys(key for step in steps for key in step if key.startswith(VALIDATION))
    if names:
        points = zip(*(column(steps, key, where) or () for key in names), strict=True)
        curve["validation"] = [significant(math.fsum(point) / len(point)) for point in points]
    suites = report.suites(steps)
    curve["suites"] = {key.removeprefix("eval/"): column(steps, key, where) for key in suites}
    identity = {"method": method, "learning_rate": learning_rate, "seed": seed, "base": base}
    return identity | ({"broken": True} if broken else {}) | {"curve": curve}


# Methods over a grid of learning rates


class Tuned:
    """Trials of several methods that were tuned alike, each over the same learning rates.

    A run that broke off counts as 0 from there to where the other runs of its method end, in
    everything that is computed from `trials`: no divergence is rewarded for its first steps.

    Attributes:
      data: the stored results, with "methods" ({"name", "label", ...}), "learning_rates",
        "selection_seeds" and "trials" (method, learning_rate, seed, curve).
      names: the methods, in the order of the file.
      trials: a row a trial: method, learning_rate, seed, base, and curve (name -> array, the
        suites as eval/<suite>).
    """

    kind = "results"
    cost = "rollouts"  # that learning rates are compared at

    def __init__(self, data: Data):
        """Checks the trials.

        Raises:
          InputError: a trial that is there twice or of an unknown method, or methods that were not
            tried at the same rates on the same seeds.
        """
        self.data = data
        self.names = [method["name"] for method in data["methods"]]
        self._check_trials(data["trials"])
        if len(data["learning_rates"]) > 1:
            self._check_grid()
        self.trials = pd.DataFrame(
            [{**trial, "curve": self._arrays(trial)} for trial in data["trials"]],
            columns=["method", "learning_rate", "seed", "base", "curve"],
        ).sort_values("seed", kind="stable")

    def _check_trials(self, trials: Sequence[Data]) -> None:
        if not self.names:
            raise InputError(f"{self.kind}: expected at least one method")
        for trial in trials:
            where = f"{self.kind}: {trial_name(trial)}"
            if trial["method"] not in self.names:
                raise InputError(f"{where}: the method is none of {', '.join(self.names)}")
            if trial["learning_rate"] not in self.data["learning_rates"]:
                raise InputError(f"{where}: the learning rate is not in learning_rates")
            if not trial["curve"]["rollouts"]:
                raise InputError(f"{where} has no evaluation")
        require_unique([trial_name(trial) for trial in trials], self.kind)

    def _check_grid(self) -> None:
        """Every method was tried at every rate on every selection seed, with validation accuracy."""
        found = {(t["method"], t["learning_rate"], t["seed"]): t for t in self.data["trials"]}
        seeds = self.data["selection_seeds"]
        for name in self.names:
            for rate in self.data["learning_rates"]:
                missing = [seed for seed in seeds if (name, rate, seed) not in found]
                if missing or not seeds:
                    raise InputError(
                        f"{self.kind}: {name!r} has no trial at learning rate {rate_text(rate)} "
                        f"for selection seed {', '.join(map(str, missing)) or '(none named)'}; all "
                        "methods need the same rates and seeds"
                    )
                for seed in seeds:
                    if "validation" not in found[name, rate, seed]["curve"]:
                        raise InputError(
                            f"{self.kind}: {trial_name(found[name, rate, seed])} has no validation "
                            "accuracy, by which the learning rate is selected"
                        )

    def _arrays(self, trial: Data) -> dict[str, np.ndarray]:
        """The curve as arrays, of a broken run with 0 from its end to the end of the longest."""
        curve = {name: values for name, values in trial["curve"].items() if name != "suites"}
        curve |= {f"eval/{name}": ys for name, ys in trial["curve"].get("suites", {}).items()}
        arrays = {name: np.array(values, float) for name, values in curve.items()}
        if not trial.get("broken"):
            return arrays
        own = [t["curve"] for t in self.data["trials"] if t["method"] == trial["method"]]
        for name, values in arrays.items():
            more = [0.0, 0.0]
            if name in COSTS:
                after = np.nextafter(values[-1], np.inf)
                more = [after, max(np.nextafter(after, np.inf), *(c[name][-1] for c in own))]
            arrays[name] = np.append(values, more)
        return arrays

    def label(self, name: str) -> str:
        """The method's name for people."""
        return self.method(name)["label"]

    def method(self, name: str) -> Mapping[str, Any]:
        """The method's entry in the file."""
        return next(method for method in self.data["methods"] if method["name"] == name)

    def at(self, name: str, rate: float) -> pd.DataFrame:
        """The trials of a method at a learning rate, by seed in ascending order."""
        own = (self.trials["method"] == name) & (self.trials["learning_rate"] == rate)
        return self.trials[own].set_index("seed")

    def validation(self, name: str, rate: float) -> pd.Series:
        """Mean validation accuracy over the budget, by selection seed.

        The area under the curve of validation accuracy against `cost` (trapezoids; against FLOPs
        for a method that samples nothing) up to the budget, divided by the budget: the most that
        any of the method's trials spent, or less where the data say so. From where a run broke off
        it counts as 0.
        """
        own = self.trials.loc[self.trials["method"] == name, "curve"]
        x = self.cost if own.map(lambda curve: curve[self.cost][-1]).max() >= 1 else "flops"
        budget = min(own.map(lambda curve: curve[x][-1]).max(), self.data.get("budget", math.inf))

        def mean(curve: dict[str, np.ndarray]) -> float:
            xs, ys = curve[x], curve["validation"]
            end = min(xs[-1], budget)
            inside = xs < end
            ys = np.append(ys[inside], np.interp(end, xs, ys))
            return float(np.trapezoid(ys, np.append(xs[inside], end))) / budget

        chosen = self.at(name, rate)["curve"]
        return chosen[chosen.index.isin(self.data["selection_seeds"])].map(mean)

    @functools.cached_property
    def best(self) -> dict[str, float]:
        """Each method's best learning rate: the one with the greatest `validation`, mean of seeds.

        Of equal ones the smallest.
        """
        rates = sorted(self.data["learning_rates"])
        if len(rates) == 1:
            return dict.fromkeys(self.names, rates[0])
        return {
            name: max(rates, key=lambda rate: self.validation(name, rate).mean())
            for name in self.names
        }


def trial_name(trial: Data) -> str:
    """A trial in words, for messages."""
    return f"{trial['method']} at {rate_text(trial['learning_rate'])}, seed {trial['seed']}"


def value_at(xs: Collection[float], ys: Collection[float], at: float) -> float:
    """The polyline through (xs, ys), xs ascending, at one x; NaN outside it."""
    return float(np.interp(at, xs, ys, left=math.nan, right=math.nan)) if len(xs) else math.nan


def spent(xs: Sequence[float], ys: Sequence[float], level: float) -> float:
    """The x at which the curve reaches the level (`report.crossing`); infinity where it never does."""
    found = report.crossing(xs, ys, level)
    return math.inf if found is None else float(found)
