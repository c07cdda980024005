"""The learning phase of a step: (TrainState, fresh rows) -> (TrainState, metrics), one program.

    fresh rows ------ replay.add ---+
    replay.sample (share p) --------+--> batch of B rows, gathered from the ring once
    scored once: prox (replayed rows), base (fresh rows), precedent, values --> advantages
    scan over m passes x mini-batches (x micro-batches), slices of the batch: losses, gradients,
        two optimizers
    precedent <- parameters at the start of the step

What a mini-batch changes of the ring, the uses of its rows, rides in the scan's carry.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from remix_jax import sharding
from remix_jax.config import Config
from remix_jax.learner import batch as batches
from remix_jax.learner import losses, metrics
from remix_jax.learner.state import Learner, Static, TrainState
from remix_jax.rl import family, masked, replay, schedules
from remix_jax.schedule import Stage, fresh_groups, learning_rates, method_params
from remix_jax.types import Batch, FreshRows


class StepInputs(NamedTuple):
    """The numbers of a step that are data, NumPy or JAX: other values compile nothing."""

    replayed_groups: Any  # int32, groups to replay, at most stage.replay_groups
    learning_rate: Any  # of the policy
    critic_learning_rate: Any
    method_param_M: Any  # the method's parameter in each pass


def step_inputs(config: Config, step: int) -> StepInputs:
    """Of a step (from 1) of a run, on the host."""
    replayed = np.asarray(config.batch_groups - fresh_groups(config, step), np.int32)
    rate, critic_rate = map(np.float32, learning_rates(config, step))
    return StepInputs(replayed, rate, critic_rate, method_params(config, step))


class _Shared(NamedTuple):
    """What all updates of a step share."""

    batch: Batch
    ring: replay.ReplayState
    step: jax.Array  # from 1
    kl_weight: jax.Array  # of the base anchor
    inputs: StepInputs


class _Carry(NamedTuple):
    """What a mini-batch changes."""

    state: TrainState  # without the parts that no mini-batch changes
    used_R: jax.Array  # gradient passes over each row of the ring
    row_ratio_R: jax.Array  # mean ratio of each row of the ring, in its last pass


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
      fresh: rows of stage.fresh_groups groups, sampled by `state.params`; None where all are an
        expert's.
      expert: an expert's rows of the same groups, None without.

    Returns:
      The next state, and metrics: scalars, and `row_ratio_B` of the fresh rows. Where a loss or a
      gradient is not finite no update is made from there on, and `state.fault_F` says which.
    """
    s, step, first_param = learner.static, state.step + 1, inputs.method_param_M[0]
    key_replay, key_shuffle = jax.random.split(jax.random.fold_in(state.key, step))
    rows = batches.complete(learner, stage, state, fresh, expert, first_param)
    ring, fresh_slots = replay.add(state.replay, rows)
    kl_weight: Any = jnp.ones(())
    if s.kl_schedule is not None:
        kl_weight = schedules.kl_convex_weight(step, *s.kl_schedule)
    batch = batches.assemble(
        s, stage, ring, rows, fresh_slots, step, key_replay, inputs.replayed_groups
    )
    batch = batches.score(learner, stage, state, batch, kl_weight)
    batch, fresh_adv_BT, of_critic = batches.with_advantages(learner, batch, first_param)
    ring = batches.keep_advantages(ring, batch, fresh_adv_BT)
    batch = batches.without_equal_groups(s, batch)
    # Small, and read at random by every mini-batch: whole on each device of a mesh.
    batch = jax.tree.map(sharding.constrain, batch)
    shared = _Shared(batch, ring, step, kl_weight, inputs)
    drawn = _draw_updates(s, stage, key_shuffle, inputs.method_param_M)
    update = functools.partial(_update, learner, stage, shared)
    changing = state.replace(base_params=None, prev_params=None, replay=None, key=None, step=None)
    begin = _Carry(changing, ring.rows.used_B, jnp.ones_like(ring.rows.reward_B))
    carry, sums = jax.lax.scan(update, begin, drawn)
    found = metrics.of_updates(s, sums, state.prev_params is not None) | of_critic
    found |= metrics.of_batch(batch, expert is not None)
    found |= {"kl_weight": kl_weight, "learning_rate": inputs.learning_rate}
    found["row_ratio_B"] = batches.own(s, carry.row_ratio_R[fresh_slots])
    if fresh is not None:
        found |= metrics.of_sampler(fresh) | batches.sampler_gap(learner, state.params, fresh)
    state = _end(s, state, ring, carry, step)
    return sharding.by_rules(state), jax.tree.map(sharding.constrain, found)


def _end(static: Static, state: TrainState, ring, carry: _Carry, step) -> TrainState:
    """The state after the step, from that before it and what the last mini-batch left."""
    dtype, prev_params = static.anchors_dtype, None
    if state.prev_params is not None:
        prev_params = jax.tree.map(lambda x: x.astype(dtype or x.dtype), state.params)
    return carry.state.replace(
        base_params=state.base_params,
        prev_params=prev_params,
        replay=ring.replace(rows=ring.rows.replace(used_B=carry.used_R)),
        key=state.key,
        step=step,
    )


def _draw_updates(static: Static, stage: Stage, key, method_param_M):
    """Of every update: its mini-batch, a key, and the method's parameter in its pass."""
    index = _mini_batches(static, stage, key)
    keys = jax.random.split(jax.random.fold_in(key, 1), index.shape[0])
    return index, keys, jnp.repeat(method_param_M, index.shape[0] // stage.passes)


def _mini_batches(static: Static, stage: Stage, key):
    """Row numbers [passes * mini-batches, micro-batches, rows]: a new shuffle each pass.

    Rows are shuffled one by one, or by groups for methods that compare the rows of a group.
    """
    keys = jax.random.split(key, stage.passes)
    unit = static.group_size if family.METHODS[static.method].whole_groups else 1
    order = jax.vmap(lambda k: jax.random.permutation(k, static.batch_size // unit))(keys)
    if unit > 1:
        order = (order[..., None] * unit) + jnp.arange(unit)[None, None, :]
    micro = static.micro_rows(sharding.row_shards(sharding.in_use()))
    return order.reshape(-1, static.mini_batch_size // micro, micro)


def _update(learner: Learner, stage: Stage, shared: _Shared, carry: _Carry, drawn):
    """One mini-batch: gradients of its micro-batches added up, then one step of each optimizer."""
    index, key, method_param = drawn
    s = learner.static
    mini = jax.tree.map(lambda x: x[index.reshape(-1)], shared.batch)
    count = masked.count(mini.mask_BT, s.aggregation)
    count = jnp.where(count > 0, count, 1.0)
    terms, mini = losses.minibatch_terms(learner, carry.state.params, mini, method_param)
    ages = s.window + 1 if stage.replay_groups > 0 else 1

    def backward(micro: Batch):
        grads, sums = jax.grad(losses.policy_loss, has_aux=True)(
            carry.state.params, learner, micro, terms, shared.kl_weight, count, ages
        )
        critic_grads = None
        if learner.critic is not None:
            loss, critic_grads = jax.value_and_grad(losses.critic_loss)(
                carry.state.critic_params, learner, micro, count
            )
            sums["loss_value"] = loss
        return sharding.by_rules((grads, critic_grads)), sums

    grads, sums = _accumulate(backward, mini, index.shape)
    row_ratio_B = sums.pop("row_ratio_B")
    if s.imitation_weight > 0:
        imitation, sums["loss_imitation"] = _imitate(learner, shared, carry, index.shape, key)
        grads = (jax.tree.map(jnp.add, grads[0], imitation), grads[1])
    carry, norms = _apply(learner, shared, carry, grads, sums)
    trained_B = (mini.valid_B & ~carry.state.fault_F.any()).astype(jnp.int32)
    # An index of the batch that no row fills points at some row's slot all the same.
    own_slots_B = jnp.where(mini.valid_B, mini.slots_B, carry.row_ratio_R.shape[0])
    carry = carry._replace(
        used_R=carry.used_R.at[mini.slots_B].add(trained_B),
        row_ratio_R=carry.row_ratio_R.at[own_slots_B].set(row_ratio_B, mode="drop"),
    )
    return carry, sums | norms


def _imitate(learner: Learner, shared: _Shared, carry: _Carry, shape: tuple[int, int], key):
    """Gradient and value of the imitation loss on a mini-batch of successes; zeros without one.

    `shape`: micro-batches, and rows of each, of the mini-batch that it is added to.
    """
    s = learner.static
    n = shape[0] * shape[1]
    slots_B, found = replay.draw_successes(shared.ring, key, shared.step, s.imitation_window, n)
    rows = replay.take(shared.ring, slots_B)
    count = jnp.maximum(masked.count(rows.mask_BT, s.aggregation), 1.0)

    def backward(micro):
        value_and_grad = jax.value_and_grad(losses.imitation_loss)
        loss, grads = value_and_grad(carry.state.params, learner, micro, count)
        return sharding.by_rules(grads), {"loss": loss}

    grads, sums = _accumulate(backward, rows, shape)
    return jax.tree.map(lambda x: jnp.where(found, x, 0), (grads, sums["loss"]))


def _accumulate(backward, rows, shape: tuple[int, int]):
    """Sums of gradients and of metrics over the micro-batches of some rows; maxima stay maxima.

    What `backward` gives as "row_ratio_B" is kept row by row instead.
    """
    if shape[0] == 1:
        return backward(rows)
    micros = jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), rows)

    def add(name, total, new):
        return jnp.maximum(total, new) if name.startswith("max_") else total + new

    def body(total, micro):
        grads, sums = backward(micro)
        rows = sums.pop("row_ratio_B", None)
        total_grads, total_sums = total
        total_grads = jax.tree.map(jnp.add, total_grads, grads)
        return (total_grads, {k: add(k, total_sums[k], sums[k]) for k in sums}), rows

    shapes = jax.eval_shape(backward, jax.tree.map(lambda x: x[0], micros))
    zero_grads, zero_sums = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    zero_sums.pop("row_ratio_B", None)
    (grads, sums), rows = jax.lax.scan(body, (zero_grads, zero_sums), micros)
    return grads, sums if rows is None else sums | {"row_ratio_B": rows.reshape(-1)}


def _apply(learner: Learner, shared: _Shared, carry: _Carry, grads, sums):
    """Both optimizers' steps, unless something is not finite, now or before."""
    s, inputs, state = learner.static, shared.inputs, carry.state
    grads, critic_grads = grads
    squares, critic_squares = _squares(grads), _squares(critic_grads)
    value_loss = sums.get("loss_value", jnp.zeros(()))
    observed_F = jnp.stack([sums["loss"], value_loss, *squares, *critic_squares])
    fault_F = jnp.where(state.fault_F.any(), state.fault_F, ~jnp.isfinite(observed_F))
    healthy = ~fault_F.any()
    norms = {"grad_norm": (norm := jnp.sqrt(sum(squares)))}
    optimizer, rate = learner.optimizer, inputs.learning_rate
    of_policy = (state.params, state.opt_state)
    params, opt_state = _optimize(optimizer, rate, of_policy, grads, norm, s.grad_clip, healthy)
    new = state.replace(params=params, opt_state=opt_state, fault_F=fault_F)
    if learner.critic is None:
        return carry._replace(state=new), norms
    norms["critic_grad_norm"] = norm = jnp.sqrt(sum(critic_squares))
    optimizer, rate = learner.critic_optimizer, inputs.critic_learning_rate
    of_critic = (state.critic_params, state.critic_opt_state)
    params, opt_state = _optimize(
        optimizer, rate, of_critic, critic_grads, norm, s.critic_grad_clip, healthy
    )
    new = new.replace(critic_params=params, critic_opt_state=opt_state)
    return carry._replace(state=new), norms


def _squares(grads):
    """The sum of squares of every tensor: its square root adds up to the norm, and a NaN shows."""
    return [jnp.sum(jnp.square(g.astype(jnp.float32))) for g in jax.tree.leaves(grads)]


def _optimize(optimizer, learning_rate, state, grads, norm, clip, healthy):
    """(params, optimizer state) after a clipped step, or as they were if not healthy."""
    params, opt_state = state
    scale = jnp.minimum(1.0, clip / jnp.maximum(norm, 1e-12))
    grads = jax.tree.map(lambda g: (g * scale).astype(g.dtype), grads)
    updates, new_opt_state = optimizer.update(grads, opt_state, params)
    updates = jax.tree.map(lambda u: (-learning_rate * u).astype(u.dtype), updates)
    new = (optax.apply_updates(params, updates), new_opt_state)
    return jax.tree.map(lambda new, old: jnp.where(healthy, new, old), new, state)
