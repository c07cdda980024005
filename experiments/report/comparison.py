"""Several methods against each other, over seeds and base models: settings, crossings, ratios.

Nothing derived is stored: tables and figures follow from the content of comparison.json.
"""

import functools

import numpy as np
import pandas as pd

from experiments.report.intervals import Interval, median
from experiments.report.results import Data, Tuned, spent

EQUAL, BEST = "equal", "best"


class Comparison(Tuned):
    """The content of comparison.json and what follows from it.

    A setting is "equal" (all methods at the equal learning rate) or "best" (each at its own).

    Attributes:
      data: as of `Tuned`, with "levels", "target" and "equal_learning_rate"; a method has its
        base, "reference", as well: the on-policy method, which is its own, or what is adapted.
      families: base -> its methods, itself first, otherwise in the order of the file.
      settings: equal, and best where more than one rate was tried.
      bases: the base models, in the order of their first seeds.
      suites: the held-out suites that every trial has, in the order of the first trial.
    """

    kind = "comparison"

    def __init__(self, data: Data):
        """Checks the data as `Tuned` does, and that every on-policy base is there."""
        super().__init__(data)
        self.target: float = data["target"]
        self.families: dict[str, list[str]] = {}
        for base in dict.fromkeys(map(self.reference, self.names)):
            others = [n for n in self.names if self.reference(n) == base != n]
            self.families[base] = [base, *others]
        self.settings = [EQUAL, BEST] if len(data["learning_rates"]) > 1 else [EQUAL]
        self.bases: list[str] = list(dict.fromkeys(self.trials["base"]))
        names = [name for name in self.trials["curve"].iloc[0] if name.startswith("eval/")]
        self.suites = [name.removeprefix("eval/") for name in names if self.has(name)]

    def reference(self, name: str) -> str:
        """The name of the method's on-policy base."""
        return self.method(name)["reference"]

    def is_base(self, name: str) -> bool:
        """Whether the method is an on-policy base."""
        return self.reference(name) == name

    def has(self, key: str) -> bool:
        """Whether every trial has the list `key` in its curve; otherwise tables leave it out."""
        return all(key in curve for curve in self.trials["curve"])

    def rate(self, name: str, setting: str) -> float:
        """The learning rate of a method in a setting."""
        return self.data["equal_learning_rate"] if setting == EQUAL else self.best[name]

    @functools.cache  # noqa: B019 (lives as long as the few comparisons of a process)
    def runs(self, name: str, setting: str) -> pd.DataFrame:
        """The trials of a method in a setting, by seed."""
        return self.at(name, self.rate(name, setting))

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

    def ratios_by_base(self, name: str, setting: str, level: float) -> dict[str, Interval | None]:
        """The median ratio of rollouts for each base model by itself."""
        found = self.ratios(name, setting, level)
        of_seed = self.runs(name, setting)["base"]
        return {base: median(found[of_seed[found.index] == base]) for base in self.bases}

    def break_even(self, name: str, setting: str) -> Interval | None:
        """A model: added seconds a rollout from which the method is first to reach the target.

        Seed by seed (own seconds - base's seconds) / (base's rollouts - own rollouts), at least 0;
        only over the seeds where both reached the target and the method with fewer rollouts.
        """
        rollouts, seconds = (
            [self.crossings(n, setting, self.target, x) for n in (name, self.reference(name))]
            for x in ("rollouts", "seconds")
        )
        both = rollouts[0].index.intersection(rollouts[1].index)
        saved = rollouts[1][both] - rollouts[0][both]
        more = (seconds[0][both] - seconds[1][both]).clip(lower=0)
        return median((more / saved).where((saved > 0) & np.isfinite(saved)))

    def accuracies(self, name: str, setting: str, key: str, best: bool = False) -> pd.Series:
        """Last or greatest accuracy by seed; `key` is "accuracy" or eval/<suite>."""
        curves = self.runs(name, setting)["curve"]
        return curves.map(lambda curve: curve[key].max() if best else curve[key][-1])
