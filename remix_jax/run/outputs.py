"""What a run leaves at its end: the ledger of its rollouts, its last tables, the trained policy."""

import json
import pathlib

import jax
import numpy as np

from remix_jax import files, processes
from remix_jax.learner.policy import plain
from remix_jax.learner.state import TrainState
from remix_jax.models import huggingface, lora, peft
from remix_jax.models.decoder import Decoder
from remix_jax.rl import replay
from remix_jax.run import page, report
from remix_jax.run.checkpoint import check_room
from remix_jax.run.setup import Setup
from remix_jax.sharding import tree_bytes, whole
from remix_jax.sinks.console import Console
from remix_jax.sinks.metrics import read_metrics

EXPORT, ADAPTER = "export", "adapter"  # directories of a run


def check(setup: Setup, places: files.Path, workdir: pathlib.Path, artifacts: bool) -> None:
    """Raises InputError where what a run saves and leaves has no room or would lose something."""
    state, config = setup.state, setup.config
    saved, exported = state.replace(frozen=None), state.whole(state.params)
    check_room(places, tree_bytes(saved), tree_bytes(exported), config.keep_checkpoints)
    if artifacts:
        huggingface.check_target(workdir / EXPORT)
        if config.lora.rank:
            peft.check_target(workdir / ADAPTER)


def leave(
    setup: Setup, state: TrainState, mirror: files.Mirror, console: Console, export: bool
) -> None:
    """Writes ledger.json and, if asked for, export/; prints the last tables."""
    workdir, everywhere = mirror.local, None if setup.mesh is None else whole(setup.mesh)
    # What became of every row: of those that left the ring, and of those still in it.
    count = jax.jit(lambda ring: replay.clear(ring).fates_U, out_shardings=everywhere)
    ledger = report.ledger(np.asarray(count(state.replay)))
    if processes.is_first():
        files.write_durably(workdir / page.LEDGER_FILE, json.dumps(ledger, indent=2) + "\n")
        console.close()
        console.print(report.final_table(read_metrics(workdir)))
        console.print(report.ledger_table(ledger))
    if export:
        _export(setup, state, workdir)
    what = "the policy (export), " if export else ""
    console.event(f"{what}{page.LEDGER_FILE} and {page.PAGE} are in {mirror.root}")


def _export(setup: Setup, state: TrainState, workdir: pathlib.Path) -> None:
    """Writes export/, and adapter/ where adapters were trained."""
    base, policy = setup.config.model, setup.learner.policy
    adapters, params = policy.config.lora, state.whole(state.params)
    if adapters:
        peft.save(adapters, state.params, workdir / ADAPTER, base.path)
        policy = Decoder(plain(policy.config))
        params = lora.merged(adapters, params, base.export_dtype)
    dtype = base.export_dtype or None
    huggingface.save(policy, params, workdir / EXPORT, like=base.path, dtype=dtype)
