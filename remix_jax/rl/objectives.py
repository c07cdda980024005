"""Policy-gradient objectives: one function per method, token losses out.

Every function returns `loss_BT`, the loss of each token to be *minimised*; reduce it with
`masked.aggregate`. `logp_BT` is log pi_theta, `behav_logp_BT` that of the policy which sampled the
tokens, `prox_logp_BT` log pi_k of the policy at the start of the step; natural logs. Gradients flow
through `logp_BT` (and the critic's `value_BT`) only.
"""

import chex
import jax
import jax.numpy as jnp

LOG_RATIO_BOUND = 20.0
"""Log ratios are clipped to +-20 (a factor of 5e8) before exp, as in verl.

Far outside every trust region, so no gradient is lost that a clip would keep; it keeps exp finite
in float32, also for garbage in masked slots, whose zero cotangent would else meet an inf.
"""


def ratio(logp_BT: jax.Array, behav_logp_BT: jax.Array) -> jax.Array:
    """pi / mu per token = exp(logp - behav_logp), the difference clipped to +-LOG_RATIO_BOUND."""
    log_ratio_BT = logp_BT - jax.lax.stop_gradient(behav_logp_BT)
    return jnp.exp(jnp.clip(log_ratio_BT, -LOG_RATIO_BOUND, LOG_RATIO_BOUND))


def ppo(
    logp_BT: jax.Array,
    behav_logp_BT: jax.Array,
    adv_BT: jax.Array,
    clip_low: float | jax.Array = 0.2,
    clip_high: float | jax.Array = 0.2,
    dual_clip: float | None = None,
) -> jax.Array:
    """PPO's clipped surrogate (Schulman et al. 2017, eq. 7), negated.

        loss = -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A),      r = pi_theta / pi_behav

    dual_clip c > 1 (Ye et al. 2020, eq. 5) bounds the loss of a token with A < 0 by -c A.

    Args:
      clip_low, clip_high: half-widths of the trust region (DAPO: 0.2, 0.28).
    """
    chex.assert_equal_shape([logp_BT, behav_logp_BT, adv_BT])
    centre_BT = jnp.ones_like(logp_BT)
    ratio_BT = ratio(logp_BT, behav_logp_BT)
    return _clipped_surrogate(ratio_BT, centre_BT, adv_BT, clip_low, clip_high, dual_clip)


def mix_ppg(
    logp_BT: jax.Array,
    behav_logp_BT: jax.Array,
    prox_logp_BT: jax.Array,
    adv_BT: jax.Array,
    clip: float | jax.Array = 0.2,
    dual_clip: float | None = None,
    clip_high: float | None = None,
) -> jax.Array:
    """Mix-policy proximal policy gradient (ReMix, arXiv 2507.06892; GePPO's surrogate), negated.

        loss = -min(r A, clip(r, c - eps, c + eps) A)
        r = pi_theta / pi_{k-i}    (denominator: the policy that sampled the token, i steps ago)
        c = pi_k / pi_{k-i}        (clip centre: where the step starts)

    The trust region lies around the policy at the start of the step, not around the one that
    sampled: an old row enters the step unclipped and may move by eps from where it stands. A fresh
    row has pi_k = pi_{k-i}, hence c = 1 and exactly `ppo`. The lower bound is clamped at 0.

    Args:
      behav_logp_BT: log pi_{k-i}, stored with the row when it was sampled.
      adv_BT: of pi_k.
      clip: eps, a scalar or an array that broadcasts to [B, T] (one per row: [B, 1]).
      dual_clip: as in `ppo`.
      clip_high: eps of the upper bound, where it is another.
    """
    chex.assert_equal_shape([logp_BT, behav_logp_BT, prox_logp_BT, adv_BT])
    ratio_BT = ratio(logp_BT, behav_logp_BT)
    centre_BT = jax.lax.stop_gradient(ratio(prox_logp_BT, behav_logp_BT))
    high = clip if clip_high is None else clip_high
    return _clipped_surrogate(ratio_BT, centre_BT, adv_BT, clip, high, dual_clip)


def is_clipped(
    logp_BT: jax.Array,
    behav_logp_BT: jax.Array,
    prox_logp_BT: jax.Array,
    adv_BT: jax.Array,
    clip: float | jax.Array = 0.2,
    dual_clip: float | None = None,
    clip_high: float | None = None,
) -> jax.Array:
    """1 where `mix_ppg` has no gradient: the ratio left the trust region on the gaining side.

    A > 0 and r > c + eps, or A < 0 and r < c - eps; with a dual clip also A < 0 and r > dual_clip.
    As float, to be averaged. Args: as `mix_ppg`.
    """
    ratio_BT = ratio(logp_BT, behav_logp_BT)
    centre_BT = ratio(prox_logp_BT, behav_logp_BT)
    high = clip if clip_high is None else clip_high
    above_BT = (adv_BT > 0) & (ratio_BT > centre_BT + high)
    below_BT = (adv_BT < 0) & (ratio_BT < centre_BT - clip)
    if dual_clip is not None:
        below_BT |= (adv_BT < 0) & (ratio_BT > dual_clip)
    return (above_BT | below_BT).astype(logp_BT.dtype)


def value_loss(
    value_BT: jax.Array, old_value_BT: jax.Array, return_BT: jax.Array, clip: float
) -> jax.Array:
    """PPO's clipped value loss per token.

        0.5 max((V - G)^2, (clip(V, V_k - clip, V_k + clip) - G)^2)

    V_k is the value at the start of the step, G the return; `clip`, the largest move from V_k that
    still earns, is in units of return.
    """
    chex.assert_equal_shape([value_BT, old_value_BT, return_BT])
    old_value_BT, return_BT = jax.lax.stop_gradient((old_value_BT, return_BT))
    near_BT = jnp.clip(value_BT, old_value_BT - clip, old_value_BT + clip)
    return 0.5 * jnp.maximum(jnp.square(value_BT - return_BT), jnp.square(near_BT - return_BT))


def _clipped_surrogate(ratio_BT, centre_BT, adv_BT, clip_low, clip_high, dual_clip):
    """-min(r A, clip(r, max(c - low, 0), c + high) A), then the dual bound where A < 0."""
    adv_BT = jax.lax.stop_gradient(adv_BT)
    low_BT = jnp.maximum(centre_BT - clip_low, 0.0)
    near_BT = jnp.clip(ratio_BT, low_BT, centre_BT + clip_high)
    loss_BT = jnp.maximum(-adv_BT * ratio_BT, -adv_BT * near_BT)
    if dual_clip is None:
        return loss_BT
    bounded_BT = jnp.minimum(loss_BT, -adv_BT * dual_clip)
    return jnp.where(adv_BT < 0, bounded_BT, loss_BT)
