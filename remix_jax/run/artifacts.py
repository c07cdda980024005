"""What a run leaves at its end: figures, ledger and tables for people, the policy for programs."""

import json
from typing import Any

import jax
import numpy as np

from remix_jax import files, processes
from remix_jax.learner.state import TrainState
from remix_jax.models import huggingface
from remix_jax.rl import replay
from remix_jax.run import figures, report
from remix_jax.run.setup import Setup
from remix_jax.sharding import whole
from remix_jax.sinks.console import Console
from remix_jax.sinks.metrics import read_metrics

EXPORT = "export"  # directory of a run


def leave(
    setup: Setup, state: TrainState, mirror: files.Mirror, console: Console, export: bool
) -> None:
    """Writes ledger.json, figures/ and, if asked for, export/; prints the last tables."""
    workdir, ledger = mirror.local, _ledger(state, setup)
    if processes.is_first():
        files.write_durably(workdir / "ledger.json", json.dumps(ledger, indent=2) + "\n")
        metrics = read_metrics(workdir)
        figures.draw(metrics, workdir / "figures")
        console.close()
        console.print(report.final_table(metrics))
        console.print(report.ledger_table(ledger))
    if export:
        base, policy = setup.config.model, setup.learner.policy
        dtype = base.export_dtype or None
        huggingface.save(policy, state.params, workdir / EXPORT, like=base.path, dtype=dtype)
    what = "figures, ledger.json and the policy (export)" if export else "figures and ledger.json"
    console.event(f"{what} are in {mirror.root}")


def _ledger(state: TrainState, setup: Setup) -> list[dict[str, Any]]:
    """What became of every row generated: the fates of those that left and of those still held."""
    everywhere = None if setup.mesh is None else whole(setup.mesh)
    count = jax.jit(lambda ring: replay.clear(ring).fates_U, out_shardings=everywhere)
    fates_U = np.asarray(count(state.replay))
    names = ["zero signal: all rewards of its group equal", "not trained on"]
    names += [f"trained on in {u} pass{'es' if u > 1 else ''}" for u in range(1, len(fates_U) - 1)]
    total = int(fates_U.sum())
    return [
        {"fate": name, "rows": int(rows), "share": int(rows) / total}
        for name, rows in zip(names, fates_U, strict=True)
        if rows
    ]
