"""Where every array of a run lies, for people: what `--show_sharding` prints."""

import pathlib
import re
from typing import Any, NamedTuple

import jax
from jax.sharding import AbstractMesh, PartitionSpec

from launch import dry_run
from remix_jax import sharding
from remix_jax.config import Config
from remix_jax.learner.state import Learner, TrainState
from remix_jax.run.setup import check_sizes
from remix_jax.sinks.console import Console
from remix_jax.text import size_text
from remix_jax.types import empty_rows, kept_rows


class Placed(NamedTuple):
    """One array of a tree, or several alike."""

    path: str
    copies: int
    shape: tuple[int, ...]
    dtype: str
    spec: PartitionSpec
    device_bytes: int  # of all `copies`, on the device that holds most


def print_placement(config: Config, console: Console, architectures: pathlib.Path) -> None:
    """Every array with its shape, dtype, axes and bytes on a device, by part, and the totals.

    Args:
      config, console, architectures: as of `dry_run.print_plans`.

    Raises:
      InputError: as `dry_run.print_plans`, or the mesh does not suit config, model or devices.
    """
    _, learner, state = dry_run.described_run(config, architectures)
    mesh = dry_run.planned_mesh(config.mesh.sizes)
    check_sizes(config, learner.policy.config, mesh)
    total, everywhere = 0, 0
    for title, tree in parts(config, learner, state).items():
        table = placed(tree, mesh)
        own = sum(part.device_bytes for part in table)
        console.print(_table(f"{title}: {size_text(own)} on a device", table))
        total += own
        everywhere += sharding.tree_bytes(tree)
    console.print_plan(
        {
            "mesh": sharding.axes_text(mesh),
            "all of it": size_text(everywhere),
            "on a device": size_text(total),
        },
        title="Placement",
    )


def parts(config: Config, learner: Learner, state: TrainState) -> dict[str, Any]:
    """The trees that lie on devices, by what they are; paths as the state and the rules have them.

    Gradients and micro-batches live only while the learning phase runs.
    """
    slots = (config.prompt_slots, config.data.response_tokens)
    shards = sharding.row_shards(dry_run.planned_mesh(config.mesh.sizes))
    micro_rows = learner.static.micro_rows(learner.busy_slots, shards)
    micro = jax.eval_shape(lambda: kept_rows(empty_rows(micro_rows, *slots)))
    found: dict[str, Any] = {
        "Frozen weights": {"frozen": state.frozen},
        "Policy": {"params": state.params},
        "Policy's optimizer": {"opt_state": state.opt_state},
        "Critic": {"critic_params": state.critic_params},
        "Critic's optimizer": {"critic_opt_state": state.critic_opt_state},
        "Base anchor": {"base_params": state.base_params},
        "Precedent anchor": {"prev_params": state.prev_params},
        "Gradients": {"grads": state.params, "critic_grads": state.critic_params},
        "Replay": {"replay": state.replay},
        "Micro-batch": {"micro_batch": micro},
        "Counters": {name: getattr(state, name) for name in ("key", "step", "fault_F")},
    }
    return {title: tree for title, tree in found.items() if jax.tree.leaves(tree)}


def placed(tree: Any, mesh: AbstractMesh) -> list[Placed]:
    """Every array of a tree, those of equal layers in one line, in the tree's order."""
    found: dict[tuple, Placed] = {}
    for path, x in jax.tree_util.tree_leaves_with_path(tree):
        text = sharding.path_text(path)
        spec = sharding.spec_of(text, x.shape, mesh)
        shown = re.sub(r"layers_\d+", "layers_*", text)
        key = (shown, x.shape, x.dtype, spec)
        before = found.get(key, Placed(shown, 0, x.shape, str(x.dtype), spec, 0))
        size = before.device_bytes + sharding.tree_bytes({text: x}, mesh)
        found[key] = before._replace(copies=before.copies + 1, device_bytes=size)
    return list(found.values())


def _table(title: str, placed: list[Placed]) -> str:
    rows = [("array", "shape", "dtype", "axes", "bytes of a device")]
    for part in placed:
        times = f" x {part.copies}" if part.copies > 1 else ""
        shape = "x".join(map(str, part.shape)) or "-"
        axes = ", ".join(_axes(each) for each in part.spec) or "whole"
        rows.append((part.path + times, shape, part.dtype, axes, f"{part.device_bytes:,}"))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    lines = [
        "  ".join(cell.ljust(n) for cell, n in zip(row[:4], widths[:4], strict=True))
        + row[4].rjust(widths[4] + 2)
        for row in rows
    ]
    return "\n  ".join([title, *lines]) + "\n"


def _axes(axes: Any) -> str:
    return "-" if axes is None else axes if isinstance(axes, str) else "+".join(axes)
