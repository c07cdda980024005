"""Compiles the programs of a run for devices that are not here, and counts what they take and do.

Sampling, scoring and learning are those of a run, from shapes alone. `launch.tpu_aot` and
`launch.gpu_aot` describe the devices and are the commands; docs/scaling.md explains the figures.
"""

import dataclasses
import math
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # compiling asks for no device

import jax
from absl import flags
from jax.sharding import Mesh

from experiments import config_flag, main
from launch import dry_run, hlo, jaxpr_flops
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
PARTS = flags.DEFINE_list("programs", ["sampling", "scoring", "learning"], "which to compile")
DUMP = flags.DEFINE_string("dump", None, "directory for the compiled programs' text")

ARCHITECTURES = pathlib.Path(main.__file__).resolve().parent / "configs" / "architectures"


class Target(NamedTuple):
    """Devices to compile for."""

    name: str
    mesh: Mesh
    chip: cost.Chip
    room: float  # bytes of a device that programs may take
    platform: str  # "gpu" or "tpu"
    options: dict[str, str]  # the compiler's

    @property
    def used_mesh(self) -> Mesh | None:
        """None for one device, as in a run."""
        return self.mesh if self.mesh.size > 1 else None


class Step(NamedTuple):
    """Drawing one token in every slot."""

    kernels: float
    memory: float
    least: float  # bytes of the matrices and of the middle of the cache, once
    again: dict[str, float]  # bytes of what is made of nothing that changes, by operation


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
    step: Step | None  # of sampling

    def seconds(self, chip: cost.Chip) -> dict[str, float]:
        """The least time that each of the chip's means would take, as far as its rate is known."""
        seconds = {"compute": self.flops / chip.flops, "memory": self.memory / chip.memory_rate}
        if chip.link_rate:
            seconds["links"] = sum(self.received.values()) / chip.link_rate
        return seconds


class TooLarge(NamedTuple):
    """A program that the compiler itself found no room for."""

    name: str
    reason: str


# --- the programs ----------------------------------------------------------------------------


class Traced(NamedTuple):
    """A program before it is compiled."""

    name: str
    traced: jax.stages.Traced
    taken: Any  # what it takes of the state
    trips: tuple[hlo.Trips, ...] = ()  # as of `hlo.Program.traffic`
    least: float = 0.0  # bytes of memory traffic that a step of decoding needs


def compiled_programs(
    config: Config, target: Target, parts: list[str], dump: str | None
) -> Iterator[Compiled | TooLarge]:
    """The figures of each program, one after the other.

    Args:
      config: of the run.
      target: devices, whose mesh suits the config.
      parts: of "sampling", "scoring", "learning".
      dump: directory for the text of the compiled programs.

    Raises:
      InputError: the config does not suit the model or the mesh.
    """
    jax.config.update("jax_enable_compilation_cache", False)  # it loads what it finds on a device
    mesh = target.used_mesh
    _, learner, state = dry_run.described_run(config, ARCHITECTURES, target.platform)
    check_sizes(config, learner.policy.config, mesh)
    state_bytes = sharding.tree_bytes(state, mesh)
    for part in parts:
        program = _MAKERS[part](config, learner, state, target)
        try:
            with sharding.over(mesh), jax.default_device(target.mesh.devices.flat[0]):
                compiled = program.traced.lower().compile(target.options)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            yield TooLarge(program.name, _used(str(error)))
            continue
        text = compiled.as_text()
        if dump:
            pathlib.Path(dump).mkdir(parents=True, exist_ok=True)
            (pathlib.Path(dump) / f"{part}.hlo").write_text(text)
        beside = state_bytes - sharding.tree_bytes(program.taken, mesh)
        sizes = compiled.memory_analysis()
        yield _figures(program, sizes, hlo.Program(text), target.mesh.size, beside)


def _sampling(config: Config, learner: Learner, state: TrainState, target: Target) -> Traced:
    mesh, policy, params = target.used_mesh, learner.policy, state.whole(state.params)
    stage = max(schedule.stages(config).values(), key=lambda stage: stage.fresh_groups)
    kept = sharding.tree_bytes(state, mesh)
    found = decoding(config, policy, mesh, kept, int(target.room))
    task, slots = found[f"sampling, {stage.name} stage"]
    traced = sampler.trace(policy, dataclasses.replace(task, eos_ids=(1,)), mesh)
    # Every response at its full length, the rows in rounds of as many as there are slots: all of it
    # in the first loop over segments, which holds one over tokens.
    rounds = math.ceil(slots.rows / slots.number)
    segments = math.ceil(task.response_slots / slots.segment)
    trips = (rounds * segments,), task.response_slots / segments
    least = cost.decode_bytes(
        policy.config, slots.number, config.prompt_slots + task.response_slots / 2
    )
    least /= 1 if mesh is None else mesh.shape["tensor"]
    name = f"sampling, {task.rows} rows, {slots.number * slots.devices} at once"
    return Traced(name, traced, {"params": params}, trips, least)


def _scoring(config: Config, learner: Learner, state: TrainState, target: Target) -> Traced:
    mesh = target.used_mesh
    rows = learner.static.score_rows(learner.busy_slots, sharding.row_shards(mesh))
    batch = jax.eval_shape(
        lambda: empty_rows(rows, config.prompt_slots, config.data.response_tokens)
    )
    anchor = {"base_params": state.whole(state.base_params or state.params)}

    def score(anchor, rows):
        temperature = config.sampling.temperature
        held = packing.alone(rows)
        return scoring.score_responses(learner.policy, anchor["base_params"], held, temperature)

    with sharding.over(mesh):
        given = sharding.abstract(anchor, mesh), sharding.abstract(batch, mesh, by_rule=False)
        traced = jax.jit(score).trace(*given)
    return Traced(f"scoring, {rows} rows", traced, anchor)


def _learning(config: Config, learner: Learner, state: TrainState, target: Target) -> Traced:
    stage = next(iter(schedule.stages(config).values()))
    traced = trace_learn(learner, stage, target.used_mesh)
    # Rows of full length: as many passes as a mini-batch can need.
    shards = sharding.row_shards(target.used_mesh)
    micro = learner.static.micro_rows(learner.busy_slots, shards)
    return Traced(f"learning, {stage.name} stage", traced, state, (config.mini_batch_size / micro,))


_MAKERS = {"sampling": _sampling, "scoring": _scoring, "learning": _learning}


def _figures(program: Traced, sizes: Any, text: hlo.Program, devices: int, beside: int) -> Compiled:
    outputs = sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    temporary = sizes.temp_size_in_bytes + outputs
    traffic = text.traffic(*program.trips)
    step = None
    if program.least:
        tokens = (loop for loop in text.loops() if loop.trips is None and loop.innermost)
        of_all_slots = max(tokens, key=lambda loop: loop.turn.memory)
        step = Step(*of_all_slots.turn[:2], program.least, of_all_slots.again)
    return Compiled(
        name=program.name,
        arguments=sizes.argument_size_in_bytes,
        temporary=temporary,
        resident=beside + sizes.argument_size_in_bytes + temporary,
        flops=jaxpr_flops.count(program.traced.jaxpr, *program.trips) / devices,
        memory=traffic.memory,
        received=traffic.received,
        calls=traffic.calls,
        step=step,
    )


def _used(message: str) -> str:
    found = re.search(r"Used [\d.]+\w* of [\d.]+\w*", message)
    return found.group() if found else " ".join(message.split())[:120]


# --- tables ----------------------------------------------------------------------------------


def report(config: Config, target: Target, parts: list[str], dump: str | None = None) -> bool:
    """Prints the table of one target; whether all of it fits."""
    axes, room = sharding.axes_text(target.mesh), size_text(target.room)
    print(f"{config.model.path} on {target.name}: {axes}, {room} a device", flush=True)
    fits = True
    for found in compiled_programs(config, target, parts, dump):
        for line in _lines(found, target.chip, target.room):
            print(line, flush=True)
        fits &= isinstance(found, Compiled) and found.resident <= target.room
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
        f"    a device: {found.flops:.3g} FLOPs, {found.memory:.3g} bytes of memory traffic; "
        f"at its peaks {means}; at least {max(seconds.values()):,.1f} s"
    )
    for kind, received in sorted(found.received.items()):
        yield f"    {kind}: {found.calls[kind]:,.0f} calls, {text(received)} received"
    if (step := found.step) is not None:
        yield (
            f"    a step of decoding: {step.kernels:,.0f} kernels, {text(step.memory)} of memory "
            f"traffic; weights and used cache once are {text(step.least)}"
        )
        for what, moved in step.again.items():
            if moved > 0.01 * step.memory:
                yield f"      the same at every step: {what}, {text(moved)}"


def checked() -> tuple[Config, list[str], str | None]:
    """The flags: a config, programs and where to write them.

    Raises:
      InputError: there is no such program.
    """
    unknown = [part for part in PARTS.value if part not in _MAKERS]
    if unknown:
        raise InputError(f"--programs={','.join(unknown)}: must name some of {', '.join(_MAKERS)}")
    return config_flag.value_of(CONFIG), PARTS.value, DUMP.value
