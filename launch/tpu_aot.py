"""What a run would need and do on a TPU slice, by the TPU compiler: no TPU is asked for.

    python -m launch.tpu_aot --config=experiments/configs/remix_ppo_1p5b.py --topology=v5p:4x4x2
    python -m launch.tpu_aot --config=experiments/configs/remix_ppo_7b.py --find=v5e,v5p,v6e

Sampling, scoring and learning are the programs of a run, compiled for the slice from shapes alone.
Needs `pip install "jax[tpu]"` beside the other requirements, in an environment of its own, and some
minutes a slice. docs/scaling.md explains the columns.
"""

import copy
import dataclasses
import os
import pathlib
import re
from collections.abc import Iterator
from typing import NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # compiling asks for no device
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # nor for a cloud's metadata
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # slices may be compiled side by side

import jax
import numpy as np
from absl import flags
from jax.experimental import mesh_utils, topologies
from jax.sharding import Mesh

from experiments import config_flag, main
from launch import dry_run, hlo, jaxpr_flops
from remix_jax import config as configs
from remix_jax import cost, schedule, sharding
from remix_jax.config import Config
from remix_jax.errors import InputError
from remix_jax.learner.state import Learner, TrainState
from remix_jax.learner.step import trace_learn
from remix_jax.models import packing, scoring
from remix_jax.rollout import sampler
from remix_jax.run.setup import check_sizes, decoding
from remix_jax.text import size_text
from remix_jax.types import empty_rows

CONFIG = config_flag.define()
TOPOLOGY = flags.DEFINE_string("topology", None, "slice: v5e:4x8, v5p:4x4x2, v6e:4x4, ...")
FIND = flags.DEFINE_list("find", [], "the smallest slice that fits, of each of v5e, v5p, v6e")
PARTS = flags.DEFINE_list("programs", ["sampling", "scoring", "learning"], "which to compile")
DUMP = flags.DEFINE_string("dump", None, "directory for the compiled programs' text")

ARCHITECTURES = pathlib.Path(main.__file__).resolve().parent / "configs" / "architectures"
# Slices on offer, smallest first (cloud.google.com/tpu/docs/{v5e,v5p,v6e}).
SLICES = {
    "v5e": ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    "v6e": ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    "v5p": ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8"),
}
SYSTEM_BYTES = 256 * 2**20  # of a chip's memory, kept by the runtime


class Compiled(NamedTuple):
    """Figures of one program, bytes and times of one device."""

    name: str
    arguments: int
    temporary: int  # with outputs that are not written over an argument
    resident: int  # arguments, temporaries and whatever of the state the program does not take
    flops: float
    memory: float  # bytes to and from the chip's memory
    received: dict[str, float]  # bytes from other devices, by collective
    calls: dict[str, float]

    def seconds(self, chip: cost.Chip) -> dict[str, float]:
        """The least time that each of the chip's means would take."""
        return {
            "compute": self.flops / chip.flops,
            "memory": self.memory / chip.memory_rate,
            "links": sum(self.received.values()) / chip.link_rate,
        }


class TooLarge(NamedTuple):
    """A program that the compiler itself found no room for."""

    name: str
    reason: str


# --- the programs ----------------------------------------------------------------------------


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


def compiled_programs(
    config: Config, topology: str, parts: list[str], dump: str | None
) -> Iterator[Compiled | TooLarge]:
    """The figures of each program, one after the other."""
    mesh = slice_mesh(topology, config.mesh.sizes)
    config = copy.deepcopy(config)
    if config.model.attention == "auto":
        config.model.attention = "splash"
    _, learner, state = dry_run.described_run(config, ARCHITECTURES)
    check_sizes(config, learner.policy.config, mesh)
    state_bytes = sharding.tree_bytes(state, mesh)
    for part in parts:
        name, traced, trips, taken = _MAKERS[part](config, learner, state, mesh)
        try:
            with sharding.over(mesh):
                compiled = traced.lower().compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            yield TooLarge(name, _used(str(error)))
            continue
        if dump:
            pathlib.Path(dump).mkdir(parents=True, exist_ok=True)
            (pathlib.Path(dump) / f"{part}.hlo").write_text(compiled.as_text())
        beside = state_bytes - sharding.tree_bytes(taken, mesh)
        yield _figures(name, traced, compiled, trips, mesh.size, beside)


def _sampling(config: Config, learner: Learner, state: TrainState, mesh: Mesh):
    stage = max(schedule.stages(config).values(), key=lambda stage: stage.fresh_groups)
    kept = sharding.tree_bytes(state, mesh)
    peaks = cost.chip(mesh.devices.flat[0].device_kind)
    limit = int(peaks.memory_bytes) - SYSTEM_BYTES if peaks else None
    found = decoding(config, learner.policy, mesh, kept, limit)
    task, slots = found[f"sampling, {stage.name} stage"]
    task = dataclasses.replace(task, eos_ids=(1,))
    traced = sampler.trace(learner.policy, task, mesh)
    name = f"sampling, {task.rows} rows, {slots.number * slots.devices} at once"
    # Every response at its full length, all of it in the first of the loops.
    return name, traced, slots.segment, {"params": state.params}


def _scoring(config: Config, learner: Learner, state: TrainState, mesh: Mesh):
    rows = learner.static.score_rows(sharding.row_shards(mesh))
    batch = jax.eval_shape(
        lambda: empty_rows(rows, config.prompt_slots, config.data.response_tokens)
    )
    anchor = {"base_params": state.base_params or state.params}

    def score(anchor, rows):
        temperature = config.sampling.temperature
        held = packing.alone(rows)
        return scoring.score_responses(learner.policy, anchor["base_params"], held, temperature)

    with sharding.over(mesh):
        given = sharding.abstract(anchor, mesh), sharding.abstract(batch, mesh, by_rule=False)
        traced = jax.jit(score).trace(*given)
    return f"scoring, {rows} rows", traced, 1.0, anchor


def _learning(config: Config, learner: Learner, state: TrainState, mesh: Mesh):
    stage = next(iter(schedule.stages(config).values()))
    # Rows of full length: as many passes as a mini-batch can need.
    passes = config.mini_batch_size / learner.static.micro_rows(sharding.row_shards(mesh))
    return f"learning, {stage.name} stage", trace_learn(learner, stage, mesh), passes, state


_MAKERS = {"sampling": _sampling, "scoring": _scoring, "learning": _learning}


def _figures(name: str, traced, compiled, trips: float, devices: int, beside: int) -> Compiled:
    sizes = compiled.memory_analysis()
    outputs = sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    temporary = sizes.temp_size_in_bytes + outputs
    traffic = hlo.Program(compiled.as_text()).traffic(trips)
    return Compiled(
        name=name,
        arguments=sizes.argument_size_in_bytes,
        temporary=temporary,
        resident=beside + sizes.argument_size_in_bytes + temporary,
        flops=jaxpr_flops.count(traced.jaxpr, trips) / devices,
        memory=traffic.memory,
        received=traffic.received,
        calls=traffic.calls,
    )


def _used(message: str) -> str:
    found = re.search(r"Used [\d.]+\w* of [\d.]+\w*", message)
    return found.group() if found else " ".join(message.split())[:120]


# --- tables ----------------------------------------------------------------------------------


def report(config: Config, topology: str, parts: list[str], dump: str | None) -> bool:
    """Prints the table of one slice; whether all of it fits."""
    mesh = slice_mesh(topology, config.mesh.sizes)
    chip = cost.chip(mesh.devices.flat[0].device_kind)
    if chip is None:
        raise InputError(f"--topology={topology}: no peaks are known for this chip")
    room = chip.memory_bytes - SYSTEM_BYTES
    axes = sharding.axes_text(mesh)
    print(f"{config.model.path} on {topology}: {axes}, {size_text(room)} a chip", flush=True)
    fits = True
    for found in compiled_programs(config, topology, parts, dump):
        for line in _lines(found, chip, room):
            print(line, flush=True)
        fits &= isinstance(found, Compiled) and found.resident <= room
    print("fits" if fits else "does not fit", flush=True)
    return fits


def _lines(found: Compiled | TooLarge, chip: cost.Chip, room: float) -> Iterator[str]:
    if isinstance(found, TooLarge):
        yield f"  {found.name}: refused by the compiler, {found.reason}"
        return
    text = size_text
    verdict = "fits" if found.resident <= room else "DOES NOT FIT"
    yield (
        f"  {found.name}: arguments {text(found.arguments)}, temporaries {text(found.temporary)}, "
        f"peak with all of the state {text(found.resident)}: {verdict}"
    )
    seconds = found.seconds(chip)
    means = ", ".join(f"{mean} {value:,.1f} s" for mean, value in seconds.items())
    yield (
        f"    a chip: {found.flops:.3g} FLOPs, {found.memory:.3g} bytes of memory traffic; "
        f"at the chip's peaks {means}; at least {max(seconds.values()):,.1f} s"
    )
    for kind, received in sorted(found.received.items()):
        yield f"    {kind}: {found.calls[kind]:,.0f} calls, {text(received)} received"


def find(config: Config, kind: str) -> str | None:
    """The smallest slice of a kind on which every program fits, None without one.

    Slices that do not even hold the state are left out without compiling.
    """
    _, learner, state = dry_run.described_run(config, ARCHITECTURES)
    for size in SLICES[kind]:
        topology = f"{kind}:{size}"
        for wanted in _meshes(config, topology, learner.policy.config.kv_heads):
            mesh = slice_mesh(topology, wanted)
            chip = cost.chip(mesh.devices.flat[0].device_kind)
            trial = dataclasses.replace(config, mesh=configs.Mesh(*wanted))
            if chip is None or sharding.tree_bytes(state, mesh) > 0.9 * chip.memory_bytes:
                continue
            if report(trial, topology, ["learning", "sampling"], None):
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
    config = config_flag.value_of(CONFIG)
    unknown = [part for part in PARTS.value if part not in _MAKERS]
    if unknown:
        raise InputError(f"--programs={','.join(unknown)}: must name some of {', '.join(_MAKERS)}")
    if bool(FIND.value) == (TOPOLOGY.value is not None):
        raise InputError("give --topology=SLICE or --find=KINDS")
    for kind in FIND.value:
        if kind not in SLICES:
            raise InputError(f"--find={kind}: must be of {', '.join(SLICES)}")
        print(f"smallest {kind} slice that fits: {find(config, kind)}", flush=True)
    if TOPOLOGY.value is not None:
        report(config, TOPOLOGY.value, PARTS.value, DUMP.value)


if __name__ == "__main__":
    main.run(compile_ahead, required=["config"])
