"""The sampler's interface; factories make one for a `Task`, the static numbers of its batches:
`compiled` is ours, in JAX, `sampling.engine` names a user's own (docs/samplers.md).
"""

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh

from remix_jax import device_memory, plugins, sharding
from remix_jax.config import Config
from remix_jax.errors import InputError
from remix_jax.models import sampling
from remix_jax.models.decoder import Decoder, abstract_params
from remix_jax.models.lora import held
from remix_jax.models.sampling import Begun, Prompts, Sampled, SamplerSettings, Task
from remix_jax.schedule import Stage


class Sampler(Protocol):
    """Draws a response for each row of a batch; row b answers prompt b // group_size."""

    def __call__(self, params: dict, prompts: Prompts, key: jax.Array) -> Sampled: ...


class Samplers(NamedTuple):
    """A run's: of rollouts by stage name, and of evaluation."""

    rollout: dict[str, Sampler]
    evaluate: Sampler


def build(
    config: Config,
    policy: Decoder,
    stages: Iterable[Stage],
    eos_ids: tuple[int, ...],
    pad_id: int,
    mesh: Mesh | None = None,
    kept: int = 0,
) -> Samplers:
    """The samplers of a run, by `sampling.engine`; `kept` as of `make`."""

    def made(task: Task) -> Sampler:
        return make(config, policy, task, mesh, kept)

    ends = eos_ids, pad_id
    rollout = {s.name: made(rollout_task(config, s, *ends)) for s in stages if config.own_rows}
    return Samplers(rollout, made(evaluation_task(config, *ends)))


def rollout_task(config: Config, stage: Stage, eos_ids: tuple[int, ...], pad_id: int) -> Task:
    """The fresh rows of a step."""
    carry = config.sampling.carry if stage.name == "mix" else 0
    rows = config.prompt_slots, config.own_rows, config.data.response_tokens
    how = sampler_settings(config), eos_ids, pad_id
    return Task(stage.fresh_groups + carry, *rows, *how, carry=carry > 0)


def evaluation_task(config: Config, eos_ids: tuple[int, ...], pad_id: int) -> Task:
    """A batch of held-out problems."""
    e, data = config.evaluation, config.data
    prompts = max(e.batch_size // e.samples, 1)
    rows = prompts, data.prompt_tokens, e.samples, data.response_tokens
    return Task(*rows, SamplerSettings(e.temperature, top_p=e.top_p), eos_ids, pad_id)


def sampler_settings(config: Config) -> SamplerSettings:
    """The distribution of rollouts."""
    s = config.sampling
    return SamplerSettings(s.temperature, s.top_k, s.top_p, s.min_p)


def with_budget(
    config: Config,
    policy: Decoder,
    task: Task,
    mesh: Mesh | AbstractMesh | None,
    kept: int,
    limit: int | None,
) -> Task:
    """The task with its `budget` of cache: memory.decode_tokens, or what memory is left.

    Left for rows is 7 / 8 of the limit, less what is kept, the weights as they are decoded with,
    and the prompts' cache; a row takes its cache, and four times its logits while one is drawn.

    Args:
      kept: bytes that stay on a device while it decodes.
      limit: bytes of a device; None: not known, and enough for all rows.
    """
    budget = config.memory.decode_tokens
    plan = task.in_slots(sharding.row_shards(mesh), policy.config)
    if limit is not None and not budget:
        sizes, tensor = policy.config, 1 if mesh is None else mesh.shape["tensor"]
        width = jnp.dtype(sizes.dtype).itemsize
        slot = 2 * sizes.layers * sizes.kv_heads * sizes.head_dim * width // tensor
        params = jax.tree.leaves(abstract_params(policy))
        weights = sum(x.size * min(x.dtype.itemsize, width) for x in params) // tensor
        left = limit - limit // 8 - kept - weights - plan.prompts * task.prompt_slots * slot
        row = task.slots * slot + 4 * 4 * sizes.vocab_size // tensor
        budget = max(left // row, 1) * task.slots
    return dataclasses.replace(task, budget=budget if budget < plan.rows * task.slots else 0)


def make(
    config: Config, policy: Decoder, task: Task, mesh: Mesh | None = None, kept: int = 0
) -> Sampler:
    """The sampler that a config asks for, made for a task; a user's is checked in every batch.

    Args:
      kept: bytes that stay on a device beside it: by these it decodes as many rows at once as the
        memory holds (`with_budget`).

    Raises:
      InputError: sampling.engine names no factory; when called: other shapes than the task's.
    """
    engine = config.sampling.engine
    task = with_budget(config, policy, task, mesh, kept, device_memory.limit())
    if not engine:
        return compiled(policy, task, mesh)
    where = f"sampling.engine = {engine!r}"
    own = plugins.load(engine, "sampling.engine")(policy, task, mesh)
    B = task.rows
    shapes = {"B": (B,), "BS": (B, task.slots), "BT": (B, task.response_slots), "steps": ()}

    def checked(params: dict, prompts: Prompts, key: jax.Array) -> Sampled:
        sampled = own(params, prompts, key)
        if not isinstance(sampled, Sampled):
            raise InputError(f"{where}: gives {type(sampled).__name__}, no models.sampling.Sampled")
        placed = {}
        for name, value in sampled._asdict().items():
            letters = name.rpartition("_")[2]
            found, right = np.shape(value), shapes[letters]
            if found != right:
                raise InputError(f"{where}: {name} is of shape {found}, not {right}")
            dtype = np.float32 if letters == "BT" else bool if name == "ended_B" else np.int32
            on_device = isinstance(value, jax.Array)
            placed[name] = value if on_device else sharding.put(np.asarray(value, dtype), mesh)
        return Sampled(**placed)

    vars(checked)["temporary_bytes"] = getattr(own, "temporary_bytes", None)
    return checked


@functools.cache
def compiled(policy: Decoder, task: Task, mesh: Mesh | None = None) -> Sampler:
    """The sampler in JAX: prefill and decoding in one program, its memory known beforehand."""
    program = sharding.compiled(trace(policy, task, mesh), mesh)

    def draw(params: dict, prompts: Prompts, key: jax.Array) -> Sampled:
        on_devices = jax.tree.map(lambda x: sharding.put(x, mesh), (prompts, key))
        return program.call(params, *on_devices)  # only dispatched: the result may be waited for

    vars(draw).update(program=program, temporary_bytes=program.temporary_bytes)
    return draw


def trace(policy: Decoder, task: Task, mesh: Mesh | None = None) -> jax.stages.Traced:
    """`models.sampling.sample` for a task, from shapes alone."""
    (Q, P), B, BT = (task.prompts, task.prompt_slots), task.rows, (task.rows, task.response_slots)

    def shaped(kind, *shapes) -> Any:
        return kind(*(jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes))

    whole, number, flag = jnp.int32, jnp.float32, jnp.bool_
    prompts = shaped(Prompts, ((Q, P), whole), ((Q,), whole), ((B,), whole), ((B,), flag))
    if task.carry:
        logps = (BT, number), (BT, number)
        begun = shaped(Begun, (BT, whole), *logps, ((B,), whole), ((B,), flag))
        prompts = prompts._replace(begun=begun, groups=jax.ShapeDtypeStruct((), whole))
    inputs = prompts, jax.eval_shape(lambda: jax.random.key(0))
    with sharding.over(mesh):
        params = jax.eval_shape(functools.partial(held, policy.config), abstract_params(policy))
        return sampling.sample.trace(
            policy,
            sharding.abstract(params, mesh),
            *sharding.abstract(inputs, mesh, by_rule=False),
            task=task,
        )
