"""Methods side by side at equal tuning freedom: accuracy against what it cost, tables, figures.

    python -m experiments.compare                       the full comparison: under 45 min on 2 cores
    python -m experiments.compare --quick               PPO and ReMix-PPO alone: under 6 min
    python -m experiments.compare --config=MINE.py --models=A,B,C --methods=ppo,remix-ppo

Every method gets the same grid of learning rates and the same trials on it: seeds 0 to --tuning - 1
at every rate. The rate with the best validation accuracy, averaged over the run, is the method's
own best; that one and the equal rate (the first of the grid) then get all seeds. Seed s trains from
base model s mod --bases, the same for every method, so that ratios pair runs by seed. Reported are
held-out suites, which no choice has seen. Runs that are complete in the workdir are not repeated.
"""

import dataclasses
import pathlib
import sys
import time

from absl import flags
from rich.console import Console as Terminal

from experiments import config_flag, main, trials
from experiments.arithmetic import bases
from experiments.methods import COMPARED, METHODS, with_rollouts
from experiments.report import comparison_tables, files
from experiments.report.comparison import Comparison
from experiments.trials import Trial
from remix_jax import config_rules
from remix_jax.config import Config
from remix_jax.errors import InputError
from remix_jax.run import report

TARGET = 0.8
CONFIG = pathlib.Path(__file__).resolve().parent / "configs" / "arithmetic_remix_ppo.py"
METHODS_QUICK = ("ppo", "remix-ppo")
RATES_QUICK = ("1e-4", "2e-4", "6e-4")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is compared, on what, and how often."""

    config: Config
    methods: tuple[str, ...]
    learning_rates: tuple[float, ...]  # the first is the equal one
    seeds: int  # of each reported setting
    tuning: int  # seeds of each trial of the grid
    models: tuple[str, ...]  # base models; seed s starts from models[s mod len]

    def trial(self, method: str, learning_rate: float, seed: int) -> Trial:
        """One run of a method."""
        config = METHODS[method].change(self.config)
        optimizer = dataclasses.replace(config.optimizer, learning_rate=learning_rate)
        model = dataclasses.replace(config.model, path=self.models[seed % len(self.models)])
        seed_of_run = self.config.seed + seed
        config = dataclasses.replace(config, optimizer=optimizer, model=model, seed=seed_of_run)
        return Trial(f"{method}/lr{learning_rate:g}/seed{seed}", config)


def compare(plan: Plan, workdir: pathlib.Path, workers: int) -> dict:
    """Trains what the plan asks for; the content of comparison.json, without `about`.

    First the grid, then all seeds of the equal rate and of each method's own best one.
    """

    def train(keys: list[trials.Key]) -> list[dict]:
        made = [plan.trial(*key) for key in keys]
        done = trials.run(made, workdir / "runs", workers)
        return [
            done[trial.name].record(key, base=str(key[2] % len(plan.models)))
            for key, trial in zip(keys, made, strict=True)
        ]

    equal = plan.learning_rates[0]
    data = {
        "levels": list(report.LEVELS),
        "target": TARGET,
        "equal_learning_rate": equal,
        "learning_rates": list(plan.learning_rates),
        "methods": [
            {"name": name, "label": METHODS[name].label, "reference": METHODS[name].reference}
            for name in plan.methods
        ],
    }
    at_equal = [(name, equal) for name in plan.methods]
    return trials.tuned(data, Comparison, train, plan.seeds, plan.tuning, at_equal)


def make_plan(config: Config, values, workdir: pathlib.Path, workers: int) -> Plan:
    """The plan that the flags ask for, its base models made.

    Raises:
      InputError: an unknown method, a wrong number, a method without its on-policy base.
    """
    methods = METHODS_QUICK if values.quick else tuple(values.methods)
    given = ",".join(methods)
    if not methods or any(method not in METHODS for method in methods):
        raise InputError(f"--methods={given}: each must be one of {', '.join(METHODS)}")
    absent = {METHODS[method].reference for method in methods} - set(methods)
    if absent:
        raise InputError(
            f"--methods={given}: ratios are to {absent.pop()}, which must be among them"
        )
    rates = RATES_QUICK if values.quick else values.learning_rates
    learning_rates = trials.learning_rates(rates)
    if len(learning_rates) > 1 and not config.data.validation:
        raise InputError("config.data.validation = '': settings cannot be chosen without it")
    seeds = values.bases if values.quick else values.seeds
    if len(learning_rates) > 1:
        trials.check_seeds(seeds, values.tuning)
    if values.rollouts is not None:
        config = with_rollouts(config, values.rollouts)
    config_rules.validate(config)
    return Plan(
        config=config,
        methods=methods,
        learning_rates=learning_rates,
        seeds=seeds,
        tuning=values.tuning,
        models=_models(config, values, workdir, workers),
    )


def _models(config: Config, values, workdir: pathlib.Path, workers: int) -> tuple[str, ...]:
    if values.models:
        return tuple(values.models)
    shipped = pathlib.Path(config.model.path).resolve() == bases.SHIPPED
    if not shipped or values.bases == 1:
        return (config.model.path,)
    return tuple(str(p) for p in bases.bases(values.bases, workdir / "bases", workers))


def experiment() -> None:
    """The experiment behind the flags."""
    begin = time.perf_counter()
    values = flags.FLAGS
    workdir = pathlib.Path(values.workdir)
    workers = WORKERS()
    plan = make_plan(config_flag.value_of(CONFIG_FLAG), values, workdir, workers)
    data = compare(plan, workdir, workers)
    data["about"] = trials.about(plan.config, time.perf_counter() - begin, workers)
    found = files.write("comparison", data, workdir)
    Terminal(width=None if sys.stdout.isatty() else 120).print(comparison_tables.terminal(found))
    print(f"tables and figures: {workdir}/comparison.md, .json, *.png")


if __name__ == "__main__":
    CONFIG_FLAG = config_flag.define(default=str(CONFIG))
    flags.DEFINE_list("methods", list(COMPARED), f"of {', '.join(METHODS)}")
    flags.DEFINE_list(
        "learning_rates", ["1e-4", "2e-4", "4e-4", "6e-4"], "the grid; the first is the equal rate"
    )
    flags.DEFINE_integer("seeds", 5, "seeds of each reported setting", lower_bound=1)
    flags.DEFINE_integer("tuning", 2, "seeds of each trial of the grid", lower_bound=1)
    flags.DEFINE_integer("bases", 3, "independently made base models of the task", lower_bound=1)
    flags.DEFINE_list("models", [], "model directories to take as bases instead")
    flags.DEFINE_integer("rollouts", None, "fresh rollouts a run; default: the config's")
    flags.DEFINE_boolean(
        "quick",
        False,
        f"{' and '.join(METHODS_QUICK)} at {', '.join(RATES_QUICK)}, one seed a base",
    )
    WORKERS = trials.define_workers()
    flags.DEFINE_string("workdir", "runs/compare", "a directory a run, and the comparison")
    main.run(experiment)
