"""The two losses of a step, on one micro-batch, with the sums that its metrics are made of.

    policy:  Mix-PPG (PPO for fresh rows) - c_H entropy + beta KL-Convex
    critic:  clipped value loss
    imitation, where it is on: log-likelihood of earlier successes, added to the policy's

Each is a sum over the micro-batch divided by the count of the *whole* mini-batch, so the gradients
of micro-batches add up to that of the mini-batch.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from remix_jax.learner.state import Learner
from remix_jax.models import scoring
from remix_jax.rl import constraints, masked, objectives
from remix_jax.types import Rows, response_mask


class Frozen(NamedTuple):
    """What stays fixed over all passes of a step, for the rows of the batch."""

    slots_B: jax.Array  # where the row lies in the replay ring
    in_batch_B: jax.Array  # False in the slots that no row fills
    age_B: jax.Array  # steps since it was sampled; 0 is fresh
    prox_logp_BT: jax.Array  # log pi_k, k this step
    prev_logp_BT: jax.Array  # log pi_{k-1}
    adv_BT: jax.Array
    value_BT: jax.Array  # V_k
    return_BT: jax.Array


def loss_mask(rows: Rows, frozen: Frozen) -> jax.Array:
    """1.0 at the response tokens of the rows that are in the batch."""
    return response_mask(rows) * frozen.in_batch_B.astype(jnp.float32)[:, None]


def behaviour_logp(learner: Learner, rows: Rows) -> jax.Array:
    """The ratio's denominator: the stored full-vocabulary log-probs, or the truncated ones."""
    corrected = learner.config.sampling.correct_truncation
    return rows.sampled_logp_BT if corrected else rows.logp_BT


def policy_loss(
    params: dict,
    learner: Learner,
    rows: Rows,
    frozen: Frozen,
    kl_weight: jax.Array,
    count: jax.Array,
    ages: int,
) -> tuple[jax.Array, dict]:
    """ReMix's loss of a micro-batch (arXiv 2507.06892), summed and over `count`.

        L = L_MixPPG - c_H H + beta (lambda KL(pi || base) + (1 - lambda) KL(pi || precedent))

    Args:
      params: of the policy, differentiated.
      kl_weight: lambda of this step.
      count: denominator of the whole mini-batch (`masked.count`).
      ages: length of the metrics by age (static).

    Returns:
      The loss and the sums for `metrics.py`-style means: see `diagnostics`.
    """
    c = learner.config
    scores = scoring.score_responses(learner.policy, params, rows, c.sampling.temperature)
    logp_BT, mask_BT = scores.logp_BT, loss_mask(rows, frozen)
    behav_logp_BT = behaviour_logp(learner, rows)
    dual_clip = c.objective.dual_clip or None
    policy_BT = objectives.mix_ppg(
        logp_BT, behav_logp_BT, frozen.prox_logp_BT, frozen.adv_BT, c.objective.clip, dual_clip
    )
    kl_BT = jnp.zeros_like(logp_BT)
    if c.kl.coef > 0:
        kl_BT = constraints.kl_convex(
            logp_BT, rows.base_logp_BT, frozen.prev_logp_BT, kl_weight, c.kl.estimator
        )

    def reduce(x_BT):
        return masked.sum_and_count(x_BT, mask_BT, c.objective.aggregation)[0] / count

    parts = {
        "loss_policy": reduce(policy_BT),
        "loss_kl": c.kl.coef * reduce(kl_BT),
        "loss_entropy": -c.objective.entropy_coef * reduce(scores.entropy_BT),
    }
    loss = parts["loss_policy"] + parts["loss_kl"] + parts["loss_entropy"]
    scores = jax.lax.stop_gradient(scores)
    sums = diagnostics(learner, scores, rows, frozen, behav_logp_BT, mask_BT, ages)
    return loss, {"loss": loss, **parts, **sums}


def diagnostics(
    learner: Learner,
    scores: scoring.TokenScores,
    rows: Rows,
    frozen: Frozen,
    behav_logp_BT: jax.Array,
    mask_BT: jax.Array,
    ages: int,
) -> dict:
    """Sums over tokens, by age of the row [A] where a ratio is concerned; maxima as "max_*"."""
    c = learner.config
    logp_BT = scores.logp_BT
    ratio_BT = masked.zero_masked(objectives.ratio(logp_BT, behav_logp_BT), mask_BT)
    clipped_BT = objectives.is_clipped(
        logp_BT, behav_logp_BT, frozen.prox_logp_BT, frozen.adv_BT, c.objective.clip
    )
    of_age_BA = (frozen.age_B[:, None] == jnp.arange(ages)[None, :]).astype(jnp.float32)

    def by_age(x_BT):
        row_B = masked.zero_masked(x_BT, mask_BT).sum(axis=1)
        return (row_B[:, None] * of_age_BA).sum(axis=0)

    def total(x_BT):
        return masked.zero_masked(x_BT, mask_BT).sum()

    lengths_B = mask_BT.sum(axis=1)
    sums = {
        "rows_A": (of_age_BA * (lengths_B > 0).astype(jnp.float32)[:, None]).sum(axis=0),
        "tokens_A": by_age(jnp.ones_like(ratio_BT)),
        "ratio_A": by_age(ratio_BT),
        "ratio_squared_A": by_age(jnp.square(ratio_BT)),
        "clipped_A": by_age(clipped_BT),
        "max_ratio_A": (ratio_BT.max(axis=1)[:, None] * of_age_BA).max(axis=0),
        "entropy": total(scores.entropy_BT),
        "row_ratio_B": masked.divide(ratio_BT.sum(axis=1), lengths_B),
    }
    if c.kl.coef > 0:
        kl = constraints.ESTIMATORS[c.kl.estimator]
        sums["kl_base"] = total(kl(logp_BT, rows.base_logp_BT))
        sums["kl_prev"] = total(kl(logp_BT, frozen.prev_logp_BT))
    return sums


def imitation_loss(params: dict, learner: Learner, rows: Rows, count: jax.Array) -> jax.Array:
    """Self-imitation of a micro-batch of successes, summed and over `count`, times its weight.

        L_SI = - w mean_{R = 1} log pi(a | s)

    The policy part of self-imitation learning (Oh et al. 2018, arXiv 1806.05635, eq. 2) with
    (R - V)_+ = 1 for every success: the critic of a binary outcome says little (docs/choices.md).
    """
    c = learner.config
    scores = scoring.score_responses(learner.policy, params, rows, c.sampling.temperature)
    total, _ = masked.sum_and_count(-scores.logp_BT, response_mask(rows), c.objective.aggregation)
    return c.imitation.weight * total / count


def critic_loss(
    params: dict, learner: Learner, rows: Rows, frozen: Frozen, count: jax.Array
) -> jax.Array:
    """PPO's clipped value loss of a micro-batch, summed and over `count`, times value_coef."""
    c = learner.config
    assert learner.critic is not None
    value_BT = scoring.score_values(learner.critic, params, rows)
    loss_BT = objectives.value_loss(
        value_BT, frozen.value_BT, frozen.return_BT, c.critic.value_clip
    )
    mask_BT = loss_mask(rows, frozen)
    total, _ = masked.sum_and_count(loss_BT, mask_BT, c.objective.aggregation)
    return c.critic.value_coef * total / count
