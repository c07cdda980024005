"""Off-policy objectives per token: methods that weigh, cap or drop a token by its own ratio.

l = log pi_theta of a token, mu the policy that sampled it, r = pi_theta / mu, A the advantage, sg
the stop of gradients. Each loss has the gradient of -aggregate(sg(c) l) for the coefficient c that
its docstring names; gradients flow through `logp_BT` only. Every function takes the mask: what lies
under 0, NaN included, has neither a loss nor a gradient.
"""

import jax
import jax.numpy as jnp

from remix_jax.rl import masked, objectives


def reinforce(logp_BT: jax.Array, adv_BT: jax.Array, mask_BT: jax.Array) -> jax.Array:
    """The plain policy gradient (Williams 1992): loss = -sg(A) l, c = A.

    No ratio: rows of any policy, also those whose sampler is unknown. With `advantages.asymre` it
    is AsymRE, with A = 1 on expert rows the negative log-likelihood.
    """
    logp_BT, adv_BT = masked.zero_masked_all(mask_BT, logp_BT, adv_BT)
    return -jax.lax.stop_gradient(adv_BT) * logp_BT


def cispo(
    logp_BT: jax.Array,
    behav_logp_BT: jax.Array,
    adv_BT: jax.Array,
    mask_BT: jax.Array,
    clip_high: float | jax.Array = 0.2,
    clip_low: float = 1.0,
) -> jax.Array:
    """CISPO (MiniMax-M1, arXiv 2506.13585): the weight is clipped, no token is dropped.

        loss = -sg(clip(r, 1 - clip_low, 1 + clip_high) A) l,      c = clip(r, ..) A

    clip_low = 1 is no lower bound, the paper's setting.
    """
    logp_BT, behav_logp_BT, adv_BT = masked.zero_masked_all(mask_BT, logp_BT, behav_logp_BT, adv_BT)
    weight_BT = jnp.clip(objectives.ratio(logp_BT, behav_logp_BT), 1 - clip_low, 1 + clip_high)
    return -jax.lax.stop_gradient(weight_BT * adv_BT) * logp_BT


def truncated_weight(
    logp_BT: jax.Array, behav_logp_BT: jax.Array, mask_BT: jax.Array, cap: float | jax.Array = 2.0
) -> jax.Array:
    """Truncated importance sampling (TIS): min(w, C), w = pi / mu. A factor of any token loss.

    Between a trainer and its sampler w = pi_train / pi_sampler, both of the same parameters: give
    the trainer's log-probs at the start of the step. No gradient; 0 under mask 0.
    """
    return jnp.minimum(_weight(logp_BT, behav_logp_BT, mask_BT), cap)


def masked_weight(
    logp_BT: jax.Array, behav_logp_BT: jax.Array, mask_BT: jax.Array, cap: float | jax.Array = 2.0
) -> jax.Array:
    """Masked importance sampling: w 1[w <= C]; beyond the cap a token is left out.

    Args: as `truncated_weight`.
    """
    weight_BT = _weight(logp_BT, behav_logp_BT, mask_BT)
    return jnp.where(weight_BT <= cap, weight_BT, jnp.zeros_like(weight_BT))


def decoupled_ppo(
    logp_BT: jax.Array,
    behav_logp_BT: jax.Array,
    prox_logp_BT: jax.Array,
    adv_BT: jax.Array,
    mask_BT: jax.Array,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    cap: float | jax.Array = 5.0,
) -> jax.Array:
    """Decoupled PPO (Hilton et al. 2022; AReaL, arXiv 2505.24298).

        loss = w PPO(pi_theta / pi_prox),      w = min(pi_prox / mu, cap)
        c = w 1[unclipped] (pi_theta / pi_prox) A

    The trust region lies around pi_prox, the policy at the start of the step; what separates that
    from the sampler is a weight, not a ratio to be clipped.
    """
    weight_BT = truncated_weight(prox_logp_BT, behav_logp_BT, mask_BT, cap)
    logp_BT, prox_logp_BT, adv_BT = masked.zero_masked_all(mask_BT, logp_BT, prox_logp_BT, adv_BT)
    return weight_BT * objectives.ppo(logp_BT, prox_logp_BT, adv_BT, clip_low, clip_high)


def m2po(
    logp_BT: jax.Array,
    behav_logp_BT: jax.Array,
    adv_BT: jax.Array,
    mask_BT: jax.Array,
    threshold: jax.Array,
) -> jax.Array:
    """M2PO (arXiv 2510.01161): no clip; the outliers of the second moment are dropped.

        loss = -1[kept] r A,      c = 1[kept] r A
        dropped: (A > 0 and r > 1, or A < 0 and r < 1) and (log r)^2 > threshold

    Args:
      threshold: `bounds.m2po_threshold` of the whole mini-batch, at the same parameters.
    """
    logp_BT, behav_logp_BT, adv_BT = masked.zero_masked_all(mask_BT, logp_BT, behav_logp_BT, adv_BT)
    log_ratio_BT = jax.lax.stop_gradient(logp_BT - behav_logp_BT)
    dropped_BT = (jnp.sign(adv_BT) * log_ratio_BT > 0) & (jnp.square(log_ratio_BT) > threshold)
    ratio_BT = objectives.ratio(logp_BT, behav_logp_BT)
    loss_BT = -jax.lax.stop_gradient(adv_BT) * ratio_BT
    return jnp.where(dropped_BT, jnp.zeros_like(loss_BT), loss_BT)


def p3o(
    logp_BT: jax.Array,
    behav_logp_BT: jax.Array,
    adv_BT: jax.Array,
    mask_BT: jax.Array,
    ess: jax.Array,
) -> jax.Array:
    """P3O on off-policy rows (arXiv 1905.01756); its on-policy rows have `reinforce`.

        loss = -sg(min(r, ESS) A) l + (1 - ESS) (log mu - l),      c = min(r, ESS) A + 1 - ESS

    The second term is KL(mu || pi_theta), estimated on the tokens that mu sampled. The further the
    policies are apart, the smaller the clip and the stronger the pull back to mu.

    Args:
      ess: `bounds.effective_sample_size` of the whole mini-batch's off-policy rows, in (0, 1].
    """
    ess = jax.lax.stop_gradient(ess)
    surrogate_BT = cispo(logp_BT, behav_logp_BT, adv_BT, mask_BT, clip_high=ess - 1)
    logp_BT, behav_logp_BT = masked.zero_masked_all(mask_BT, logp_BT, behav_logp_BT)
    return surrogate_BT + (1 - ess) * (jax.lax.stop_gradient(behav_logp_BT) - logp_BT)


def _weight(logp_BT, behav_logp_BT, mask_BT):
    """pi / mu without a gradient, 0 under mask 0."""
    ratio_BT = objectives.ratio(*masked.zero_masked_all(mask_BT, logp_BT, behav_logp_BT))
    return jax.lax.stop_gradient(masked.zero_masked(ratio_BT, mask_BT))
