"""The batch of a step: rows fresh and old, what is known of them before the first update.

fresh rows, with an expert's among them --> base log-probs, age, signal --> the ring
ring --> rows of the batch --> log-probs of pi_k and the precedent, values --> advantages
"""

import functools

import jax
import jax.numpy as jnp

from remix_jax import sharding
from remix_jax.learner.state import Learner, Static, TrainState
from remix_jax.models import packing, scoring
from remix_jax.rl import advantages, constraints, family, masked, objectives, off_policy, replay
from remix_jax.schedule import Stage
from remix_jax.types import Batch, FreshRows, Rows, batch_of, kept_rows


def complete(learner: Learner, stage: Stage, state: TrainState, fresh, expert, params) -> Rows:
    """Groups of sampled rows, in each behind them the expert's, with all that the ring keeps:

    base log-probs (once a row), the step, and whether a row of the group has an advantage at all.
    """
    # A token that the policy did not write has no log-prob of it; 0 is finite in any formula.
    marked = [
        kept_rows(
            rows,
            expert_B=jnp.full(rows.valid_B.shape, by_expert),
            behav_logp_BT=masked.zero_masked(rows.behav_logp_BT, rows.loss_mask_BT),
            sampled_logp_BT=masked.zero_masked(rows.sampled_logp_BT, rows.loss_mask_BT),
        )
        for rows, by_expert in ((fresh, False), (expert, True))
        if rows is not None
    ]

    def joined(*parts):
        by_group = [x.reshape(stage.fresh_groups, -1, *x.shape[1:]) for x in parts]
        return jnp.concatenate(by_group, axis=1).reshape(-1, *parts[0].shape[1:])

    s, rows = learner.static, jax.tree.map(joined, *marked)
    signal_B = jnp.ones_like(rows.valid_B)
    if learner.critic is None and not s.kl_in_reward:
        has_B = _group_advantage(s, rows, params) != 0
        signal_B = jnp.repeat(has_B.reshape(-1, s.group_size).any(axis=1), s.group_size)
    if state.base_params is not None:
        base = state.whole(state.base_params)
        rows = rows.replace(base_logp_BT=logps(learner, base, rows))
    if s.correction:  # from here on the trainer's log-probs are those of the behaviour policy
        scored_BT = logps(learner, state.whole(state.params), rows)
        policies = (scored_BT, rows.behav_logp_BT, rows.own_BT)
        weight_BT = objectives.sampler_weight(*policies, s.correction, s.correction_cap)
        behav_BT = jnp.where(rows.own_BT > 0, scored_BT, rows.behav_logp_BT)
        rows = rows.replace(
            behav_logp_BT=behav_BT,
            sampled_logp_BT=rows.sampled_logp_BT + behav_BT - rows.behav_logp_BT,
            sampler_weight_BT=weight_BT,
        )
    return rows.replace(
        version_B=jnp.full_like(rows.version_B, state.step + 1),
        signal_B=signal_B,
        stored_adv_BT=jnp.zeros_like(rows.base_logp_BT) if s.stores_advantage else None,
    )


def logps(learner: Learner, params, rows: FreshRows):
    """Log-probs [B, T] of the response tokens under some parameters."""
    score, temperature = scoring.score_responses, learner.static.temperature
    return _in_passes(
        learner, lambda held: score(learner.policy, params, held, temperature).logp_BT, rows
    )


def _in_passes(learner: Learner, score, rows):
    """score(buffers of a pass) of the rows packed, one pass after the other, [B, T]."""
    B, T = rows.loss_mask_BT.shape
    shards = sharding.row_shards(sharding.in_use())
    n = learner.static.score_rows(learner.busy_slots, shards, B)
    packed = packing.pack(rows, n)
    if n == B:
        return packing.gather(score(packing.take(packed, rows, 0, n)), packed.target_BT)

    def of_pass(i):
        run, skip = lambda: score(packing.take(packed, rows, i, n)), lambda: jnp.zeros((n, T))
        return jax.lax.cond(i < packed.passes(n), run, skip)

    # Not a loop that ends early: its results do not lie in one array that all passes write to.
    score_XNT = jax.lax.map(of_pass, jnp.arange(-(-B // n)))
    return packing.gather(score_XNT, packed.target_BT)


def sampler_gap(learner: Learner, params, fresh: FreshRows) -> dict:
    """How far apart sampler and scorer put the same tokens, on one micro-batch of fresh rows.

        sampler_gap             mean of log mu - log pi, an estimate of KL(sampler || trainer)
        sampler_gap_max         largest |log mu - log pi|
        token_mult_prob_error   mean of exp |log mu - log pi|, 1 is exact (NeMo-RL's)
        truncation_gap          of all rows: mean log-prob that top_k, top_p and min_p add

    Both are of the policy at the start of the step, over the full vocabulary.
    """
    s, shards = learner.static, sharding.row_shards(sharding.in_use())
    n = min(s.fitting_rows(shards), s.mini_batch_size, fresh.valid_B.shape[0])
    some = jax.tree.map(lambda x: x[:n], fresh)
    mask_BT = jnp.where(
        some.lag_B[:, None] == 0, some.mask_BT, 0.0
    )  # others are not of this policy
    gap_BT = masked.zero_masked(some.behav_logp_BT - logps(learner, params, some), mask_BT)
    added_BT = fresh.sampled_logp_BT - fresh.behav_logp_BT
    return {
        "sampler_gap": masked.mean(gap_BT, mask_BT),
        "sampler_gap_max": jnp.abs(gap_BT).max(),
        "token_mult_prob_error": masked.mean(jnp.exp(jnp.abs(gap_BT)), mask_BT),
        "truncation_gap": masked.mean(added_BT, fresh.mask_BT),
    }


def assemble(
    static: Static, stage: Stage, ring, fresh: Rows, fresh_slots, step, key, replayed_groups
) -> Batch:
    """Replayed rows, then fresh ones, then empty places; gathered from the ring once.

    The accounting never gives more than B rows, so cutting at B cuts empty places only.
    """
    slots, in_batch = fresh_slots, fresh.valid_B
    if stage.replay_groups > 0:
        wanted = (static.window, static.sampler, stage.replay_groups, replayed_groups)
        old_slots, taken = replay.sample(ring, key, step, *wanted)
        slots, in_batch = jnp.concatenate([old_slots, slots]), jnp.concatenate([taken, in_batch])
    order_B = jnp.argsort(~in_batch, stable=True)[: static.batch_size]
    slots_B, valid_B = slots[order_B], in_batch[order_B]
    rows = replay.take(ring, slots_B)
    batch = batch_of(rows, valid_B=valid_B, slots_B=slots_B, age_B=step - rows.version_B)
    if static.correct_truncation:
        batch = batch.replace(behav_logp_BT=rows.sampled_logp_BT)
    return batch


def score(learner: Learner, stage: Stage, state: TrainState, batch: Batch, kl_weight) -> Batch:
    """Log-probs under the policy at step start and the precedent, and values.

    A fresh row was sampled by the policy at step start: its stored log-probs are pi_k, so that its
    clip centre is 1 to the last bit. Only the first rows, where replayed ones are, are scored anew;
    all where fresh ones may have been begun by an earlier policy.
    """
    s = learner.static
    if stage.replay_groups > 0 or s.carry > 0:
        first = s.batch_size if s.carry > 0 else stage.replay_groups * s.group_size
        scored = logps(learner, state.whole(state.params), jax.tree.map(lambda x: x[:first], batch))
        scored_BT = jnp.concatenate([scored, batch.prox_logp_BT[first:]])
        old_B1 = (batch.age_B + batch.lag_B > 0)[:, None]
        batch = batch.replace(prox_logp_BT=jnp.where(old_B1, scored_BT, batch.prox_logp_BT))
    if state.prev_params is not None:
        precedent = state.whole(state.prev_params)
        prev_logp_BT = jax.lax.cond(
            kl_weight < 1,
            lambda: logps(learner, precedent, batch),
            lambda: batch.base_logp_BT,
        )
        batch = batch.replace(prev_logp_BT=prev_logp_BT)
    if learner.critic and state.critic_params is not None:
        critic = state.whole(state.critic_params)
        values = functools.partial(scoring.score_values, learner.critic, critic)
        batch = batch.replace(value_BT=_in_passes(learner, values, batch))
    return batch


def _group_advantage(static: Static, rows: Rows, params):
    """[B] by the group estimator of the config, or of the method, among the rows that count."""
    method = family.METHODS[static.method]
    counted_B = rows.valid_B if method.expert_in_group else rows.valid_B & ~rows.expert_B
    mask_B = counted_B.astype(jnp.float32)
    if method.own_advantage is not None:
        return method.own_advantage(rows.reward_B, rows.group_B, mask_B, params)
    estimator = advantages.ESTIMATORS[static.advantage]
    return estimator(rows.reward_B, rows.group_B, mask_B=mask_B)


def _kl_charge(static: Static, batch: Batch, kl_weight):
    """beta KL-Convex of pi_k at each token [B, T], which kl.in_reward takes off its reward."""
    policies = batch.prox_logp_BT, batch.base_logp_BT, batch.prev_logp_BT
    kl_BT = constraints.kl_convex(*policies, kl_weight, static.kl_estimator)
    return static.kl_coef * masked.zero_masked(kl_BT, batch.own_BT)


def _critic_advantage(static: Static, batch: Batch, charge_BT=None):
    """Advantages and returns by the critic. The reward lies on the last token that counts."""
    mask_BT = batch.mask_BT
    left_BT = jnp.cumsum(mask_BT[:, ::-1], axis=1)[:, ::-1]
    reward_BT = jnp.where((mask_BT > 0) & (left_BT == 1), batch.reward_B[:, None], 0.0)
    if charge_BT is not None:
        reward_BT -= charge_BT
    discounts = (static.gamma, static.lam)
    if static.advantage == "vtrace":
        ratio_BT = objectives.ratio(batch.prox_logp_BT, batch.behav_logp_BT)
        return advantages.vtrace(reward_BT, batch.value_BT, ratio_BT, mask_BT, *discounts)
    return advantages.gae(reward_BT, batch.value_BT, mask_BT, *discounts)


def with_advantages(learner: Learner, ring: replay.ReplayState, batch: Batch, params, kl_weight):
    """Advantages of pi_k for every row, old or new; those of fresh rows go to the ring too.

    Returns:
      The ring; the batch as losses read it, without what the method leaves out; critic's metrics.
    """
    s, method, mask_BT = learner.static, family.METHODS[learner.static.method], batch.mask_BT
    metrics, earned_B = {}, batch.reward_B
    charge_BT = _kl_charge(s, batch, kl_weight) if s.kl_in_reward else None
    if learner.critic:
        adv_BT, return_BT = _critic_advantage(s, batch, charge_BT)
        batch = batch.replace(return_BT=return_BT)
        unexplained, variance = (
            masked.mean(jnp.square(x_BT - masked.mean(x_BT, mask_BT)), mask_BT)
            for x_BT in (adv_BT, return_BT)
        )
        metrics = {"explained_variance": 1 - masked.divide(unexplained, variance)}
    else:
        if charge_BT is not None:
            earned_B -= charge_BT.sum(axis=1)
        adv_BT = _group_advantage(s, batch.replace(reward_B=earned_B), params)[:, None] * mask_BT
    if method.stored_advantage:
        assert batch.stored_adv_BT is not None, "Static.stores_advantage"
        adv_BT = jnp.where((batch.age_B > 0)[:, None], batch.stored_adv_BT, adv_BT)
    if ring.rows.stored_adv_BT is not None:
        fresh_B = batch.valid_B & (batch.age_B == 0)
        slots_B = jnp.where(fresh_B, batch.slots_B, ring.capacity)
        kept_RT = ring.rows.stored_adv_BT.at[slots_B].set(adv_BT, mode="drop")
        ring = ring.replace(rows=ring.rows.replace(stored_adv_BT=kept_RT))
    if learner.critic and s.whiten:
        adv_BT = masked.whiten(adv_BT, mask_BT)
    if method.drops_equal_groups:
        counted_B = batch.valid_B.astype(jnp.float32)
        varied_B = advantages.varied(batch.reward_B, batch.group_B, counted_B)
        batch = batch.replace(valid_B=batch.valid_B & varied_B)
    if s.mask_truncated:  # their rewards were in their group's statistics: that is all they do
        batch = batch.replace(valid_B=batch.valid_B & mask_BT.any(axis=1))
    return ring, off_policy.zero_unknown(batch.replace(adv_BT=adv_BT)), metrics
