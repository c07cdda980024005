"""Several methods against each other, over seeds and base models: settings, crossings, ratios.

Nothing derived is stored: tables and figures follow from the content of comparison.json.
"""

import functools
from collections.abc import Sequence

import numpy as np
import pandas as pd

from experiments.report.intervals import Interval, median
from experiments.report.results import Data, Tuned, spent, trial_name
from experiments.report.tables import rate_text
from remix_jax.errors import InputError

KEYS = (
    "about", "levels", "target", "equal_learning_rate", "learning_rates", "methods",
    "selection_seeds", "trials",
)  # fmt: skip
EQUAL, BEST = "equal", "best"
ROLLOUTS, TIME = "rollouts", "seconds"


class Comparison(Tuned):
    """The content of comparison.json and what follows from it.

    A setting is "equal" (all methods at the equal learning rate) or "best" (each at its own).

    Attributes:
      families: on-policy base -> its methods, itself first, otherwise in the order of the file.
      settings: equal, and best where more than one rate was tried.
      bases: the base models, in the order of their first seeds.
      suites: the held-out suites that every trial has, in the order of the first trial.
    """

    kind = "comparison"

    def __init__(self, data: Data):
        """Checks that every number of tables and figures can be computed, and fairly.

        Raises:
          InputError: it cannot; methods were tuned over different learning rates or seeds, or one
            seed stands for two base models.
        """
        super().__init__(data)
        self.target: float = data["target"]
        for name in self.names:
            if self.reference(name) not in self.names or self._reference_of_reference(name):
                raise InputError(
                    f"comparison: the reference of {name!r} is {self.reference(name)!r}; expected "
                    "a method that is its own reference"
                )
        equal = data["equal_learning_rate"]
        if equal not in data["learning_rates"]:
            raise InputError(
                f"comparison: equal_learning_rate {rate_text(equal)} is not in learning_rates "
                f"{', '.join(map(rate_text, data['learning_rates']))}"
            )
        for name in self.names:
            if self.at(name, equal).empty:
                raise InputError(
                    f"comparison: {name!r} has no trial at the equal learning rate "
                    f"{rate_text(equal)}"
                )
        self.families: dict[str, list[str]] = {
            base: [base, *(n for n in self.names if self.reference(n) == base != n)]
            for base in dict.fromkeys(map(self.reference, self.names))
        }
        self.settings = [EQUAL, BEST] if len(data["learning_rates"]) > 1 else [EQUAL]
        self.bases: list[str] = list(dict.fromkeys(self.trials["base"]))
        curves = self.trials["curve"]
        self.suites = [
            name.removeprefix("eval/")
            for name in curves.iloc[0]
            if name.startswith("eval/") and all(name in curve for curve in curves)
        ]

    def _check_trials(self, trials: Sequence[Data]) -> None:
        super()._check_trials(trials)
        bases: dict[int, str] = {}
        for trial in trials:
            base = bases.setdefault(trial["seed"], trial["base"])
            if base != trial["base"]:
                raise InputError(
                    f"comparison: {trial_name(trial)} starts from {trial['base']!r}, another trial "
                    f"of that seed from {base!r}; trials of one seed are paired and need one base"
                )

    def _reference_of_reference(self, name: str) -> bool:
        return self.reference(self.reference(name)) != self.reference(name)

    def reference(self, name: str) -> str:
        """The name of the method's on-policy base."""
        return self.method(name)["reference"]

    def is_base(self, name: str) -> bool:
        """Whether the method is an on-policy base."""
        return self.reference(name) == name

    def rate(self, name: str, setting: str) -> float:
        """The learning rate of a method in a setting."""
        return self.data["equal_learning_rate"] if setting == EQUAL else self.best[name]

    @functools.cache  # noqa: B019 (lives as long as the few comparisons of a process)
    def runs(self, name: str, setting: str) -> pd.DataFrame:
        """The trials of a method in a setting, by seed."""
        return self.at(name, self.rate(name, setting))

    def edge(self, name: str) -> str | None:
        """ "smallest" or "greatest" where the best rate is at an edge of the grid, else None."""
        best, rates = self.best[name], self.data["learning_rates"]
        if len(rates) < 2 or min(rates) < best < max(rates):
            return None
        return "smallest" if best == min(rates) else "greatest"

    def has(self, key: str) -> bool:
        """Whether every trial has the list `key` in its curve; otherwise tables leave it out."""
        return all(key in curve for curve in self.trials["curve"])

    @functools.cache  # noqa: B019
    def crossings(self, name: str, setting: str, level: float, x: str = "rollouts") -> pd.Series:
        """What each seed spent until its held-out accuracy reached the level, or infinity."""
        curves = self.runs(name, setting)["curve"]
        return curves.map(lambda curve: spent(curve[x], curve["accuracy"], level))

    def ratios(
        self, name: str, setting: str, level: float, x: str = "rollouts", base: str = ""
    ) -> pd.Series:
        """Base / method in what it took to reach the level, for the seeds that both have.

        A run that never reaches the level took infinitely much: infinity where only the method
        reached it, 0 where only the base did. NaN (no answer) where neither did, or where one of
        them began there.

        Args:
          base: any other method; by default the method's on-policy base.
        """
        own = self.crossings(name, setting, level, x)
        other = self.crossings(base or self.reference(name), setting, level, x)
        both = own.index.intersection(other.index)
        own, other = own[both], other[both]
        return (other / own).where((own > 0) & (other > 0))

    def ratio(
        self, name: str, setting: str, level: float, x: str = "rollouts", base: str = ""
    ) -> Interval | None:
        """Median over seeds of `ratios`, with its interval."""
        return median(self.ratios(name, setting, level, x, base))

    def ratios_by_base(self, name: str, setting: str, level: float) -> dict[str, Interval | None]:
        """The ratio of rollouts for each base model by itself."""
        found = self.ratios(name, setting, level)
        of_seed = self.runs(name, setting)["base"]
        return {base: median(found[of_seed[found.index] == base]) for base in self.bases}

    def break_even(self, name: str, setting: str) -> Interval | None:
        """A model: added seconds a rollout above which the method reaches the target before its base.

        Seed by seed (own seconds - base's seconds) / (base's rollouts - own rollouts), at least 0;
        only over the seeds where both reached the target and the method with fewer rollouts.
        """
        own, base = (
            pd.DataFrame({x: self.crossings(n, setting, self.target, x) for x in (ROLLOUTS, TIME)})
            for n in (name, self.reference(name))
        )
        both = own.index.intersection(base.index)
        own, base = own.loc[both], base.loc[both]
        saved = (base - own)[ROLLOUTS].where(np.isfinite(base[ROLLOUTS]))
        return median(((own - base)[TIME].clip(lower=0) / saved).where(saved > 0))

    def accuracies(self, name: str, setting: str, key: str, best: bool = False) -> pd.Series:
        """Last or greatest accuracy by seed; `key` is "accuracy" or eval/<suite>."""
        curves = self.runs(name, setting)["curve"]
        return curves.map(lambda curve: curve[key].max() if best else curve[key][-1])


