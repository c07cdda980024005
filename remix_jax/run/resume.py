"""The directory of a run: whose it is, what may have changed since, where it continues."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import flax.traverse_util
import jax

import math_grader
from remix_jax import config as configs
from remix_jax import files, processes
from remix_jax.config import Config
from remix_jax.errors import InputError
from remix_jax.learner.state import TrainState, move_anchors
from remix_jax.models.huggingface import model_digest
from remix_jax.rollout.draws import check_continued, first_cursors
from remix_jax.run.checkpoint import Checkpoints, digest
from remix_jax.run.setup import Setup
from remix_jax.sinks.metrics import FILES, METRICS_FILE, cut, read_metrics
from remix_jax.sinks.sink import IDS

CONFIG_FILE, CHECKPOINTS = "config.json", "checkpoints"

# What a run that continues may change (docs/durability.md); a name ending in a dot is a section.
MAY_CHANGE = (
    *("steps", "checkpoint_every", "keep_checkpoints", "keep_every", "samples_per_step"),
    *("evaluation.", "data.suites", "data.validation", "model.export_dtype"),
    *("optimizer.learning_rate", "optimizer.warmup", "optimizer.decay"),
    *("critic.optimizer.learning_rate", "critic.optimizer.warmup", "critic.optimizer.decay"),
    *("micro_batch_size", "score_batch_size", "mesh.", "model.attention"),  # equal up to rounding
    *(f"memory.{name}" for name in ("micro_batch_tokens", "logit_slots", "logit_entries")),
    *("memory.decode_tokens", "memory.remat", "memory.scan_layers", "memory.anchors_on_host"),
)


def claimed(root: files.Path, config: Config) -> AbstractContextManager[files.Mirror]:
    """The directory of a run, new or of the same run (`files.claimed`, by the first process)."""
    if not processes.is_first():
        return files.Mirror(root, ())

    def check(saved: Any, local: pathlib.Path) -> None:
        """Of a run that has not begun nothing would be lost: no checkpoint, no step's figures."""
        places = root / CHECKPOINTS
        names = [path.name for path in places.iterdir()] if places.exists() else []
        figures = read_metrics(local) if (local / METRICS_FILE).exists() else []
        if any(name.rpartition("-")[2].isdecimal() for name in names) or (
            figures and figures[-1]["step"] > 0
        ):
            changes(saved, config, root)

    settings = dataclasses.asdict(config)
    return files.claimed(
        root, CONFIG_FILE, settings, what="run", flag="--workdir", others=(IDS, *FILES), check=check
    )


def start(
    setup: Setup, workdir: pathlib.Path, checkpoints: Checkpoints, log: Callable[[str], None]
) -> tuple[TrainState, dict[str, Any]]:
    """The state and the host's counters that training begins with: restored, or the first ones.

    A restored state takes the place of the first one, whose memory is freed. The files of figures
    are cut to the checkpoint's step.

    Raises:
      InputError: the checkpoint belongs to another config or to other problems.
    """
    state, config, prefixes = setup.state, setup.config, setup.prefixes
    totals = {"tokens": 0, "flops": prefixes.flops if prefixes else 0.0, "seconds": 0.0}
    counters: dict[str, Any] = {"totals": totals, "step": 0, **first_cursors(config, prefixes)}
    if checkpoints.newest_step():
        frozen, state = state.frozen, state.replace(frozen=None)
        like = abstract(state)
        for leaf in jax.tree.leaves(state):
            leaf.delete()
        check = functools.partial(_check, setup, log=log)
        state, counters = checkpoints.restore(like, check, log)
        state = state.replace(frozen=frozen)
        log(f"continuing after step {counters['step']}")
    if processes.is_first():
        files.write_durably(workdir / CONFIG_FILE, configs.to_json(config))
        step = counters["step"]
        unwritten = step == 0 or "unwritten" in counters  # `step`'s own figures
        if note := cut(workdir, step - 1 if unwritten else step):
            log(note)
    return move_anchors(config, state, "pinned_host"), counters


def abstract(state: TrainState) -> TrainState:
    """Shapes, dtypes and shardings of a state."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def identity(setup: Setup) -> dict[str, Any]:
    """What a checkpoint says of its run: config, problems, and what it was computed with."""
    train = setup.train
    # All that training prompts, their grading and an expert's rows depend on.
    content = [train.prompts, [p.answers for p in train.problems], setup.vocabulary.eos_ids]
    content += [list(setup.traces.values())] if setup.traces else []
    path = setup.config.model.path
    adapts = {"frozen": model_digest(path, weights_only=True)} if setup.config.lora.rank else {}
    return {
        **adapts,
        "config": json.loads(configs.to_json(setup.config)),
        "problems": {"count": len(train.problems), "digest": digest(json.dumps(content))},
        "made_with": {
            "jax": jax.__version__,
            "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
            "processes": jax.process_count(),
            "grader": math_grader.version(),
            "code of rewards": {f["function"]: f["source"] for f in setup.scorer.identity()},
        },
    }


def changes(saved: dict[str, Any], config: Config, where: object) -> list[str]:
    """Dotted names of the fields that differ from a saved config, each of which may.

    Raises:
      InputError: names every field that differs and must not.
    """
    flat = functools.partial(flax.traverse_util.flatten_dict, sep=".")
    old = flat(saved) if isinstance(saved, dict) else {}
    new = flat(json.loads(configs.to_json(config)))
    different = sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k))
    sections = tuple(name for name in MAY_CHANGE if name[-1] == ".")
    fixed = [k for k in different if k not in MAY_CHANGE and not k.startswith(sections)]
    if fixed:
        shown = ", ".join(f"config.{k} ({old.get(k)!r}, now {new.get(k)!r})" for k in fixed)
        raise InputError(
            f"{where} holds a run that differs in {shown}: name another --workdir, or give the "
            "same config to continue it"
        )
    if type(old.get("steps")) is not int:
        raise InputError(f"{where} holds a run whose config has no whole number as its steps")
    before = dataclasses.replace(config, steps=old["steps"])
    if before.has_precedent != config.has_precedent:
        raise InputError(
            f"config.steps = {config.steps}: {where} holds a run of {before.steps} steps, and only "
            f"one of the two lengths reaches beyond kl.start = {config.kl.start}, where the "
            "precedent anchor begins: name another --workdir"
        )
    return different


def _check(setup: Setup, step: int, saved: dict[str, Any], log: Callable[[str], None]) -> None:
    """Whether a checkpoint is of this run, and what of it goes on differently."""
    config, now = setup.config, identity(setup)
    changed = changes(saved["config"], config, "the checkpoint")
    if config.steps < step:
        raise InputError(f"config.steps = {config.steps}: the run has done {step} steps already")
    if saved.get("frozen") != now.get("frozen"):
        raise InputError(
            f"config.model.path = {config.model.path!r}: holds other weights than those that the "
            "adapters of the checkpoint belong to: continue with those"
        )
    if saved["problems"] != now["problems"]:
        raise InputError(
            f"{config.data.train}: these are not the {saved['problems']['count']:,} training "
            "problems, in the same prompts, that the run was started with: continue with those"
        )
    check_continued(config, setup.prefixes, saved)
    if changed:
        log(f"changed since the checkpoint: config.{', config.'.join(changed)}")
    for name, was in saved["made_with"].items():
        if was != now["made_with"][name]:
            log(
                f"{name} was {was}, now {now['made_with'][name]}: from here on the run is not "
                "bitwise what it would have been"
            )
