"""The learning phase of a step: (TrainState, fresh rows) -> (TrainState, metrics), one program.

    fresh rows ------ replay.add ---+
    replay.sample (share p) --------+--> batch of B rows, by their slots in the ring
    scored once: prox (replayed rows), base (fresh rows), precedent, values --> advantages
    scan over m passes x mini-batches (x micro-batches): losses, gradients, two optimizers
    precedent <- parameters at the start of the step

The ring rides in the scan's carry: each mini-batch is gathered from it by slot and counts its uses.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from remix_jax import sharding
from remix_jax.learner import batch, losses
from remix_jax.learner.losses import Frozen
from remix_jax.learner.state import Learner, TrainState
from remix_jax.rl import family, masked, replay, schedules
from remix_jax.schedule import Stage, micro_batch_rows
from remix_jax.types import FreshRows, Rows, response_mask


class _Shared(NamedTuple):
    """Numbers that all updates of a step share."""

    step: jax.Array  # from 1
    kl_weight: jax.Array  # of the base anchor
    rate: jax.Array  # learning rates: of the policy,
    critic_rate: jax.Array  # of the critic


class _Carry(NamedTuple):
    """What a mini-batch changes."""

    params: dict
    opt_state: optax.OptState
    critic_params: dict | None
    critic_opt_state: optax.OptState | None
    replay: replay.ReplayState
    row_ratio_R: jax.Array  # mean ratio of each row of the ring, in its last pass
    fault_F: jax.Array


@functools.partial(jax.jit, static_argnames=("learner", "stage"), donate_argnames=("state",))
def learn(
    state: TrainState,
    fresh: FreshRows | None,
    replayed_groups: jax.Array,
    number_M: jax.Array,
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
      replayed_groups: groups to replay, at most stage.replay_groups.
      number_M: the method's number in each pass (`config.method_params`).
      expert: an expert's rows of the same groups, None without.
      learner, stage: static.

    Returns:
      The next state, and metrics: scalars, and `row_ratio_B` of the fresh rows. Where a loss or a
      gradient is not finite no update is made from there on, and `state.fault_F` says which.
    """
    step = state.step + 1
    key_replay, key_shuffle = jax.random.split(jax.random.fold_in(state.key, step))
    fresh = batch.join(stage, fresh, expert)
    fresh = batch.complete(learner, state, fresh, step, number_M[0])
    ring, fresh_slots = replay.add(state.replay, fresh)
    kl_weight = _kl_weight(learner, step)
    frozen = batch.assemble(
        learner, stage, ring, fresh, fresh_slots, step, key_replay, replayed_groups
    )
    rows = replay.take(ring, frozen.slots_B)
    frozen = batch.score(learner, stage, state, rows, frozen, kl_weight)
    frozen, fresh_adv_BT, value_metrics = batch.with_advantages(learner, rows, frozen, number_M[0])
    ring = batch.keep_advantages(learner, ring, frozen, fresh_adv_BT)
    frozen = batch.without_equal_groups(learner, rows, frozen)
    # Small, and read at random by every mini-batch: whole on each device of a mesh.
    frozen = jax.tree.map(sharding.constrain, frozen)
    shared = _Shared(step, kl_weight, state.learning_rate, state.critic_learning_rate)
    update = functools.partial(_update, learner, stage, shared, frozen)
    drawn = _draw_updates(learner, stage, key_shuffle, number_M)
    carry, sums = jax.lax.scan(update, _begin(state, ring), drawn)
    metrics = _reduce(learner, sums, state.prev_params is not None) | value_metrics
    metrics |= _batch_metrics(fresh, rows, frozen, expert is not None)
    metrics["kl_weight"] = kl_weight
    metrics["row_ratio_B"] = batch.own(learner, carry.row_ratio_R[fresh_slots])
    state = _end(learner, state, carry, step)
    return sharding.by_rules(state), jax.tree.map(sharding.constrain, metrics)


def _begin(state: TrainState, ring: replay.ReplayState) -> _Carry:
    """What the first mini-batch finds."""
    return _Carry(
        state.params,
        state.opt_state,
        state.critic_params,
        state.critic_opt_state,
        ring,
        jnp.ones_like(ring.rows.reward_B),
        state.fault_F,
    )


def _end(learner: Learner, state: TrainState, carry: _Carry, step) -> TrainState:
    """The state after the step, from that before it and what the last mini-batch left."""
    return state.replace(
        params=carry.params,
        opt_state=carry.opt_state,
        critic_params=carry.critic_params,
        critic_opt_state=carry.critic_opt_state,
        prev_params=_precedent(learner, state),
        replay=carry.replay,
        step=step,
        fault_F=carry.fault_F,
    )


def _batch_metrics(fresh: Rows, rows: Rows, frozen: Frozen, with_expert: bool) -> dict:
    """How many rows of each origin the batch holds, and how far sampler and scorer are apart."""
    own_B = frozen.in_batch_B & ~rows.expert_B
    metrics = {
        "n_fresh": (own_B & (frozen.age_B == 0)).sum(),
        "n_replayed": (own_B & (frozen.age_B > 0)).sum(),
        "sampler_gap": masked.mean(
            fresh.sampled_logp_BT - fresh.behav_logp_BT, batch.own_mask(fresh)
        ),
    }
    if with_expert:
        metrics["n_expert"] = (frozen.in_batch_B & rows.expert_B).sum()
    return metrics


def _precedent(learner: Learner, state: TrainState):
    """The policy at step start, as the next step's anchor."""
    if state.prev_params is None:
        return None
    dtype = learner.config.memory.anchors_dtype
    return jax.tree.map(lambda x: x.astype(dtype or x.dtype), state.params)


def _kl_weight(learner: Learner, step):
    kl = learner.config.kl
    if not kl.convex:
        return jnp.ones(())
    return schedules.kl_convex_weight(step, kl.start, kl.every, kl.drop, kl.floor)


def _draw_updates(learner: Learner, stage: Stage, key, number_M):
    """Of every update: its mini-batch, a key, and the method's number in its pass."""
    batches = _mini_batches(learner, stage, key)
    keys = jax.random.split(jax.random.fold_in(key, 1), batches.shape[0])
    return batches, keys, jnp.repeat(number_M, batches.shape[0] // stage.passes)


def _mini_batches(learner: Learner, stage: Stage, key):
    """Row numbers [passes * mini-batches, micro-batches, rows]: a new shuffle each pass.

    Rows are shuffled one by one, or by groups for methods that compare the rows of a group.
    """
    c = learner.config
    keys = jax.random.split(key, stage.passes)
    unit = c.group_size if family.METHODS[c.objective.method].whole_groups else 1
    order = jax.vmap(lambda k: jax.random.permutation(k, c.batch_size // unit))(keys)
    if unit > 1:
        order = (order[..., None] * unit) + jnp.arange(unit)[None, None, :]
    micro = micro_batch_rows(c, sharding.row_shards(sharding.in_use()))
    return order.reshape(-1, c.mini_batch_size // micro, micro)


def _update(learner: Learner, stage: Stage, shared: _Shared, frozen: Frozen, carry: _Carry, drawn):
    """One mini-batch: gradients of its micro-batches added up, then one step of each optimizer."""
    index, key, number = drawn
    mode = learner.config.objective.aggregation
    chosen = jax.tree.map(lambda x: x[index.reshape(-1)], frozen)
    mini_rows = replay.take(carry.replay, chosen.slots_B)
    count = masked.count(losses.loss_mask(mini_rows, chosen), mode)
    count = jnp.where(count > 0, count, 1.0)
    score = functools.partial(batch.logps, learner, carry.params)
    facts = losses.facts_of(learner, mini_rows, chosen, index.reshape(-1), number, score)

    def backward(micro_index):
        part = jax.tree.map(lambda x: x[micro_index], frozen)
        rows = replay.take(carry.replay, part.slots_B)
        ages = learner.config.replay.window + 1 if stage.replay_groups > 0 else 1
        grads, sums = jax.grad(losses.policy_loss, has_aux=True)(
            carry.params, learner, rows, part, facts.of(micro_index), shared.kl_weight, count, ages
        )
        critic_grads = None
        if learner.critic is not None:
            loss, critic_grads = jax.value_and_grad(losses.critic_loss)(
                carry.critic_params, learner, rows, part, count
            )
            sums["loss_value"] = loss
        return sharding.by_rules((grads, critic_grads)), sums

    grads, sums = _accumulate(backward, index)
    row_ratio_B = sums.pop("row_ratio_B")
    if learner.config.imitation.weight > 0:
        imitation, sums["loss_imitation"] = _imitate(learner, carry, index.shape, key, shared.step)
        grads = (jax.tree.map(jnp.add, grads[0], imitation), grads[1])
    carry, norms = _apply(learner, shared, carry, grads, sums)
    trained_B = chosen.in_batch_B & ~carry.fault_F.any()
    # A place of the batch that no row fills points at some row's slot all the same.
    own_slots_B = jnp.where(chosen.in_batch_B, chosen.slots_B, carry.row_ratio_R.shape[0])
    carry = carry._replace(
        replay=replay.touch(carry.replay, chosen.slots_B, trained_B),
        row_ratio_R=carry.row_ratio_R.at[own_slots_B].set(row_ratio_B, mode="drop"),
    )
    return carry, sums | norms


def _imitate(learner: Learner, carry: _Carry, shape: tuple[int, int], key, step):
    """Gradient and value of the imitation loss on a mini-batch of successes; zeros without one.

    Args:
      shape: micro-batches and rows of each, as of the mini-batch it is added to.
    """
    c = learner.config
    rows = shape[0] * shape[1]
    slots_B, there = replay.draw_successes(carry.replay, key, step, c.imitation.window, rows)
    mask_BT = response_mask(replay.take(carry.replay, slots_B))
    count = jnp.maximum(masked.count(mask_BT, c.objective.aggregation), 1.0)

    def backward(micro_slots):
        rows = replay.take(carry.replay, micro_slots)
        loss, grads = jax.value_and_grad(losses.imitation_loss)(carry.params, learner, rows, count)
        return sharding.by_rules(grads), {"loss": loss}

    grads, sums = _accumulate(backward, slots_B.reshape(shape))
    return jax.tree.map(lambda x: jnp.where(there, x, 0), (grads, sums["loss"]))


def _accumulate(backward, index):
    """Sums of gradients and of metrics over the micro-batches; maxima stay maxima.

    What `backward` gives as "row_ratio_B" is kept row by row instead.
    """
    if index.shape[0] == 1:
        return backward(index[0])

    def add(name, total, new):
        return jnp.maximum(total, new) if name.startswith("max_") else total + new

    def body(total, micro_index):
        grads, sums = backward(micro_index)
        rows = sums.pop("row_ratio_B", None)
        total_grads, total_sums = total
        total_grads = jax.tree.map(jnp.add, total_grads, grads)
        return (total_grads, {k: add(k, total_sums[k], sums[k]) for k in sums}), rows

    shapes = jax.eval_shape(backward, index[0])
    zero_grads, zero_sums = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    zero_sums.pop("row_ratio_B", None)
    (grads, sums), rows = jax.lax.scan(body, (zero_grads, zero_sums), index)
    return grads, sums if rows is None else sums | {"row_ratio_B": rows.reshape(-1)}


def _apply(learner: Learner, shared: _Shared, carry: _Carry, grads, sums):
    """Both optimizers' steps, unless something is not finite, now or before."""
    c = learner.config
    grads, critic_grads = grads
    squares, critic_squares = _squares(grads), _squares(critic_grads)
    value_loss = sums.get("loss_value", jnp.zeros(()))
    observed_F = jnp.stack([sums["loss"], value_loss, *squares, *critic_squares])
    fault_F = jnp.where(carry.fault_F.any(), carry.fault_F, ~jnp.isfinite(observed_F))
    healthy = ~fault_F.any()
    norms = {"grad_norm": jnp.sqrt(sum(squares))}
    params, opt_state = _optimize(
        learner.optimizer,
        shared.rate,
        (carry.params, carry.opt_state),
        grads,
        norms["grad_norm"],
        c.optimizer.grad_clip,
        healthy,
    )
    critic_params, critic_opt_state = carry.critic_params, carry.critic_opt_state
    if learner.critic is not None:
        norms["critic_grad_norm"] = jnp.sqrt(sum(critic_squares))
        critic_params, critic_opt_state = _optimize(
            learner.critic_optimizer,
            shared.critic_rate,
            (critic_params, critic_opt_state),
            critic_grads,
            norms["critic_grad_norm"],
            c.critic.optimizer.grad_clip,
            healthy,
        )
    carry = carry._replace(
        params=params,
        opt_state=opt_state,
        critic_params=critic_params,
        critic_opt_state=critic_opt_state,
        fault_F=fault_F,
    )
    return carry, norms


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


def _reduce(learner: Learner, sums, has_precedent: bool) -> dict:
    """Metrics of the step from the sums [updates, ...]: means over tokens, losses over updates.

    Without a precedent its place was taken by the base: what was summed is no KL to it.
    """
    total = {k: v.max(axis=0) if k.startswith("max_") else v.sum(axis=0) for k, v in sums.items()}
    tokens_A, tokens = total["tokens_A"], total["tokens_A"].sum()
    names = [k for k in sums if k.startswith("loss") or k.endswith("norm")]
    metrics = {name: sums[name].mean() for name in names}
    for name in ("entropy", "kl_base", "kl_prev"):
        if name in total and (has_precedent or name != "kl_prev"):
            metrics[name] = masked.divide(total[name], tokens)

    ages = range(tokens_A.shape[0])
    passes = sums["loss"].shape[0] * learner.config.mini_batch_size / learner.config.batch_size
    for suffix, group in [("", list(ages)), *((f"/age{age}", [age]) for age in ages)]:
        part = {k: v[jnp.array(group)] for k, v in total.items() if k.endswith("_A")}
        metrics |= {name + suffix: value for name, value in _ratios(part).items()}
    metrics |= {f"rows/age{age}": total["rows_A"][age] / passes for age in ages}
    return metrics


def _ratios(total) -> dict:
    """What the importance ratios of some ages [A] look like."""
    tokens, ratio = total["tokens_A"].sum(), total["ratio_A"].sum()
    squared = total["ratio_squared_A"].sum()
    return {
        "ratio_mean": masked.divide(ratio, tokens),
        "ratio_max": total["max_ratio_A"].max(),
        "clip_share": masked.divide(total["clipped_A"].sum(), tokens),
        "ess": masked.divide(jnp.square(ratio), tokens * squared),
    }
