"""Every method of the off-policy family on the arithmetic task: accuracy at equal fresh rollouts.

    python -m experiments.family                            all of it
    python -m experiments.family --methods=bapo,m2po,grpo   some of it
    python -m experiments.family --collect=DIR              the bank of traces alone

Each method is its preset in experiments/configs/family. Every one gets the same grid of learning
rates on the first --tuning seeds; the rate with the best validation accuracy, averaged over the
run, then gets all seeds. Reported are held-out suites, which no choice has seen. All start from the
shipped base. Runs that are complete in the workdir are not repeated.
"""

import dataclasses
import importlib
import pathlib
import pkgutil
import tempfile
import time

from absl import flags

from experiments import collection, main, trials
from experiments.arithmetic.task import PROMPT_TOKENS
from experiments.configs import arithmetic_remix_grpo, arithmetic_remix_ppo
from experiments.configs import family as presets
from experiments.configs.family import base
from experiments.evaluate import replaced
from experiments.methods import METHODS, with_rollouts
from experiments.report import files
from experiments.report.family import Family
from experiments.trials import Trial
from remix_jax.config import Config
from remix_jax.data.traces import BANK_FILE
from remix_jax.errors import InputError
from remix_jax.rl import family
from remix_jax.sinks.console import Console

REFERENCES = ("ppo", "remix-ppo", "grpo", "remix-grpo")
TRACED = 640  # problems of the bank: the first of the training file
ATTEMPTS = 64  # most responses to one of them
PRESETS = tuple(
    module.name for module in pkgutil.iter_modules(presets.__path__) if module.name != "base"
)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is trained, and how often."""

    methods: tuple[str, ...]
    learning_rates: tuple[float, ...]
    seeds: int
    tuning: int  # seeds that a rate is chosen by
    rollouts: int = base.ROLLOUTS  # fresh, of each run

    def trial(self, method: str, learning_rate: float, seed: int) -> Trial:
        """One run of a method."""
        config = config_of(method)
        if config.own_rows:
            config = base.evaluated(with_rollouts(config, self.rollouts))
        optimizer = dataclasses.replace(config.optimizer, learning_rate=learning_rate)
        config = dataclasses.replace(config, optimizer=optimizer, seed=seed)
        return Trial(f"{method}/lr{learning_rate:g}/seed{seed}", config)


def config_of(method: str) -> Config:
    """The preset of a method of the family, or a reference."""
    if method in REFERENCES:
        full = arithmetic_remix_grpo if method.endswith("grpo") else arithmetic_remix_ppo
        return METHODS[method].change(full.get_config())
    return importlib.import_module(f"experiments.configs.family.{method}").get_config()


def described(method: str) -> dict[str, str]:
    """A method's entry in family.json."""
    config = config_of(method)
    reference = method in REFERENCES
    entry = family.METHODS[config.objective.method]
    sampler = config.replay.sampler
    label = METHODS[method].label if reference else entry.title
    labels = {"ptr_ppo": "PTR-PPO", "hippo": "HiPPO (plain reading)"}
    parts = [f"{config.replay.share:.0%} of {config.replay.window}"] if config.replay.share else []
    parts += [f"{config.passes} passes"] if config.passes > 1 else []
    parts += ["1 expert row a group"] if config.expert_rows and config.own_rows else []
    parts += ["traces alone"] if not config.own_rows else []
    parts += [f"sampler {sampler}"] if sampler != "uniform" else []
    return {
        "name": method,
        "label": labels.get(method, label),
        "base": "critic" if config.has_critic else "groups",
        "rows": ", ".join(parts) or "fresh, once",
        "kind": "reference" if reference else "family",
    }


def collect_traces(directory: pathlib.Path) -> None:
    """The bank that the presets' expert rows come from, unless it is there."""
    if (directory / BANK_FILE).exists():
        return
    config = base.get_config()
    lines = pathlib.Path(config.data.train).read_text(encoding="utf-8").splitlines(keepends=True)
    with tempfile.TemporaryDirectory() as folder:
        problems = pathlib.Path(folder) / "problems.jsonl"
        problems.write_text("".join(lines[:TRACED]), encoding="utf-8")
        config = replaced(config, "data", train=str(problems), prompt_tokens=PROMPT_TOKENS)
        effort = collection.Effort(
            attempts=ATTEMPTS,
            batch_size=TRACED,
            group_size=1,
            accept="experiments.arithmetic.task:right_working",
        )
        collection.collect(config, effort, directory, Console(0))


def compare(plan: Plan, workdir: pathlib.Path, workers: int) -> dict:
    """Trains what the plan asks for; the content of family.json, without `about`."""

    def train(keys: list[trials.Key]) -> list[dict]:
        made = [plan.trial(*key) for key in keys]
        done = trials.run(made, workdir / "runs", workers)
        return [
            done[trial.name].record(key, base="shipped")
            for key, trial in zip(keys, made, strict=True)
        ]

    data = {
        "rollouts": [plan.rollouts // 4, plan.rollouts // 2, plan.rollouts],
        "learning_rates": list(plan.learning_rates),
        "methods": [described(method) for method in plan.methods],
    }
    return trials.tuned(data, Family, train, plan.seeds, plan.tuning)


def make_plan(values) -> Plan:
    """The plan that the flags ask for.

    Raises:
      InputError: an unknown method or a wrong number.
    """
    known = (*REFERENCES, *PRESETS)
    methods = tuple(values.methods)
    if not methods or any(method not in known for method in methods):
        raise InputError(f"--methods={','.join(methods)}: each must be one of {', '.join(known)}")
    rates = trials.learning_rates(values.learning_rates)
    trials.check_seeds(values.seeds, values.tuning)
    return Plan(methods, rates, values.seeds, values.tuning, values.rollouts)


def experiment() -> None:
    """The experiment behind the flags."""
    begin = time.perf_counter()
    values = flags.FLAGS
    if values.collect:
        collect_traces(pathlib.Path(values.collect))
        return
    workdir = pathlib.Path(values.workdir)
    workers = WORKERS()
    plan = make_plan(values)
    data = compare(plan, workdir, workers)
    shown = plan.trial(plan.methods[0], plan.learning_rates[0], 0).config
    about = trials.about(shown, time.perf_counter() - begin, workers)
    files.write("family", data | {"about": about}, workdir)
    print(f"table and figure: {workdir}/family.md, .json, .png")


if __name__ == "__main__":
    flags.DEFINE_list("methods", [*REFERENCES, *PRESETS], "references and presets")
    flags.DEFINE_list("learning_rates", ["1e-4", "3e-4"], "the grid")
    flags.DEFINE_integer("seeds", 3, "seeds of each method at its best rate", lower_bound=1)
    flags.DEFINE_integer("tuning", 1, "seeds that a rate is chosen by", lower_bound=1)
    flags.DEFINE_integer("rollouts", base.ROLLOUTS, "fresh, of each run", lower_bound=4)
    WORKERS = trials.define_workers()
    flags.DEFINE_string(
        "collect", "", "make the bank of traces in this directory, and nothing else"
    )
    flags.DEFINE_string("workdir", "runs/family", "a directory a run, and the table")
    main.run(experiment)
