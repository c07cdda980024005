"""The compiled programs of a run, made before its first step.

Compiling ahead shows every wrong shape at the start and the memory that a run will need, and leaves
nothing to compile later. Runs of one process whose `Static` is equal share them.
"""

import functools
from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import ShapeDtypeStruct
from jax.sharding import Mesh

from remix_jax import sharding
from remix_jax.learner.state import Learner, TrainState, init_state, reincarnate
from remix_jax.learner.step import StepInputs, learn
from remix_jax.models.decoder import abstract_params
from remix_jax.schedule import Stage
from remix_jax.types import empty_rows


class Memory(NamedTuple):
    """Bytes on one device; 0 where a backend does not tell."""

    arguments: int
    temporary: int


class Program(NamedTuple):
    """An executable and what it takes."""

    call: jax.stages.Compiled
    memory: Memory
    mesh: Mesh | None  # what it was compiled for; host arrays go there by `sharding.put`


class Programs(NamedTuple):
    """Learning by stage name, and the event between the stages."""

    learn: dict[str, Program]
    reincarnate: Program


def build(learner: Learner, stages: Iterable[Stage], mesh: Mesh | None = None) -> Programs:
    """Compiles learning for each stage, and the event between them, for a mesh or one device."""
    learn = {stage.name: compile_learn(learner, stage, mesh) for stage in stages}
    return Programs(learn, _compile_reincarnation(learner, mesh))


@functools.cache
def compile_learn(learner: Learner, stage: Stage, mesh: Mesh | None) -> Program:
    """`step.learn` for a stage; equal learners share it."""
    return finish(trace_learn(learner, stage, mesh), mesh)


@functools.cache
def _compile_reincarnation(learner: Learner, mesh: Mesh | None) -> Program:
    with sharding.over(mesh):
        traced = reincarnate.trace(learner, sharding.abstract(abstract_state(learner), mesh))
    return finish(traced, mesh)


def trace_learn(learner: Learner, stage: Stage, mesh: Mesh | None) -> jax.stages.Traced:
    """The learning phase of a stage."""
    s = learner.static

    def rows(per_group):
        n, slots = stage.fresh_groups * per_group, (s.prompt_slots, s.response_slots)
        return jax.eval_shape(lambda: empty_rows(n, *slots)) if n else None

    fresh, expert = rows(s.own_rows), rows(s.group_size - s.own_rows)
    number, count = (ShapeDtypeStruct((), dtype) for dtype in (jnp.float32, jnp.int32))
    params_M = ShapeDtypeStruct((stage.passes,), jnp.float32)
    given = (fresh, StepInputs(count, number, number, params_M), expert)
    state = sharding.abstract(abstract_state(learner), mesh)
    with sharding.over(mesh):
        given = sharding.abstract(given, mesh, by_rule=False)
        return learn.trace(state, *given, learner=learner, stage=stage)


def finish(traced: jax.stages.Traced, mesh: Mesh | None) -> Program:
    """Compiles what was traced over a mesh."""
    with sharding.over(mesh):
        compiled = traced.lower().compile()
    found = compiled.memory_analysis()
    sizes = (found.argument_size_in_bytes, found.temp_size_in_bytes) if found else (0, 0)
    return Program(compiled, Memory(*sizes), mesh)


def abstract_state(learner: Learner) -> TrainState:
    """Shapes and dtypes of the first state; nothing is allocated."""
    params = abstract_params(learner.policy)
    return jax.eval_shape(lambda params: init_state(learner, params, seed=0), params)
