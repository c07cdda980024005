"""Runs that kill themselves at random moments and are continued, and what is compared in the end.

Each attempt is a process of its own; one that is to be killed sends itself SIGKILL, which no
process can see coming, a random time into a random phase. `experiments.kill_test` is the command.
"""

import collections
import fnmatch
import itertools
import json
import multiprocessing
import os
import pathlib
import random
import signal
import statistics
import sys
import threading
import time
from typing import NamedTuple

import jax
import numpy as np

from experiments import main
from experiments.configs import arithmetic_remix_grpo, arithmetic_remix_ppo
from remix_jax.config import Config
from remix_jax.run import loop, resume
from remix_jax.run.checkpoint import WRITING, Checkpoints
from remix_jax.run.setup import prepare
from remix_jax.sinks.console import Console

PRESETS = {"remix-ppo": arithmetic_remix_ppo, "remix-grpo": arithmetic_remix_grpo}
# Where a phase begins. "save" is the copy and what a thread writes while training goes on.
PHASES = {
    "sample": (loop, "_collect"),
    "grade": (loop, "grade_rollouts"),
    "learn": (loop, "_step"),
    "evaluate": (loop, "_evaluate"),
    "save": (Checkpoints, "save"),
}
START = "start"  # reading, compiling, restoring
_ROWS = {"train": 64, "validation": 4, "suite": 4}  # problems


class Kill(NamedTuple):
    """A moment of an attempt: so many seconds into the n-th time of a phase."""

    phase: str
    occurrence: int
    delay: float


class Attempt(NamedTuple):
    """How an attempt ended."""

    phase: str | None  # in which it was killed; None: it ended by itself
    writing: bool  # a checkpoint was half written
    saved: int  # step of the newest whole checkpoint


def small_config(preset: str, directory: pathlib.Path, algebra: bool = True) -> Config:
    """Eight steps of 16 rows with reincarnation after the fourth; problems in `directory`.

    Args:
      algebra: whether answers are spelled so that only the grading processes can compare them.
    """
    config = PRESETS[preset].get_config()
    config.steps, config.reincarnation_step = 8, 4
    config.batch_size, config.mini_batch_size, config.micro_batch_size = 16, 8, 8
    config.group_size = 4 if preset == "remix-grpo" else 1
    config.kl.start, config.kl.every = 2, 1
    config.checkpoint_every, config.evaluation.every, config.evaluation.batch_size = 1, 2, 8
    directory.mkdir(parents=True, exist_ok=True)

    def copied(source: str, count: int) -> str:
        rows = map(json.loads, pathlib.Path(source).read_text().splitlines()[:count])
        target = directory / pathlib.Path(source).name
        target.write_text("".join(json.dumps(_spelled(r, algebra)) + "\n" for r in rows))
        return str(target)

    config.data.train = copied(config.data.train, _ROWS["train"])
    config.data.suites = (copied(config.data.suites[0], _ROWS["suite"]),)
    config.data.validation = copied(config.data.validation, _ROWS["validation"])
    return config


def _spelled(row: dict, algebra: bool) -> dict:
    return row | {"answer": f"\\frac{{{2 * int(row['answer'])}}}{{2}}"} if algebra else row


def attempt(
    context, config: Config, workdir: pathlib.Path, log: pathlib.Path, kill: Kill | None
) -> Attempt:
    """Starts or continues a run in a process of its own, which perhaps kills itself.

    Args:
      context: of `multiprocessing`; with a fork server, imports are made once for all attempts.
      log: takes a line for each phase that began.

    Raises:
      RuntimeError: the run failed by itself.
    """
    process = context.Process(target=_train, args=(config, workdir, log, kill))
    process.start()
    process.join()
    places = workdir / "checkpoints"
    names = [path.name for path in places.iterdir()] if places.is_dir() else []
    writing = any(fnmatch.fnmatch(name, WRITING) for name in names)
    saved = max((int(name) for name in names if name.isdecimal()), default=0)
    if process.exitcode == -signal.SIGKILL:
        return Attempt(log.read_text().splitlines()[-1].split()[0], writing, saved)
    if process.exitcode != 0:
        raise RuntimeError(f"{workdir}: a run ended by itself with {process.exitcode} ({log})")
    return Attempt(None, writing, saved)


def server():
    """A context whose processes have imported everything, and no device yet."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "transformers"])
    return context


def durations(log: pathlib.Path) -> dict[str, float]:
    """Median seconds of each phase of a run that was not killed."""
    begun = [line.split() for line in log.read_text().splitlines()]
    spans = collections.defaultdict(list)
    for (phase, begin), (_, end) in itertools.pairwise(begun):
        spans[phase].append(float(end) - float(begin))
    return {phase: statistics.median(seconds) for phase, seconds in spans.items()}


def draw(rng: random.Random, seconds: dict[str, float]) -> Kill:
    """A random moment of a random phase."""
    phase = rng.choice(list(seconds))
    times = 1 if phase == START else rng.randint(1, 3)
    return Kill(phase, times, rng.uniform(0, seconds[phase]))


def differences(config: Config, whole: pathlib.Path, other: pathlib.Path) -> list[str]:
    """What of two finished runs is not equal to the last bit."""
    found = [
        name
        for name in ("samples.jsonl", "warnings.jsonl", "ledger.json", "export/model.safetensors")
        if (whole / name).read_bytes() != (other / name).read_bytes()
    ]
    if _metrics(whole) != _metrics(other):
        found.append("metrics.jsonl")
    like = resume.abstract(prepare(config).state)
    states, hosts = [], []
    for workdir in (whole, other):
        with Checkpoints(workdir / "checkpoints", keep=config.keep_checkpoints) as saved:
            state, host = saved.restore(like, lambda *_: None, found.append)
            states.append(state)
            hosts.append(host)
    ours, theirs = (jax.tree_util.tree_leaves_with_path(state) for state in states)
    for (path, a), (_, b) in zip(ours, theirs, strict=True):
        if not np.array_equal(_plain(a), _plain(b), equal_nan=a.dtype == np.float32):
            found.append(jax.tree_util.keystr(path, simple=True, separator="/"))
    for name in ("step", "cursor", "problems", "config"):
        found += [name] if hosts[0][name] != hosts[1][name] else []
    return found


def _plain(x: jax.Array) -> np.ndarray:
    is_key = jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(x) if is_key else x)


def _metrics(workdir: pathlib.Path) -> list[dict]:
    """Every line, without what depends on the clock."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if "second" not in k} for line in lines]


def _train(config: Config, workdir: pathlib.Path, log: pathlib.Path, kill: Kill | None) -> None:
    """The body of an attempt."""
    main.cache_compilations()
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    log.parent.mkdir(parents=True, exist_ok=True)
    seen: collections.Counter[str] = collections.Counter()
    with log.open("w") as phases, (log.with_suffix(".txt")).open("a") as output:
        sys.stdout = sys.stderr = output

        def enter(phase: str) -> None:
            seen[phase] += 1
            phases.write(f"{phase} {time.monotonic()}\n")
            phases.flush()
            if kill is not None and (phase, seen[phase]) == (kill.phase, kill.occurrence):
                threading.Timer(kill.delay, os.kill, (os.getpid(), signal.SIGKILL)).start()

        def announced(phase: str, function):
            def call(*args, **kwargs):
                enter(phase)
                return function(*args, **kwargs)

            return call

        for phase, (owner, name) in PHASES.items():
            setattr(owner, name, announced(phase, getattr(owner, name)))
        enter(START)
        loop.run(config, workdir, Console(config.steps, file=output))
        enter("end")


def survive(
    workdir: pathlib.Path, kills: int, seed: int, presets: list[str], algebra: bool = True
) -> dict:
    """So many kills over runs of these presets in turn: the attempts, and what differed."""
    context, rng = server(), random.Random(seed)
    wholes: dict[str, dict[str, float]] = {}
    runs: list[dict] = []
    done = 0
    for number, preset in enumerate(itertools.cycle(presets)):
        if done >= kills:
            break
        config = small_config(preset, workdir / preset / "problems", algebra)
        whole = workdir / preset / "whole"
        if preset not in wholes:
            log = workdir / preset / "whole.log"
            attempt(context, config, whole, log, None)
            wholes[preset] = durations(log)
            attempt(context, config, whole, log, None)  # again, with all programs compiled
            wholes[preset][START] = durations(log)[START]
        own = workdir / preset / f"killed-{number}"
        attempts: list[Attempt] = []
        while not attempts or attempts[-1].phase is not None:
            kill = draw(rng, wholes[preset]) if done < kills else None
            attempts.append(attempt(context, config, own, own.with_suffix(".log"), kill))
            done += attempts[-1].phase is not None
            how = f"killed, {attempts[-1].phase}" if attempts[-1].phase else "ended"
            saved = f"step {attempts[-1].saved} saved, {done} of {kills} kills"
            print(f"{preset} {number}: {how}, {saved}", flush=True)
        runs.append(
            {
                "run": f"{preset} {number}",
                "attempts": [a._asdict() for a in attempts],
                "differences": differences(config, whole, own),
            }
        )
    return {"kills": done, "seed": seed, "seconds": wholes, "runs": runs}
