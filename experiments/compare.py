"""Methods side by side, several seeds each: accuracy against fresh rollouts, a table, a figure.

    python -m experiments.compare --methods=on-policy,remix --seeds=5 --workdir=DIR

Every method starts from the same base model, at the same learning rate, and spends the same fresh
rollouts; seeds are paired. Runs that are already complete in the workdir are not repeated.
"""

import dataclasses
import pathlib
import platform

from absl import flags
from rich.console import Console as Terminal

from experiments import main
from experiments.methods import METHODS, label
from remix_jax.config import Config
from remix_jax.errors import InputError
from remix_jax.learner import loop
from remix_jax.reporting import comparison, comparison_tables, report

CONFIGS = pathlib.Path(__file__).resolve().parent / "configs"
CONFIG = main.define_config(default=str(CONFIGS / "arithmetic_remix_ppo.py"))
METHODS_FLAG = flags.DEFINE_list("methods", ["on-policy", "remix"], f"of {', '.join(METHODS)}")
SEEDS = flags.DEFINE_integer("seeds", 3, "seeds a method: config.seed, config.seed + 1, ...")
WORKDIR = flags.DEFINE_string("workdir", "runs/local", "a run a directory, and the comparison")


def compare() -> None:
    """The experiment behind the flags."""
    unknown = [method for method in METHODS_FLAG.value if method not in METHODS]
    if unknown or not METHODS_FLAG.value:
        given = ",".join(METHODS_FLAG.value)
        raise InputError(f"--methods={given}: each must be one of {', '.join(METHODS)}")
    if SEEDS.value < 1:
        raise InputError(f"--seeds={SEEDS.value}: must be 1 or more")
    config, workdir = main.config_of(CONFIG), pathlib.Path(WORKDIR.value)
    rate, trials = config.optimizer.learning_rate, []
    for seed in range(config.seed, config.seed + SEEDS.value):
        for method in METHODS_FLAG.value:
            outcome = _train(config, method, seed, workdir)
            trials.append(
                comparison.trial(
                    outcome.metrics,
                    method=_name(config, method),
                    learning_rate=rate,
                    seed=seed,
                    base=config.model.path,
                )
            )
            if outcome.stopped:
                return
    data = {
        "about": {"hardware": platform.processor() or platform.machine()},
        "levels": list(report.LEVELS),
        "target": 0.8,
        "equal_learning_rate": rate,
        "learning_rates": [rate],
        "methods": [
            {
                "name": _name(config, method),
                "label": label(config, method),
                "reference": _name(config, METHODS_FLAG.value[0]),
            }
            for method in METHODS_FLAG.value
        ],
        "selection_seeds": [],
        "trials": trials,
    }
    comparison.write(data, workdir)
    Terminal().print(comparison_tables.tables(data))
    print(f"figures and tables: {workdir}/comparison*.png, .md, .json")


def _name(config: Config, method: str) -> str:
    base = "ppo" if config.has_critic else "grpo"
    return base if method == "on-policy" else f"{method}-{base}"


def _train(config: Config, method: str, seed: int, workdir: pathlib.Path) -> loop.Outcome:
    run = METHODS[method](dataclasses.replace(config, seed=seed))
    print(f"\n{label(config, method)}, seed {seed}", flush=True)
    return loop.run(run, workdir / f"{method}-seed{seed}")


if __name__ == "__main__":
    main.run(compare)
