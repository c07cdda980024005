"""Off-policy objectives per response: methods whose weight is a sum or a mean over the whole row.

Notation as in `off_policy`; r(y) is the product of a row's ratios over its tokens under the mask,
s(y) = r(y)^(1 / |y|). Rows must be whole: a response may not be split over micro-batches.
"""

import chex
import jax
import jax.numpy as jnp

from remix_jax.rl import advantages, masked, objectives, off_policy


def log_ratio(logp_BT: jax.Array, behav_logp_BT: jax.Array, mask_BT: jax.Array) -> jax.Array:
    """log r(y) = sum over the row's tokens of log pi - log mu, [B]; 0 for a row without tokens."""
    chex.assert_equal_shape([logp_BT, behav_logp_BT, mask_BT])
    return masked.zero_masked(logp_BT - behav_logp_BT, mask_BT).sum(axis=1)


def topr(
    logp_BT: jax.Array, behav_logp_BT: jax.Array, adv_BT: jax.Array, mask_BT: jax.Array
) -> jax.Array:
    """Tapered off-policy REINFORCE (TOPR, arXiv 2503.14286).

        loss = -sg(w A) l,      w = 1 if A >= 0 else min(r(y), 1),      c = w A

    r(y) is the product over the whole response: a bad response that the policy has left behind
    pushes no further. Its geometric mean would hardly taper (0.99 against 4.5e-5 at 1,000 tokens).

    Args:
      adv_BT: R of -1 or +1, without a baseline, at every token of the row.
    """
    log_ratio_B = log_ratio(logp_BT, behav_logp_BT, mask_BT)
    # exp(min(log r, 0)) instead of min(exp(log r), 1): a sum over 10^4 tokens may be large.
    taper_B1 = jnp.exp(jnp.minimum(log_ratio_B, 0.0))[:, None]
    adv_BT = masked.zero_masked(adv_BT, mask_BT)
    return off_policy.reinforce(logp_BT, jnp.where(adv_BT < 0, taper_B1 * adv_BT, adv_BT), mask_BT)


def gspo(
    logp_BT: jax.Array,
    behav_logp_BT: jax.Array,
    adv_BT: jax.Array,
    mask_BT: jax.Array,
    clip_low: float | jax.Array = 3e-4,
    clip_high: float | jax.Array = 4e-4,
) -> jax.Array:
    """Group sequence policy optimisation (GSPO, arXiv 2507.18071), in its token form.

        loss = -min(s A, clip(s, 1 - clip_low, 1 + clip_high) A),      s = sg(s(y)) pi / sg(pi)
        c = 1[s(y) unclipped] s(y) A

    Reduced by seq-mean-token-mean and with one A a row it is the sequence form, value and gradient.
    """
    log_ratio_B = log_ratio(logp_BT, behav_logp_BT, mask_BT)
    mean_B1 = masked.divide(log_ratio_B, mask_BT.sum(axis=1))[:, None]
    logp_BT = masked.zero_masked(logp_BT, mask_BT)
    adv_BT = masked.zero_masked(adv_BT, mask_BT)
    # l - sg(l) is 0 with the gradient of l: `ppo` sees the log ratio log s(y), exactly.
    moving_BT = logp_BT - jax.lax.stop_gradient(logp_BT)
    behav_BT = jnp.broadcast_to(-mean_B1, logp_BT.shape)
    return objectives.ppo(moving_BT, behav_BT, adv_BT, clip_low, clip_high)


def agro_advantage(
    logp_BT: jax.Array,
    ref_logp_BT: jax.Array,
    mask_BT: jax.Array,
    reward_B: jax.Array,
    group_B: jax.Array,
    beta: float | jax.Array = 0.1,
) -> jax.Array:
    """AGRO's advantage (arXiv 2503.19612): the regularised reward against its group's mean, [B].

        A = R_b - mean_group(R_b),      R_b = R - b log(pi_theta(y) / pi_ref(y))

    The log ratio is of the whole response. `off_policy.reinforce` with it is the gradient of
    mean_B (R_b - mean R_b)^2 / (2 b), for rows of any policy: it vanishes where R_b is the same for
    all responses to a prompt, as under the optimum of the KL-regularised problem.
    Compute it on whole groups, at the current parameters. A row alone in its group gets 0.
    """
    chex.assert_equal_shape([logp_BT, ref_logp_BT, mask_BT])
    log_ratio_B = log_ratio(logp_BT, ref_logp_BT, mask_BT)
    regularised_B = jax.lax.stop_gradient(reward_B - beta * log_ratio_B)
    return advantages.asymre(regularised_B, group_B, shift=0.0)


def opmd(
    logp_BT: jax.Array,
    behav_logp_BT: jax.Array,
    adv_BT: jax.Array,
    mask_BT: jax.Array,
    tau: float | jax.Array = 0.1,
) -> jax.Array:
    """Online policy mirror descent (Kimi k1.5, arXiv 2501.12599): loss = -sg(c) l.

        c = A - tau log r(y)

    The second part is the gradient of tau / 2 (log r(y))^2, a pull back to the sampler mu. The form
    with the token's own log r is `reinforce` + tau `constraints.k2(logp, behav_logp)`.
    """
    log_ratio_B1 = log_ratio(logp_BT, behav_logp_BT, mask_BT)[:, None]
    return off_policy.reinforce(logp_BT, adv_BT - tau * log_ratio_B1, mask_BT)
