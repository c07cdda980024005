"""The two losses of a step, on one micro-batch, with the sums that its metrics are made of.

    policy:  objective.method (Mix-PPG) - c_H entropy + beta KL-Convex
    critic:  clipped value loss
    imitation, where it is on: log-likelihood of earlier successes, added to the policy's

Each is a sum over the micro-batch divided by the count of the *whole* mini-batch, so the gradients
of micro-batches add up to that of the mini-batch.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from remix_jax.learner.state import Learner
from remix_jax.models import scoring
from remix_jax.rl import constraints, family, masked, objectives
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


class Facts(NamedTuple):
    """What the method knows beside the rows: its number, and the whole mini-batch."""

    number: jax.Array
    whole: Any = None  # scalars
    row_B: jax.Array | None = None  # a number a row of the batch

    def of(self, index_B: jax.Array) -> "Facts":
        """The same for some rows of the batch."""
        return self if self.row_B is None else self._replace(row_B=self.row_B[index_B])


def loss_mask(rows: Rows, frozen: Frozen) -> jax.Array:
    """1.0 at the response tokens of the rows that are in the batch."""
    return response_mask(rows) * frozen.in_batch_B.astype(jnp.float32)[:, None]


def behaviour_logp(learner: Learner, rows: Rows) -> jax.Array:
    """The ratio's denominator: the stored full-vocabulary log-probs, or the truncated ones."""
    corrected = learner.config.sampling.correct_truncation
    return rows.sampled_logp_BT if corrected else rows.behav_logp_BT


def fixed(learner: Learner) -> family.Fixed:
    """The config's static numbers, as the methods take them."""
    c = learner.config
    o = c.objective
    return family.Fixed(o.clip, o.dual_clip or None, c.replay.window, o.aggregation)


def tokens(
    learner: Learner, rows: Rows, frozen: Frozen, logp_BT: jax.Array, facts: Facts
) -> family.Tokens:
    """Rows as the method's loss sees them."""
    return family.Tokens(
        logp_BT=logp_BT,
        behav_logp_BT=behaviour_logp(learner, rows),
        prox_logp_BT=frozen.prox_logp_BT,
        base_logp_BT=rows.base_logp_BT,
        adv_BT=frozen.adv_BT,
        mask_BT=loss_mask(rows, frozen),
        reward_B=rows.reward_B,
        group_B=rows.group_B,
        age_B=frozen.age_B,
        expert_B=rows.expert_B,
        number=facts.number,
        whole=facts.whole,
        row_B=facts.row_B,
    )


def facts_of(
    learner: Learner,
    rows: Rows,
    frozen: Frozen,
    index_B: jax.Array,
    number: jax.Array,
    score: Callable[[Rows], jax.Array],
) -> Facts:
    """What the method asks of a whole mini-batch, at its first parameters.

    Args:
      rows, frozen: of the mini-batch.
      index_B: where in the batch they are.
      number: the method's.
      score: log-probs of rows under those parameters; called for methods that read them.
    """
    c = learner.config
    method = family.METHODS[c.objective.method]
    if method.whole is None:
        return Facts(number)
    logp_BT = score(rows) if method.forward else rows.behav_logp_BT
    batch = tokens(learner, rows, frozen, logp_BT, Facts(number))
    whole, row_B = method.whole(batch, fixed(learner))
    if row_B is not None:
        row_B = jnp.zeros((c.batch_size,)).at[index_B].set(row_B)
    return jax.lax.stop_gradient(Facts(number, whole, row_B))


def policy_loss(
    params: dict,
    learner: Learner,
    rows: Rows,
    frozen: Frozen,
    facts: Facts,
    kl_weight: jax.Array,
    count: jax.Array,
    ages: int,
) -> tuple[jax.Array, dict]:
    """The policy's loss of a micro-batch, summed and over `count`; ReMix's is (arXiv 2507.06892)

        L = L_MixPPG - c_H H + beta (lambda KL(pi || base) + (1 - lambda) KL(pi || precedent))

    with another of `family.METHODS` in the place of L_MixPPG if the config says so. Entropy and KL
    are of the rows that a policy of ours sampled: on an expert's they would estimate nothing.

    Args:
      params: of the policy, differentiated.
      facts: of the whole mini-batch.
      kl_weight: lambda of this step.
      count: denominator of the whole mini-batch (`masked.count`).
      ages: length of the metrics by age (static).

    Returns:
      The loss and the sums for `metrics.py`-style means: see `diagnostics`.
    """
    c = learner.config
    scores = scoring.score_responses(learner.policy, params, rows, c.sampling.temperature)
    logp_BT, mask_BT = scores.logp_BT, loss_mask(rows, frozen)
    batch = tokens(learner, rows, frozen, logp_BT, facts)
    policy_BT = family.METHODS[c.objective.method].loss(batch, fixed(learner))
    kl_BT = jnp.zeros_like(logp_BT)
    if c.kl.coef > 0:
        kl_BT = constraints.kl_convex(
            logp_BT, rows.base_logp_BT, frozen.prev_logp_BT, kl_weight, c.kl.estimator
        )

    def reduce(x_BT, mask_BT=batch.own_BT):
        return masked.sum_and_count(x_BT, mask_BT, c.objective.aggregation)[0] / count

    parts = {
        "loss_policy": reduce(policy_BT, mask_BT),
        "loss_kl": c.kl.coef * reduce(kl_BT),
        "loss_entropy": -c.objective.entropy_coef * reduce(scores.entropy_BT),
    }
    loss = parts["loss_policy"] + parts["loss_kl"] + parts["loss_entropy"]
    scores = jax.lax.stop_gradient(scores)
    batch = batch._replace(logp_BT=scores.logp_BT)
    sums = diagnostics(learner, scores, batch, frozen, ages)
    return loss, {"loss": loss, **parts, **sums}


def diagnostics(
    learner: Learner,
    scores: scoring.TokenScores,
    batch: family.Tokens,
    frozen: Frozen,
    ages: int,
) -> dict:
    """Sums over tokens, by age of the row [A] where a ratio is concerned; maxima as "max_*".

    Of the rows that a policy of ours sampled: an expert's have no ratio.
    """
    c = learner.config
    logp_BT, mask_BT = batch.logp_BT, batch.own_BT
    ratio_BT = masked.zero_masked(objectives.ratio(logp_BT, batch.behav_logp_BT), mask_BT)
    clipped_BT = _clipped(learner, batch)
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
        sums["kl_base"] = total(kl(logp_BT, batch.base_logp_BT))
        sums["kl_prev"] = total(kl(logp_BT, frozen.prev_logp_BT))
    return sums


def _clipped(learner: Learner, batch: family.Tokens) -> jax.Array:
    """1 at tokens that have an advantage and, by the method's rules, no gradient."""
    o = learner.config.objective
    if o.method == "mix_ppg":
        logps = (batch.logp_BT, batch.behav_logp_BT, batch.prox_logp_BT)
        return objectives.is_clipped(*logps, batch.adv_BT, o.clip)
    loss = family.METHODS[o.method].loss

    def total(logp_BT):
        loss_BT = loss(batch._replace(logp_BT=logp_BT), fixed(learner))
        return masked.zero_masked(loss_BT, batch.mask_BT).sum()

    return ((jax.grad(total)(batch.logp_BT) == 0) & (batch.adv_BT != 0)).astype(jnp.float32)


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
