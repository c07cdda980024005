"""The losses of a step, on the rows of one pass, with the sums that its metrics are made of.

    policy:  objective.method (Mix-PPG) - c_H entropy + beta KL-Convex
    critic:  clipped value loss
    imitation, where it is on: log-likelihood of earlier successes, added to the policy's

Each is a sum over those rows divided by the count of the *whole* mini-batch (`masked.count`), so
the gradients of passes add up to that of the mini-batch. A pass gets all rows, valid where it holds
them, and the buffers that hold them.
"""

import functools

import jax
import jax.numpy as jnp

from remix_jax.learner.batch import logps
from remix_jax.learner.state import Learner, Static
from remix_jax.models import packing, scoring
from remix_jax.models.packing import Pass
from remix_jax.rl import constraints, family, masked, objectives
from remix_jax.rl.off_policy import Params, Terms
from remix_jax.types import Batch, Rows


def minibatch_terms(
    learner: Learner, params: dict, mini: Batch, params_of_method: Params
) -> tuple[Terms, Batch]:
    """The numbers that the method's loss reads, its statistics of the whole mini-batch among them.

    The mini-batch comes back with what the method found of each row, at the `params` given.
    """
    s, method = learner.static, family.METHODS[learner.static.method]
    clips = (s.clip, s.clip_high or None, s.dual_clip or None)
    terms = Terms(*clips, s.window, s.aggregation, params_of_method)
    logp_BT = None
    if method.forward:
        logp_BT = masked.zero_masked(logps(learner, params, mini), mini.mask_BT)
    stats, per_row_B = jax.lax.stop_gradient(
        [find and find(logp_BT, mini, terms) for find in (method.stats, method.row_stats)]
    )
    return terms._replace(stats=stats), mini.replace(per_row_B=per_row_B)


def policy_loss(
    params: dict,
    learner: Learner,
    held: Pass,
    batch: Batch,
    terms: Terms,
    kl_weight: jax.Array,
    count: jax.Array,
    ages: int,
) -> tuple[jax.Array, dict]:
    """The policy's loss; ReMix's is (arXiv 2507.06892)

        L = L_MixPPG - c_H H + beta (lambda KL(pi || base) + (1 - lambda) KL(pi || precedent))

    with another of `family.METHODS` in the place of L_MixPPG if the config says so. Entropy and KL
    are of the rows that a policy of ours sampled: on an expert's they would estimate nothing.
    `kl_weight` is lambda. With `kl.weighted` the KL of a token is multiplied by pi / mu, gradient
    and all (DeepSeek-V3.2, arXiv 2512.02556): E_mu[(pi / mu) k3] = KL(pi || anchor) for any mu.

    Returns:
      The loss, and the sums that `means` are made of; `ages` is their length by age (static).
    """
    s = learner.static
    scores = scoring.score_responses(learner.policy, params, held, s.temperature)
    logp_BT, entropy_BT = (packing.to_rows(x_NT, held) for x_NT in scores)
    logp_BT = masked.zero_masked(logp_BT, batch.mask_BT)
    policy_BT = family.METHODS[s.method].loss(logp_BT, batch, terms)
    if batch.sampler_weight_BT is not None:
        policy_BT = policy_BT * batch.sampler_weight_BT
    kl_BT = jnp.zeros_like(logp_BT)
    if s.kl_coef > 0 and not s.kl_in_reward:
        kl_BT = constraints.kl_convex(
            logp_BT, batch.base_logp_BT, batch.prev_logp_BT, kl_weight, s.kl_estimator
        )
        if s.kl_weighted:
            kl_BT = kl_BT * objectives.ratio(logp_BT, batch.behav_logp_BT)

    def reduce(x_BT, mask_BT=batch.own_BT):
        return masked.sum_and_count(x_BT, mask_BT, s.aggregation)[0] / count

    parts = {
        "loss_policy": reduce(policy_BT, batch.mask_BT),
        "loss_kl": s.kl_coef * reduce(kl_BT),
        "loss_entropy": -s.entropy_coef * reduce(entropy_BT),
    }
    loss = parts["loss_policy"] + parts["loss_kl"] + parts["loss_entropy"]
    seen = jax.lax.stop_gradient((logp_BT, entropy_BT))
    sums = _diagnostics(s, *seen, batch, terms, ages)
    return loss, {"loss": loss, **parts, **sums}


def _diagnostics(s: Static, logp_BT, entropy_BT, batch: Batch, terms: Terms, ages: int) -> dict:
    """Sums over tokens, by age of the row [A] where a ratio is concerned; maxima as "max_*".

    Of the rows that a policy of ours sampled: an expert's have no ratio.
    """
    mask_BT = batch.own_BT
    own = functools.partial(masked.zero_masked, mask_BT=mask_BT)
    ratio_BT = own(objectives.ratio(logp_BT, batch.behav_logp_BT))
    of_age_BA = (batch.age_B[:, None] == jnp.arange(ages)[None, :]).astype(jnp.float32)

    def by_age(x_B):
        return (x_B[:, None] * of_age_BA).sum(axis=0)

    def method_loss(logp_BT):
        loss_BT = family.METHODS[s.method].loss(logp_BT, batch, terms)
        return masked.zero_masked(loss_BT, batch.mask_BT).sum()

    # By the method's rules a token that has an advantage has no gradient.
    clipped_BT = (jax.grad(method_loss)(logp_BT) == 0) & (batch.adv_BT != 0)
    lengths_B = mask_BT.sum(axis=1)
    sums = {
        "rows_A": by_age((lengths_B > 0).astype(jnp.float32)),
        "tokens_A": by_age(lengths_B),
        "ratio_A": by_age(ratio_BT.sum(axis=1)),
        "ratio_squared_A": by_age(jnp.square(ratio_BT).sum(axis=1)),
        "clipped_A": by_age(own(clipped_BT.astype(jnp.float32)).sum(axis=1)),
        "max_ratio_A": (ratio_BT.max(axis=1)[:, None] * of_age_BA).max(axis=0),
        "entropy": own(entropy_BT).sum(),
        "ratio_BT": ratio_BT,
        "entropy_BT": own(entropy_BT),
    }
    if s.kl_coef > 0:
        kl = constraints.ESTIMATORS[s.kl_estimator]
        sums["kl_base"] = own(kl(logp_BT, batch.base_logp_BT)).sum()
        sums["kl_prev"] = own(kl(logp_BT, batch.prev_logp_BT)).sum()
    return sums


def totals(sums: dict) -> dict:
    """Over the first axis: sums, of "max_*" maxima."""
    maxima = {name: x.max(axis=0) for name, x in sums.items() if name.startswith("max_")}
    return {name: x.sum(axis=0) for name, x in sums.items()} | maxima


def means(static: Static, sums: dict) -> dict:
    """Means of the step from the sums [updates, ...]: over tokens; of losses, over updates.

    Without a precedent the base took its part: what was summed is no KL to it.
    """
    of_step = totals(sums)
    metrics = {k: v.mean() for k, v in sums.items() if k.startswith("loss") or k.endswith("norm")}
    for name in ("entropy", "kl_base", "kl_prev"):
        if name in of_step and (static.has_precedent or name != "kl_prev"):
            metrics[name] = masked.divide(of_step[name], of_step["tokens_A"].sum())

    metrics["learn_tokens"] = of_step["tokens"]
    metrics["learn_use"] = masked.divide(of_step["tokens"], of_step["slots"])
    passes = sums["loss"].shape[0] * static.mini_batch_size / static.batch_size
    parts: dict[str, slice] = {"": slice(None)}
    for age, rows in enumerate(of_step["rows_A"]):
        metrics[f"rows/age{age}"] = rows / passes
        parts[f"/age{age}"] = slice(age, age + 1)
    for suffix, part in parts.items():
        of_part = {name: x[part] for name, x in of_step.items() if name.endswith("_A")}
        tokens, ratio = of_part["tokens_A"].sum(), of_part["ratio_A"].sum()
        squared = of_part["ratio_squared_A"].sum()
        metrics |= {
            f"ratio_mean{suffix}": masked.divide(ratio, tokens),
            f"ratio_max{suffix}": of_part["max_ratio_A"].max(),
            f"clip_share{suffix}": masked.divide(of_part["clipped_A"].sum(), tokens),
            f"ess{suffix}": masked.divide(jnp.square(ratio), tokens * squared),
        }
    return metrics


def imitation_loss(
    params: dict, learner: Learner, held: Pass, rows: Rows, count: jax.Array
) -> jax.Array:
    """Self-imitation, where it is on: L_SI = - w mean log pi(a | s) over earlier successes.

    The policy part of self-imitation learning (Oh et al. 2018, arXiv 1806.05635, eq. 2) with
    (R - V)_+ = 1 for every success: the critic of a binary outcome says little (docs/choices.md).
    """
    s = learner.static
    scores = scoring.score_responses(learner.policy, params, held, s.temperature)
    logp_BT = packing.to_rows(scores.logp_BT, held)
    total, _ = masked.sum_and_count(-logp_BT, rows.mask_BT, s.aggregation)
    return s.imitation_weight * total / count


def critic_loss(
    params: dict, learner: Learner, held: Pass, batch: Batch, count: jax.Array
) -> jax.Array:
    """PPO's clipped value loss, times value_coef."""
    s = learner.static
    assert learner.critic is not None
    value_BT = packing.to_rows(scoring.score_values(learner.critic, params, held), held)
    loss_BT = objectives.value_loss(value_BT, batch.value_BT, batch.return_BT, s.value_clip)
    total, _ = masked.sum_and_count(loss_BT, batch.mask_BT, s.aggregation)
    return s.value_coef * total / count
