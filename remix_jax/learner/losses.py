"""The losses of a step, on one micro-batch, with the sums that its metrics are made of.

    policy:  objective.method (Mix-PPG) - c_H entropy + beta KL-Convex
    critic:  clipped value loss
    imitation, where it is on: log-likelihood of earlier successes, added to the policy's

Each is a sum over the micro-batch divided by the count of the *whole* mini-batch, so the gradients
of micro-batches add up to that of the mini-batch.
"""

import jax
import jax.numpy as jnp

from remix_jax.learner.batch import logps
from remix_jax.learner.state import Learner, Static
from remix_jax.models import scoring
from remix_jax.rl import constraints, family, masked, objectives
from remix_jax.rl.family import Terms
from remix_jax.types import Batch, Rows


def minibatch_terms(
    learner: Learner, params: dict, mini: Batch, method_param: jax.Array
) -> tuple[Terms, Batch]:
    """The numbers that the method's loss reads, its statistics of the whole mini-batch among them.

    `params` are those before the update. The mini-batch comes back with what the method found of
    each row.
    """
    s, method = learner.static, family.METHODS[learner.static.method]
    terms = Terms(
        s.clip, s.clip_high or None, s.dual_clip or None, s.window, s.aggregation, method_param
    )
    if method.stats is None:
        return terms, mini
    logp_BT = logps(learner, params, mini) if method.forward else None
    stats, per_row_B = jax.lax.stop_gradient(method.stats(logp_BT, mini, terms))
    return terms._replace(stats=stats), mini.replace(per_row_B=per_row_B)


def policy_loss(
    params: dict,
    learner: Learner,
    batch: Batch,
    terms: Terms,
    kl_weight: jax.Array,
    count: jax.Array,
    ages: int,
) -> tuple[jax.Array, dict]:
    """The policy's loss of a micro-batch, summed and over `count`; ReMix's is (arXiv 2507.06892)

        L = L_MixPPG - c_H H + beta (lambda KL(pi || base) + (1 - lambda) KL(pi || precedent))

    with another of `family.METHODS` in the place of L_MixPPG if the config says so. Entropy and KL
    are of the rows that a policy of ours sampled: on an expert's they would estimate nothing.

    Args:
      kl_weight: lambda of this step.
      count: denominator of the whole mini-batch (`masked.count`); `terms` are of it too.
      ages: length of the metrics by age (static).

    Returns:
      The loss, and the sums that `learner.metrics` makes means of: see `diagnostics`.
    """
    s = learner.static
    scores = scoring.score_responses(learner.policy, params, batch, s.temperature)
    logp_BT = scores.logp_BT
    policy_BT = family.METHODS[s.method].loss(logp_BT, batch, terms)
    kl_BT = jnp.zeros_like(logp_BT)
    if s.kl_coef > 0:
        kl_BT = constraints.kl_convex(
            logp_BT, batch.base_logp_BT, batch.prev_logp_BT, kl_weight, s.kl_estimator
        )

    def reduce(x_BT, mask_BT=batch.own_BT):
        return masked.sum_and_count(x_BT, mask_BT, s.aggregation)[0] / count

    parts = {
        "loss_policy": reduce(policy_BT, batch.mask_BT),
        "loss_kl": s.kl_coef * reduce(kl_BT),
        "loss_entropy": -s.entropy_coef * reduce(scores.entropy_BT),
    }
    loss = parts["loss_policy"] + parts["loss_kl"] + parts["loss_entropy"]
    sums = diagnostics(s, jax.lax.stop_gradient(scores), batch, terms, ages)
    return loss, {"loss": loss, **parts, **sums}


def diagnostics(
    static: Static, scores: scoring.TokenScores, batch: Batch, terms: Terms, ages: int
) -> dict:
    """Sums over tokens, by age of the row [A] where a ratio is concerned; maxima as "max_*".

    Of the rows that a policy of ours sampled: an expert's have no ratio.
    """
    logp_BT, mask_BT = scores.logp_BT, batch.own_BT
    ratio_BT = masked.zero_masked(objectives.ratio(logp_BT, batch.behav_logp_BT), mask_BT)
    clipped_BT = _clipped(static, logp_BT, batch, terms)
    of_age_BA = (batch.age_B[:, None] == jnp.arange(ages)[None, :]).astype(jnp.float32)

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
    if static.kl_coef > 0:
        kl = constraints.ESTIMATORS[static.kl_estimator]
        sums["kl_base"] = total(kl(logp_BT, batch.base_logp_BT))
        sums["kl_prev"] = total(kl(logp_BT, batch.prev_logp_BT))
    return sums


def _clipped(static: Static, logp_BT: jax.Array, batch: Batch, terms: Terms) -> jax.Array:
    """1 at tokens that have an advantage and, by the method's rules, no gradient."""
    if static.method == "mix_ppg":
        policies = (logp_BT, batch.behav_logp_BT, batch.prox_logp_BT)
        clips = (terms.clip, terms.dual_clip, terms.clip_high)
        return objectives.is_clipped(*policies, batch.adv_BT, *clips)
    loss = family.METHODS[static.method].loss

    def total(logp_BT):
        return masked.zero_masked(loss(logp_BT, batch, terms), batch.mask_BT).sum()

    return ((jax.grad(total)(logp_BT) == 0) & (batch.adv_BT != 0)).astype(jnp.float32)


def imitation_loss(params: dict, learner: Learner, rows: Rows, count: jax.Array) -> jax.Array:
    """Self-imitation of a micro-batch of successes, summed and over `count`, times its weight.

        L_SI = - w mean_{successes} log pi(a | s)

    The policy part of self-imitation learning (Oh et al. 2018, arXiv 1806.05635, eq. 2) with
    (R - V)_+ = 1 for every success: the critic of a binary outcome says little (docs/choices.md).
    """
    s = learner.static
    scores = scoring.score_responses(learner.policy, params, rows, s.temperature)
    total, _ = masked.sum_and_count(-scores.logp_BT, rows.mask_BT, s.aggregation)
    return s.imitation_weight * total / count


def critic_loss(params: dict, learner: Learner, batch: Batch, count: jax.Array) -> jax.Array:
    """PPO's clipped value loss of a micro-batch, summed and over `count`, times value_coef."""
    s = learner.static
    assert learner.critic is not None
    value_BT = scoring.score_values(learner.critic, params, batch)
    loss_BT = objectives.value_loss(value_BT, batch.value_BT, batch.return_BT, s.value_clip)
    total, _ = masked.sum_and_count(loss_BT, batch.mask_BT, s.aggregation)
    return s.value_coef * total / count
