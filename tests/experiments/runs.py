"""Small runs of the embedded task, by the code that users run."""

import functools
import io
import json
import pathlib
import subprocess
import sys

from experiments.configs import arithmetic_remix_grpo, arithmetic_remix_ppo
from remix_jax.config import Config
from remix_jax.sinks.console import Console

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


def run_main(*flags, module="experiments.train"):
    """Runs an experiment's main as a user does, on the devices of the suite: it compiles once."""
    return subprocess.run(
        [sys.executable, "-m", module, *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


def training_samples(run: pathlib.Path, fresh: bool = True) -> list[dict]:
    """Lines of samples.jsonl of training problems: drawn in their step, or replayed ones too."""
    lines = map(json.loads, (run / "samples.jsonl").read_text().splitlines())
    return [s for s in lines if "held_out" not in s and not (fresh and s.get("age", 0) > 0)]


def small_config(directory: pathlib.Path, grpo: bool = False) -> Config:
    """Six steps of 16 rows with reincarnation after the third; two suites of four problems."""
    config = (arithmetic_remix_grpo if grpo else arithmetic_remix_ppo).get_config()
    config.steps, config.reincarnation_step = 6, 3
    config.batch_size, config.mini_batch_size, config.micro_batch_size = 16, 8, 8
    config.group_size = 4 if grpo else 1
    config.kl.start, config.kl.every = 2, 1
    suites = []
    for source in config.data.suites[:2]:
        target = directory / pathlib.Path(source).name
        target.write_text("".join(pathlib.Path(source).read_text().splitlines(keepends=True)[:4]))
        suites.append(str(target))
    config.data.suites = tuple(suites)
    validation = pathlib.Path(config.data.validation)
    chosen_by = directory / validation.name
    chosen_by.write_text("".join(validation.read_text().splitlines(keepends=True)[:4]))
    config.data.validation = str(chosen_by)
    config.evaluation.every, config.evaluation.batch_size = 1, 12
    config.checkpoint_every = 2
    return config


def as_flags(config: Config, *fields: str) -> list[str]:
    """The flags that give a preset these fields of a config."""
    found = {field: functools.reduce(getattr, field.split("."), config) for field in fields}
    return [f"--config.{field}={value}" for field, value in found.items()]


# What small_config changes of its presets, and its programs depend on.
SMALL = (
    *("steps", "reincarnation_step", "batch_size", "mini_batch_size", "micro_batch_size"),
    *("group_size", "kl.start", "kl.every", "evaluation.batch_size"),
    *("data.suites", "data.validation", "evaluation.every", "checkpoint_every"),
)


def quiet(config: Config, on_step=None) -> Console:
    """A console that writes nowhere and may call `on_step(step)` at each step's figures."""
    console = Console(config.steps, file=io.StringIO(), terminal=False)
    write = console.write

    def observed(step, metrics):
        write(step, metrics)
        if on_step is not None:
            on_step(step)

    console.write = observed
    return console


def figures(workdir: pathlib.Path) -> list[dict]:
    """metrics.jsonl without what depends on the clock."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if "second" not in k} for line in lines]
