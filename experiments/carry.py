"""Partial rollouts on a task with a long tail: what they save, and what they cost in accuracy.

    python -m experiments.carry [--out=runs/carry] [--seeds=3]

The arithmetic task with one chain of 12 to 14 operations in eight, the others of 3 or 4: responses
of 18 to 20 tokens among those of 9 or 10, decoded in 16 slots. ReMix-PPO, all of it the mix stage,
with `sampling.carry` groups in flight between steps; the same rollouts, seeds and rates. Reported
are held-out accuracy, decoding steps, the share of slot-steps that gave a token, and seconds of
sampling; ranges are over the seeds.
"""

import itertools
import json
import pathlib
import statistics
import time
from typing import Any

from absl import flags

from experiments import main, trials
from experiments.configs import arithmetic_remix_ppo
from experiments.tables import Sheet, page, share
from experiments.trials import Trial
from remix_jax.config import Config

_OUT = flags.DEFINE_string("out", "runs/carry", "directory of the runs and of results.json")
_SEEDS = flags.DEFINE_integer("seeds", 3, "of each setting", lower_bound=1)
_WORKERS = flags.DEFINE_integer("workers", 1, "runs at a time; 1: seconds mean something")
_STEPS = flags.DEFINE_integer("steps", 60, "of a run", lower_bound=1)

CARRIED = (0, 8, 16)  # groups in flight; a step learns from 77 new ones
SLOTS, EVERY = 16, 8  # every so many problems is a long one


def write_problems(target: pathlib.Path) -> str:
    """Short chains and long ones in turn."""
    problems = arithmetic_remix_ppo.TASK / "problems"
    long = (problems / "hard_train.jsonl").read_text().splitlines(keepends=True)
    short = [
        line
        for line in (problems / "train.jsonl").read_text().splitlines(keepends=True)
        if json.loads(line)["problem"].count(" .") >= 10
    ]
    each = EVERY - 1
    rows = ["".join(short[each * i : each * (i + 1)]) + line for i, line in enumerate(long)]
    target.write_text("".join(rows))
    return str(target)


def config_of(train: str, carry: int, seed: int, steps: int) -> Config:
    """ReMix-PPO without an on-policy stage."""
    config = arithmetic_remix_ppo.get_config()
    config.steps, config.seed, config.reincarnation_step = steps, seed, 0
    config.data.train, config.data.response_tokens = train, 20
    config.sampling.carry = carry
    config.optimizer.learning_rate = 4e-4
    config.memory.decode_tokens = SLOTS * (config.data.prompt_tokens + 20)
    config.evaluation.every = 10
    return config


def figures(metrics: list[dict[str, Any]]) -> dict[str, float]:
    """Of a run: sums over its steps, and the accuracy at its end."""
    steps = [line for line in metrics if line["step"] > 0]
    tokens = [line["tokens"] for line in metrics]
    new = [after - before for before, after in itertools.pairwise(tokens)]
    pairs = list(zip(new, steps, strict=True))
    return {
        "rollouts": steps[-1]["rollouts"],
        "accuracy": steps[-1]["eval/mean"],
        "mean accuracy": statistics.mean(x["eval/mean"] for x in metrics if "eval/mean" in x),
        "steps": sum(n / line["tokens_per_decode_step"] for n, line in pairs),
        "used": sum(new) / sum(n / line["decode_use"] for n, line in pairs),
        "sampling": sum(line["seconds/sample"] for line in steps),
        "carried": statistics.mean(line.get("carried", 0.0) for line in steps),
    }


def sheet(found: dict[int, list[dict[str, float]]]) -> Sheet:
    """A line for each number of groups in flight."""
    header = ["in flight", "rollouts", "begun by an earlier policy, %", "accuracy at the end, %"]
    header += ["mean over the run, %", "decoding steps", "slot-steps used, %", "s of sampling"]
    form = {"accuracy": share, "mean accuracy": share, "used": share, "carried": share}
    lines = []
    for carry, runs in found.items():
        cells = [str(carry)]
        names = ["rollouts", "carried", "accuracy", "mean accuracy", "steps", "used", "sampling"]
        for name in names:
            values = sorted(run[name] for run in runs)
            text = form.get(name, lambda value: f"{value:,.0f}")
            spread = f" [{text(values[0])}-{text(values[-1])}]" if values[0] < values[-1] else ""
            cells.append(text(statistics.median(values)) + spread)
        lines.append(cells)
    return Sheet(header, lines)


def experiment() -> None:
    out = pathlib.Path(_OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    train = write_problems(out / "train.jsonl")
    keys = [(carry, seed) for seed in range(_SEEDS.value) for carry in CARRIED]
    runs = [
        Trial(f"carry{carry}/seed{seed}", config_of(train, carry, seed, _STEPS.value))
        for carry, seed in keys
    ]
    begin = time.perf_counter()
    done = trials.run(runs, out, _WORKERS.value)
    about = trials.about(runs[0].config, time.perf_counter() - begin, _WORKERS.value)
    found: dict[int, list[dict[str, float]]] = {carry: [] for carry in CARRIED}
    for (carry, _), trial in zip(keys, runs, strict=True):
        found[carry].append(figures(done[trial.name].metrics))
    results = {"carried": found, "about": about}
    (out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    text = page(sheet(found).markdown(), about)
    (out / "results.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main.run(experiment)
