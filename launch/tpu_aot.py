"""What a run would need and do on a TPU slice, by the TPU compiler: no TPU is asked for.

    python -m launch.tpu_aot --config=experiments/configs/remix_ppo_1p5b.py --topology=v5p:4x4x2
    python -m launch.tpu_aot --config=experiments/configs/remix_ppo_7b.py --find=v5e,v5p,v6e

Needs `pip install "jax[tpu]"` beside the other requirements, in an environment of its own, and some
minutes a slice. docs/scaling.md explains the columns.
"""

import dataclasses
import os
from collections.abc import Iterator

os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # compiling asks for no cloud's metadata
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # slices may be compiled side by side

import numpy as np
from absl import flags
from jax.experimental import mesh_utils, topologies
from jax.sharding import Mesh

from experiments import main
from launch import aot, dry_run
from remix_jax import config as configs
from remix_jax import cost, sharding
from remix_jax.config import Config
from remix_jax.errors import InputError

TOPOLOGY = flags.DEFINE_string("topology", None, "slice: v5e:4x8, v5p:4x4x2, v6e:4x4, ...")
FIND = flags.DEFINE_list("find", [], "the smallest slice that fits, of each of v5e, v5p, v6e")

# Slices on offer, smallest first (cloud.google.com/tpu/docs/{v5e,v5p,v6e}).
SLICES = {
    "v5e": ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    "v6e": ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    "v5p": ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8"),
}
SYSTEM_BYTES = 256 * 2**20  # of a chip's memory, kept by the runtime


def slice_mesh(topology: str, wanted: tuple[int, int, int]) -> Mesh:
    """A mesh over the chips of a slice.

    Raises:
      InputError: there is no such slice, no TPU compiler, or the mesh does not suit it.
    """
    # A host has 2 x 2 chips unless one chip in all is asked for.
    alone = {"chips_per_host_bounds": [1, 1, 1]} if topology.endswith(":1x1") else {}
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology, **alone)
    except Exception as error:  # libtpu's own
        text = " ".join(str(error).split())[:200]
        hint = 'needs pip install "jax[tpu]"; a slice is v5e:4x8, v5p:2x2x2, ...'
        raise InputError(f"--topology={topology}: {text} ({hint})") from None
    shape = sharding.mesh_shape(wanted, len(found.devices))
    try:
        devices = mesh_utils.create_device_mesh(shape, found.devices)
    except (NotImplementedError, ValueError):  # sizes that no ring of the torus has
        devices = np.array(found.devices).reshape(shape)
    return Mesh(devices, sharding.AXES)


def target(topology: str, wanted: tuple[int, int, int]) -> aot.Target:
    """A slice. Raises InputError as `slice_mesh`, or for a chip whose peaks are not known."""
    mesh = slice_mesh(topology, wanted)
    chip = cost.chip(mesh.devices.flat[0].device_kind)
    if chip is None:
        raise InputError(f"--topology={topology}: no peaks are known for this chip")
    return aot.Target(topology, mesh, chip, chip.memory_bytes - SYSTEM_BYTES, "tpu", {})


def find(config: Config, kind: str) -> str | None:
    """The smallest slice of a kind on which every program fits, None without one.

    Slices that do not even hold the state are left out without compiling.
    """
    _, learner, state = dry_run.described_run(config, aot.ARCHITECTURES)
    for size in SLICES[kind]:
        topology = f"{kind}:{size}"
        for wanted in _meshes(config, topology, learner.policy.config.kv_heads):
            there = target(topology, wanted)
            if sharding.tree_bytes(state, there.mesh) > 0.9 * there.chip.memory_bytes:
                continue
            trial = dataclasses.replace(config, mesh=configs.Mesh(*wanted))
            if aot.report(trial, there, ["learning", "sampling"]):
                return topology
    return None


def _meshes(config: Config, topology: str, heads: int) -> Iterator[tuple[int, int, int]]:
    """Meshes worth trying on a slice: rows over fsdp as far as a mini-batch has some."""
    chips_there = slice_mesh(topology, (1, -1, 1)).size
    for tensor in (1, 2, 4):
        fsdp = chips_there // tensor
        divides = chips_there % tensor == 0 and heads % tensor == 0
        if divides and config.mini_batch_size % fsdp == 0:
            yield 1, fsdp, tensor


def compile_ahead() -> None:
    """The command behind the flags."""
    config, parts, dump = aot.checked()
    if bool(FIND.value) == (TOPOLOGY.value is not None):
        raise InputError("give --topology=SLICE or --find=KINDS")
    for kind in FIND.value:
        if kind not in SLICES:
            raise InputError(f"--find={kind}: must be of {', '.join(SLICES)}")
        print(f"smallest {kind} slice that fits: {find(config, kind)}", flush=True)
    if TOPOLOGY.value is not None:
        aot.report(config, target(TOPOLOGY.value, config.mesh.sizes), parts, dump)


if __name__ == "__main__":
    main.run(compile_ahead, required=["config"])
