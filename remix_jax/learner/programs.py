"""The compiled programs of a run, made before its first step.

Compiling ahead shows every wrong shape at the door, tells the memory a run will need, and leaves
nothing to compile later. Runs of one process share programs as far as their configs allow
(`config.compiled_part`): other seeds, learning rates or lengths compile nothing anew.
"""

import functools
from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from remix_jax import sharding
from remix_jax.config import Config, Stage
from remix_jax.learner.state import Learner, TrainState, init_state, reincarnate
from remix_jax.learner.step import learn
from remix_jax.models import sampling
from remix_jax.models.decoder import Decoder
from remix_jax.types import empty_rows


class Memory(NamedTuple):
    """Bytes on one device."""

    arguments: int
    temporary: int


class Program(NamedTuple):
    """An executable and what it takes."""

    call: jax.stages.Compiled
    memory: Memory
    mesh: Mesh | None  # what it was compiled for; host arrays go there by `sharding.put`


class Programs(NamedTuple):
    """Sampling and learning by stage name, the event between the stages, evaluation."""

    sample: dict[str, Program]
    learn: dict[str, Program]
    reincarnate: Program
    evaluate: Program


def sampler_settings(config: Config) -> sampling.SamplerSettings:
    """The distribution of rollouts."""
    s = config.sampling
    return sampling.SamplerSettings(s.temperature, s.top_k, s.top_p, s.min_p)


def build(
    learner: Learner,
    stages: Iterable[Stage],
    eos_ids: tuple[int, ...],
    pad_id: int,
    mesh: Mesh | None = None,
) -> Programs:
    """Compiles sampling and learning for each stage, and evaluation, for a mesh or one device."""
    config = learner.config
    rollouts = functools.partial(
        compile_sampler,
        learner.policy,
        response_slots=config.data.response_tokens,
        eos_ids=eos_ids,
        pad_id=pad_id,
        mesh=mesh,
    )
    sample, learn = {}, {}
    for stage in stages:
        if config.own_rows:
            sample[stage.name] = rollouts(
                prompt_slots=config.prompt_slots,
                prompts=stage.fresh_groups,
                group_size=config.own_rows,
                settings=sampler_settings(config),
            )
        learn[stage.name] = compile_learn(learner, stage, mesh)
    e = config.evaluation
    prompts = max(e.batch_size // e.samples, 1)
    settings = sampling.SamplerSettings(temperature=e.temperature)
    evaluate = rollouts(
        prompt_slots=config.data.prompt_tokens,
        prompts=prompts,
        group_size=e.samples,
        settings=settings,
    )
    return Programs(sample, learn, _compile_reincarnation(learner, mesh), evaluate)


@functools.cache
def compile_sampler(
    policy: Decoder,
    prompt_slots: int,
    response_slots: int,
    prompts: int,
    group_size: int,
    settings: sampling.SamplerSettings,
    *,
    eos_ids: tuple[int, ...],
    pad_id: int,
    mesh: Mesh | None = None,
) -> Program:
    """`sampling.sample` for `prompts` prompts of `prompt_slots` and answers of `response_slots`."""
    slots, counts = (prompt_slots, response_slots), (prompts, group_size)
    traced = trace_sampler(
        policy, slots, counts, settings, eos_ids=eos_ids, pad_id=pad_id, mesh=mesh
    )
    return _finish(traced, mesh)


def trace_sampler(
    policy: Decoder,
    slots: tuple[int, int],
    counts: tuple[int, int],
    settings: sampling.SamplerSettings,
    *,
    eos_ids: tuple[int, ...],
    pad_id: int,
    mesh: Mesh | None,
) -> jax.stages.Traced:
    """The sampler for slots of (prompt, response) and counts of (prompts, rows of a group)."""
    (prompt_slots, response_slots), (prompts, group_size) = slots, counts
    rows = prompts * group_size
    inputs = (
        _abstract((prompts, prompt_slots), jnp.int32),
        _abstract((prompts,), jnp.int32),
        _abstract((rows,), jnp.int32),
        _abstract((rows,), jnp.bool_),
        jax.eval_shape(lambda: jax.random.key(0)),
    )
    with sharding.over(mesh):
        return sampling.sample.trace(
            policy,
            sharding.abstract(_abstract_params(policy), mesh),
            *sharding.abstract_whole(inputs, mesh),
            group_size=group_size,
            max_new_tokens=response_slots,
            settings=settings,
            eos_ids=eos_ids,
            pad_id=pad_id,
        )


@functools.cache
def compile_learn(learner: Learner, stage: Stage, mesh: Mesh | None) -> Program:
    """`step.learn` for a stage; equal learners share it."""
    return _finish(trace_learn(learner, stage, mesh), mesh)


def trace_learn(learner: Learner, stage: Stage, mesh: Mesh | None) -> jax.stages.Traced:
    """The learning phase of a stage."""
    config = learner.config
    state = sharding.abstract(abstract_state(learner), mesh)
    slots = (config.prompt_slots, config.data.response_tokens)

    def rows(per_group):
        n = stage.fresh_groups * per_group
        return jax.eval_shape(lambda: empty_rows(n, *slots)) if n else None

    fresh, expert = rows(config.own_rows), rows(config.expert_rows)
    replayed = _abstract((), jnp.int32)
    numbers = _abstract((stage.passes,), jnp.float32)
    given = sharding.abstract_whole((fresh, replayed, numbers, expert), mesh)
    with sharding.over(mesh):
        return learn.trace(state, *given, learner=learner, stage=stage)


@functools.cache
def _compile_reincarnation(learner: Learner, mesh: Mesh | None) -> Program:
    state = sharding.abstract(abstract_state(learner), mesh)
    with sharding.over(mesh):
        traced = reincarnate.trace(learner, state)
    return _finish(traced, mesh)


def _finish(traced: jax.stages.Traced, mesh: Mesh | None) -> Program:
    with sharding.over(mesh):
        compiled = traced.lower().compile()
    analysis = compiled.memory_analysis()
    if analysis is None:  # a backend may not tell
        return Program(compiled, Memory(0, 0), mesh)
    memory = Memory(analysis.argument_size_in_bytes, analysis.temp_size_in_bytes)
    return Program(compiled, memory, mesh)


def abstract_state(learner: Learner) -> TrainState:
    """Shapes and dtypes of the first state; nothing is allocated."""
    params = _abstract_params(learner.policy)
    return jax.eval_shape(lambda params: init_state(learner, params, learner.config), params)


def _abstract(shape, dtype):
    return jax.ShapeDtypeStruct(shape, dtype)


def _abstract_params(policy: Decoder):
    def made():
        tokens = jnp.zeros((1, 2), jnp.int32)
        return policy.init(jax.random.key(0), tokens, tokens, tokens)

    init = jax.eval_shape(made)
    dtype = jnp.dtype(policy.config.param_dtype)
    return jax.tree.map(lambda x: _abstract(x.shape, dtype), init["params"])
