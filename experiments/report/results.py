"""Results as they are stored: JSON files, records of runs, the best learning rate of a method."""

import functools
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from experiments.tables import rate_text
from remix_jax.errors import InputError
from remix_jax.run import report
from remix_jax.sinks.metrics import Metrics

COSTS = ("rollouts", "tokens", "flops", "seconds")
VALIDATION = "validation/"
Data = Mapping[str, Any]
Curve = dict[str, np.ndarray]
Values = Any  # a list or an array of numbers


def significant(value: float, digits: int = 5) -> float:
    """The number with so many significant digits; whole numbers become int, which is shorter."""
    rounded = float(f"{value:.{digits}g}")
    return int(rounded) if rounded.is_integer() else rounded


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


def read_json(path: pathlib.Path) -> Data:
    """Reads what `write_json` wrote.

    Raises:
      InputError: no such file, or no JSON object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected a JSON file of results ({error})") from None
    if not isinstance(data, dict):
        raise InputError(f"{path}: expected a JSON object of results")
    return data


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
    accuracy: str = report.ACCURACY,
    paid: float = 0.0,
    broken: bool = False,
    **identity: Any,
) -> dict[str, Any]:
    """What is kept of one run: who it is, and the curves of its evaluations.

    Args:
      metrics: one run, in order of steps. Used are the steps with a held-out evaluation: rollouts,
        tokens, flops and seconds so far, eval/<suite>, eval/response_length, and validation/<name>
        (several are averaged).
      accuracy: the metric that is the run's accuracy.
      paid: FLOPs spent for the run before training that its own count leaves out.
      broken: the run ended before its last step, by a loss that is not finite.
      **identity: method, learning_rate, seed, and base, the name of the base model.
    Returns:
      The identity, "broken": true where it is, and curve: lists over the evaluations, numbers to 5
      significant digits. A list is left out where the run has no such metric at all.
    Raises:
      InputError: no evaluation, or one without a metric that other evaluations have.
    """
    where = ", ".join(f"{name} {value}" for name, value in identity.items())
    steps = [step for step in metrics if accuracy in step]
    if not steps:
        raise InputError(f"{where}: no step with {accuracy}; expected an evaluated run")
    if paid:
        steps = [step | {"flops": step["flops"] + paid} for step in steps]
    keys = {"rollouts": "rollouts", "accuracy": accuracy} | {name: name for name in COSTS}
    keys["response_length"] = "eval/response_length"
    found = {name: column(steps, key, where) for name, key in keys.items()}
    curve: dict[str, Any] = {name: values for name, values in found.items() if values is not None}
    if "rollouts" not in curve:
        raise InputError(f"{where}: no rollouts in the evaluations")
    names = dict.fromkeys(key for step in steps for key in step if key.startswith(VALIDATION))
    if names:
        points = zip(*(column(steps, key, where) or () for key in names), strict=True)
        curve["validation"] = [significant(math.fsum(point) / len(point)) for point in points]
    suites = report.suites(steps)
    curve["suites"] = {key.removeprefix("eval/"): column(steps, key, where) for key in suites}
    return identity | ({"broken": True} if broken else {}) | {"curve": curve}


# Methods over a grid of learning rates


class Tuned:
    """Trials of several methods that were tuned alike, each over the same learning rates.

    A run that broke off counts as 0 from there to where the other runs of its method end, in
    everything that is computed from `trials`: no divergence is rewarded for its first steps.

    Attributes:
      data: the stored results, with "methods" ({"name", "label", ...}), "learning_rates",
        "selection_seeds" and "trials" (of `record`).
      names: the methods, in the order of the file.
      trials: a row a trial: method, learning_rate, seed, base, and curve (name -> array, the
        suites as eval/<suite>), in ascending order of the seed.
    """

    kind = "results"
    cost = "rollouts"  # that learning rates are compared at

    def __init__(self, data: Data):
        """Checks the trials.

        Raises:
          InputError: a trial that is there twice, methods that were not tried at the same rates on
            the same seeds, or a seed that stands for two base models.
        """
        self.data = data
        self.names = [method["name"] for method in data["methods"]]
        columns = ["method", "learning_rate", "seed", "base", "curve"]
        rows = [trial | {"curve": self._arrays(trial)} for trial in data["trials"]]
        self.trials = pd.DataFrame(rows, columns=columns).sort_values("seed", kind="stable")
        twice = self.trials[self.trials.duplicated(["method", "learning_rate", "seed"])]
        for trial in twice.to_dict("records"):
            raise InputError(
                f"{self.kind}: {trial['method']} at {rate_text(trial['learning_rate'])}, seed "
                f"{trial['seed']} is there twice"
            )
        for seed, bases in self.trials.groupby("seed")["base"].unique().items():
            if len(bases) > 1:
                raise InputError(
                    f"{self.kind}: trials of seed {seed} start from {' and '.join(bases)}; they "
                    "are paired and need one base"
                )
        if len(data["learning_rates"]) > 1:
            self._check_grid()

    def _check_grid(self) -> None:
        seeds = self.data["selection_seeds"]
        for name in self.names:
            for rate in self.data["learning_rates"]:
                curves = self.at(name, rate)["curve"]
                there = [seed for seed, curve in curves.items() if "validation" in curve]
                missing = [str(seed) for seed in seeds if seed not in there]
                if missing or not seeds:
                    raise InputError(
                        f"{self.kind}: {name!r} has no trial with validation accuracy at learning "
                        f"rate {rate_text(rate)} for selection seed "
                        f"{', '.join(missing) or '(none named)'}; all methods need the same"
                    )

    def _arrays(self, trial: Data) -> Curve:
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

    def method(self, name: str) -> Mapping[str, Any]:
        """The method's entry in the file.

        Raises:
          InputError: there is none.
        """
        for method in self.data["methods"]:
            if method["name"] == name:
                return method
        raise InputError(f"{self.kind}: no method {name!r} among {', '.join(self.names)}")

    def label(self, name: str) -> str:
        """The method's name for people."""
        return self.method(name)["label"]

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

        def mean(curve: Curve) -> float:
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


def value_at(xs: Values, ys: Values, at: float) -> float:
    """The polyline through (xs, ys), xs ascending, at one x; NaN outside it."""
    return float(np.interp(at, xs, ys, left=math.nan, right=math.nan)) if len(xs) else math.nan


def spent(xs: Values, ys: Values, level: float) -> float:
    """The x at which the curve reaches a level, by `report.crossing`; infinity if it never does."""
    found = report.crossing(xs, ys, level)
    return math.inf if found is None else float(found)
