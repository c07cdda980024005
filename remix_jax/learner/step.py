"""The learning phase of a step: (TrainState, fresh rows) -> (TrainState, metrics), one program.

fresh rows ------ replay.add ---+
replay.sample (share p) --------+--> batch of B rows, gathered from the ring once
scored once: prox (replayed rows), base (fresh rows), precedent, values --> advantages
scan over m passes x mini-batches: losses and gradients of their rows packed, two optimizers
precedent <- parameters at the start of the step
"""

import functools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import ShapeDtypeStruct
from jax.sharding import Mesh

from remix_jax import sharding
from remix_jax.config import Config
from remix_jax.learner import batch as batches
from remix_jax.learner import losses
from remix_jax.learner.state import Learner, Static, TrainState, abstract_state, reincarnate
from remix_jax.models import packing
from remix_jax.rl import family, masked, off_policy, replay, schedules
from remix_jax.schedule import Stage, fresh_groups, stage_at, stages
from remix_jax.sharding import Program
from remix_jax.types import Batch, FreshRows, Rows, empty_rows

# Rows of a step whose tokens are shown to people: fresh ones, and replayed ones.
SHOWN, SHOWN_REPLAYED = 16, 4


class StepInputs(NamedTuple):
    """The numbers of a step that are data, NumPy or JAX: other values compile nothing."""

    replayed_groups: Any  # int32, groups to replay, at most stage.replay_groups
    learning_rate: Any  # of the policy
    critic_learning_rate: Any
    method_params_M: Any  # the method's parameters by name, in each pass
    shown_K: Any  # int32, of the fresh rows, K = SHOWN


def step_inputs(config: Config, step: int, shown: Sequence[int] = ()) -> StepInputs:
    """Of a step (from 1) of a run, on the host; the first SHOWN of `shown` are shown."""
    replayed = np.asarray(config.batch_groups - fresh_groups(config, step), np.int32)
    rate, critic_rate = (
        np.float32(schedules.learning_rate(step, config.steps, rate, o.warmup, o.decay))
        for o, rate in zip((config.optimizer, config.critic.optimizer), config.rates, strict=True)
    )
    o, passes = config.objective, stages(config)[stage_at(config, step)].passes
    params_M = family.scheduled(o.method, o.method_params, step, config.steps, passes)
    shown_K = np.zeros(SHOWN, np.int32)
    shown_K[: len(shown[:SHOWN])] = shown[:SHOWN]
    return StepInputs(replayed, rate, critic_rate, params_M, shown_K)


@functools.partial(jax.jit, static_argnames=("learner", "stage"), donate_argnames=("state",))
def learn(
    state: TrainState,
    fresh: FreshRows | None,
    inputs: StepInputs,
    expert: FreshRows | None = None,
    *,
    learner: Learner,
    stage: Stage,
) -> tuple[TrainState, dict]:
    """One learning phase.

    Args:
      state: donated.
      fresh: rows of stage.fresh_groups groups, sampled by `state.params`, or None.
      expert: an expert's rows of the same groups, or None.

    Returns:
      The next state, and metrics: scalars, and `shown`, rows for people (`_shown`). Where a loss or
      a gradient is not finite no update is made from there on, and `state.fault_F` says which.
    """
    s, step = learner.static, state.step + 1
    first_params = {name: x_M[0] for name, x_M in inputs.method_params_M.items()}
    key_replay, key_shuffle = jax.random.split(jax.random.fold_in(state.key, step))
    rows = batches.complete(learner, stage, state, fresh, expert, first_params)
    ring, fresh_slots = replay.add(state.replay, rows)
    kl_weight: Any = jnp.ones(())
    if s.kl_schedule is not None:
        kl_weight = schedules.kl_convex_weight(step, *s.kl_schedule)
    batch = batches.assemble(
        s, stage, ring, rows, fresh_slots, step, key_replay, inputs.replayed_groups
    )
    batch = batches.score(learner, stage, state, batch, kl_weight)
    ring, batch, found = batches.with_advantages(learner, ring, batch, first_params, kl_weight)
    # Small, and read at random by every mini-batch: whole on each device of a mesh.
    batch = jax.tree.map(sharding.constrain, batch)
    update = functools.partial(_update, learner, stage, batch, inputs, kl_weight, state.whole)
    begin = state.replace(replay=ring, step=step, frozen=None)
    drawn = _mini_batches(s, stage, key_shuffle, inputs.method_params_M)
    place_K = _shown_places(s, batch, fresh_slots, inputs.shown_K)
    unseen_KT = jnp.zeros((len(place_K), batch.response_slots))
    carried = begin, place_K, {"ratio_BT": unseen_KT, "entropy_BT": unseen_KT}
    (new, _, seen), sums = jax.lax.scan(update, carried, drawn)
    new = new.replace(frozen=state.frozen)

    own_B = batch.valid_B & ~batch.expert_B
    found |= losses.means(s, sums) | {
        "n_fresh": (own_B & (batch.age_B == 0)).sum(),
        "n_replayed": (own_B & (batch.age_B > 0)).sum(),
        "kl_weight": kl_weight,
        "learning_rate": inputs.learning_rate,
        "shown": _shown(batch, place_K) | {f"{name[:-3]}_KT": x for name, x in seen.items()},
    }
    if expert is not None:
        found["n_expert"] = (batch.valid_B & batch.expert_B).sum()
    if fresh is not None:
        found |= batches.sampler_gap(learner, state.whole(state.params), fresh)
    if (weight_BT := rows.sampler_weight_BT) is not None:
        own_BT = rows.own_BT
        beyond_BT = (weight_BT >= s.correction_cap) | (weight_BT == 0)
        found["sampler_weight"] = masked.mean(weight_BT, own_BT)
        found["sampler_weight_capped"] = masked.mean(beyond_BT.astype(jnp.float32), own_BT)
    if s.has_precedent:
        new = new.replace(prev_params=optax.tree.cast(state.params, s.anchors_dtype or None))
    return sharding.by_rules(new), jax.tree.map(sharding.constrain, found)


def _mini_batches(static: Static, stage: Stage, key, method_params_M):
    """Row numbers [passes * mini-batches, rows], shuffled anew in each pass.

    By groups for methods that compare their rows. And a key and the method's parameters of each.
    """
    keys = jax.random.split(key, stage.passes)
    unit = static.group_size if family.METHODS[static.method].whole_groups else 1
    order = jax.vmap(lambda k: jax.random.permutation(k, static.batch_size // unit))(keys)
    if unit > 1:
        order = (order[..., None] * unit) + jnp.arange(unit)[None, None, :]
    index = order.reshape(-1, static.mini_batch_size)
    keys = jax.random.split(jax.random.fold_in(key, 1), index.shape[0])
    updates = index.shape[0] // stage.passes
    return index, keys, jax.tree.map(lambda x_M: jnp.repeat(x_M, updates), method_params_M)


def _update(learner: Learner, stage: Stage, batch: Batch, inputs, kl_weight, whole, carry, drawn):
    """One mini-batch: gradients of its passes added up, then one step of each optimizer.

    Carried are the state, but for its frozen weights, which `whole` adds; and what is seen of the
    tokens of the rows to be shown, in the last pass of each.
    """
    (state, place_K, seen), (index, key, method_params) = carry, drawn
    s = learner.static
    mini = jax.tree.map(lambda x: x[index], batch)
    count = jnp.maximum(masked.count(mini.mask_BT, s.aggregation), 1.0)
    terms, mini = losses.minibatch_terms(learner, whole(state.params), mini, method_params)
    ages = s.window + 1 if stage.replay_groups > 0 else 1

    def of_whole(loss):
        return lambda params, *given: loss(whole(params), *given)

    def backward(held, rows: Batch):
        rows = off_policy.zero_unknown(rows)
        grads, sums = jax.grad(of_whole(losses.policy_loss), has_aux=True)(
            state.params, learner, held, rows, terms, kl_weight, count, ages
        )
        critic_grads = None
        if learner.critic:
            sums["loss_value"], critic_grads = jax.value_and_grad(of_whole(losses.critic_loss))(
                state.critic_params, learner, held, rows, count
            )
        return (grads, critic_grads), sums

    grads, sums = _accumulate(learner, backward, mini)
    here_KB = place_K[:, None] == index[None, :]
    is_here_K1, at_K = here_KB.any(axis=1)[:, None], here_KB.argmax(axis=1)
    seen = {name: jnp.where(is_here_K1, sums.pop(name)[at_K], x) for name, x in seen.items()}
    if s.imitation_weight > 0:
        imitation, sums["loss_imitation"] = _imitate(learner, state, of_whole, key)
        grads = (jax.tree.map(jnp.add, grads[0], imitation), grads[1])
    state, norms = _apply(learner, inputs, state, grads, sums)
    trained_B = mini.valid_B & ~state.fault_F.any()
    ring = replay.touch(state.replay, mini.slots_B, trained_B)
    return (state.replace(replay=ring), place_K, seen), sums | norms


def _shown_places(s: Static, batch: Batch, fresh_slots, shown_K):
    """Where the rows to be shown lie in the batch: the fresh ones, and the first row of the first
    groups, which are the replayed ones where there are any."""
    replayed = np.arange(SHOWN_REPLAYED) * s.group_size % s.batch_size
    own = fresh_slots.reshape(-1, s.group_size)[:, : s.own_rows].reshape(-1)
    if not s.own_rows:
        return jnp.asarray(replayed)
    # The first: places that no row fills come last, and point at some row's slot all the same.
    fresh_K = (batch.slots_B[None, :] == own[shown_K][:, None]).argmax(axis=1)
    return jnp.concatenate([fresh_K, replayed])


def _shown(batch: Batch, place_K) -> dict:
    """What the batch has of the rows to be shown; a place may hold none, or a fresh row twice."""
    rows = jax.tree.map(lambda x: x[place_K], batch)
    is_own_K = rows.valid_B & ~rows.expert_B
    return {
        "age_K": jnp.where(is_own_K, rows.age_B, -1),
        "tokens_KS": rows.tokens_BS,
        "prompt_len_K": rows.prompt_len_B,
        "response_len_K": rows.response_len_B,
        "reward_K": rows.reward_B,
        "success_K": rows.success_B,
        "logp_KT": rows.behav_logp_BT,
        "advantage_KT": rows.adv_BT,
    }


def _imitate(learner: Learner, state: TrainState, of_whole, key):
    """Gradient and value of the imitation loss on a mini-batch of successes; zeros without one."""
    s, ring, n = learner.static, state.replay, learner.static.mini_batch_size
    slots_B, found = replay.draw_successes(ring, key, state.step, s.imitation_window, n)
    rows = replay.take(ring, slots_B)
    rows = rows.replace(valid_B=rows.valid_B & found)
    count = jnp.maximum(masked.count(rows.mask_BT, s.aggregation), 1.0)

    def backward(held, rows):
        value_and_grad = jax.value_and_grad(of_whole(losses.imitation_loss))
        loss, grads = value_and_grad(state.params, learner, held, rows, count)
        return grads, {"loss": loss}

    grads, sums = _accumulate(learner, backward, rows)
    return grads, sums["loss"]


def _accumulate(learner: Learner, backward, rows: Rows):
    """Gradients of a mini-batch, its rows packed, pass after pass; and the sums of the losses.

    `backward` gets the buffers of a pass, and the rows, valid where the pass has them. The sums get
    the numbers of `tokens` and of the `slots` that they took.
    """
    shards = sharding.row_shards(sharding.in_use())
    n = learner.static.micro_rows(learner.busy_slots, shards)
    packed = packing.pack(rows, n)
    N, S = packed.source_NS.shape

    def of_pass(i):
        held = packing.take(packed, rows, i, n)
        grads, sums = backward(held, rows.replace(valid_B=rows.valid_B & held.here_B))
        return sharding.by_rules(grads), sums

    def add(i, total):
        maxima = {name: jnp.maximum for name in total[1] if name.startswith("max_")}
        grads, sums = of_pass(i)
        sums = {name: maxima.get(name, jnp.add)(x, sums[name]) for name, x in total[1].items()}
        return jax.tree.map(jnp.add, total[0], grads), sums

    passes: Any = 1
    if n == N:
        grads, sums = of_pass(0)
    else:
        passes = packed.passes(n)
        shapes = jax.eval_shape(of_pass, jnp.int32(0))
        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        grads, sums = jax.lax.fori_loop(0, passes, add, nothing)
    slots = jnp.asarray(passes * n * S, jnp.float32)
    return grads, sums | {"tokens": packed.tokens.astype(jnp.float32), "slots": slots}


def _apply(learner: Learner, inputs: StepInputs, state: TrainState, grads, sums):
    """Both optimizers' steps, unless something is not finite, now or before."""
    # Of every tensor: their sum is the square of the norm, and a NaN shows where it is.
    squares = [
        [jnp.sum(jnp.square(g.astype(jnp.float32))) for g in jax.tree.leaves(tree)]
        for tree in grads
    ]
    of_losses = [sums["loss"], sums.get("loss_value", jnp.zeros(()))]
    observed_F = jnp.stack([*of_losses, *squares[0], *squares[1]])
    fault_F = jnp.where(state.fault_F.any(), state.fault_F, ~jnp.isfinite(observed_F))
    new, norms = {"fault_F": fault_F}, {}
    models = [("", learner.optimizer, inputs.learning_rate)]
    if learner.critic:
        models.append(("critic_", learner.critic_optimizer, inputs.critic_learning_rate))
    healthy = ~fault_F.any()
    for i, (of, optimizer, rate) in enumerate(models):
        names = (f"{of}params", f"{of}opt_state")
        norm = norms[f"{of}grad_norm"] = jnp.sqrt(sum(squares[i]))
        params, opt_state = old = tuple(getattr(state, name) for name in names)
        steps, opt_state = optimizer.update(
            grads[i], opt_state, params, norm=norm, learning_rate=rate
        )
        moved = optax.apply_updates(params, steps), opt_state
        moved = jax.tree.map(lambda new, old: jnp.where(healthy, new, old), moved, old)
        new |= zip(names, moved, strict=True)
    return state.replace(**new), norms


class Programs(NamedTuple):
    """Learning by stage name, and the event between the stages."""

    learn: dict[str, Program]
    reincarnate: Program


def build(learner: Learner, stages: Iterable[Stage], mesh: Mesh | None = None) -> Programs:
    """All that a run learns with, compiled before its first step for a mesh or one device.

    So every wrong shape shows at the start, and the memory that the run will need.
    """
    by_stage = {stage.name: compile_learn(learner, stage, mesh) for stage in stages}
    return Programs(by_stage, _compile_reincarnation(learner, mesh))


@functools.cache
def compile_learn(learner: Learner, stage: Stage, mesh: Mesh | None) -> Program:
    """`learn` for a stage; runs of one process whose learners are equal share it."""
    return sharding.compiled(trace_learn(learner, stage, mesh), mesh)


@functools.cache
def _compile_reincarnation(learner: Learner, mesh: Mesh | None) -> Program:
    with sharding.over(mesh):
        traced = reincarnate.trace(learner, sharding.abstract(abstract_state(learner), mesh))
    return sharding.compiled(traced, mesh)


def trace_learn(learner: Learner, stage: Stage, mesh: Mesh | None) -> jax.stages.Traced:
    """`learn` for a stage, from shapes alone."""
    s = learner.static

    def rows(per_group):
        n, slots = stage.fresh_groups * per_group, (s.prompt_slots, s.response_slots)
        return jax.eval_shape(lambda: empty_rows(n, *slots)) if n else None

    number, count = (ShapeDtypeStruct((), dtype) for dtype in (jnp.float32, jnp.int32))
    params = family.scheduled(s.method, (), 1, 1, stage.passes)
    params_M, shown_K = jax.eval_shape(lambda: params), ShapeDtypeStruct((SHOWN,), jnp.int32)
    inputs = StepInputs(count, number, number, params_M, shown_K)
    given = (rows(s.own_rows), inputs, rows(s.group_size - s.own_rows))
    state = sharding.abstract(abstract_state(learner), mesh)
    with sharding.over(mesh):
        given = sharding.abstract(given, mesh, by_rule=False)
        return learn.trace(state, *given, learner=learner, stage=stage)
