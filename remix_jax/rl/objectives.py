"""PPO, ReMix's Mix-PPG and the critic's loss, token losses out.

Every function returns `loss_BT`, the loss of each token to be *minimised*; reduce it with
`masked.aggregate`. `logp_BT` is log pi_theta, `behav_logp_BT` that of the policy which sampled the
tokens, `prox_logp_BT` log pi_k of the policy at the start of the step; natural logs. Gradients flow
through `logp_BT` (and the critic's `value_BT`) only.
"""

import chex
import jax
import jax.numpy as jnp
from jax import Array

from remix_jax.rl import masked

LOG_RATIO_BOUND = 20.0
"""Log ratios are clipped to +-20 before exp, as in verl: far outside every trust region, and exp is
finite also for garbage in masked slots, whose zero cotangent would else meet an inf."""


def ratio(logp_BT: Array, behav_logp_BT: Array) -> Array:
    """pi / mu per token = exp(logp - behav_logp), the difference clipped to +-LOG_RATIO_BOUND."""
    log_ratio_BT = logp_BT - jax.lax.stop_gradient(behav_logp_BT)
    return jnp.exp(jnp.clip(log_ratio_BT, -LOG_RATIO_BOUND, LOG_RATIO_BOUND))


CORRECTIONS = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")


def sampler_weight(
    logp_BT: Array, sampler_logp_BT: Array, mask_BT: Array, correction: str, cap: float
) -> Array:
    """Truncated importance weights where the sampler is not quite the trainer's policy, [B, T].

        w = min(pi / mu, cap)  (truncate),      w = (pi / mu) 1[pi / mu <= cap]  (mask)

    pi and mu are of the same parameters, as the trainer and as the sampler compute them; token: of
    each token, sequence: of the response, by the product over its tokens. The policy's loss, not
    its KL or entropy, is multiplied by w (Yao et al. 2025, "Your efficient RL framework secretly
    brings you off-policy RL training"; names and cap of TRL's `vllm_importance_sampling_mode`).
    """
    level, _, bound = correction.partition("_")
    log_weight_BT = masked.zero_masked(logp_BT - sampler_logp_BT, mask_BT)
    if level == "sequence":
        log_weight_BT = jnp.broadcast_to(log_weight_BT.sum(axis=1, keepdims=True), mask_BT.shape)
    weight_BT = ratio(log_weight_BT, jnp.zeros_like(log_weight_BT))
    beyond_BT = cap if bound == "truncate" else jnp.zeros_like(weight_BT)
    return jax.lax.stop_gradient(jnp.where(weight_BT <= cap, weight_BT, beyond_BT))


def ppo(
    logp_BT: Array,
    behav_logp_BT: Array,
    adv_BT: Array,
    clip_low: float | Array = 0.2,
    clip_high: float | Array = 0.2,
    dual_clip: float | None = None,
) -> Array:
    """PPO's clipped surrogate (Schulman et al. 2017, eq. 7), negated; `mix_ppg` with c = 1.

        loss = -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A),      r = pi_theta / pi_behav

    dual_clip d > 1 (Ye et al. 2020, eq. 5) bounds the loss of a token with A < 0 by -d A.

    Args:
      clip_low, clip_high: half-widths of the trust region (DAPO: 0.2, 0.28).
    """
    return mix_ppg(logp_BT, behav_logp_BT, behav_logp_BT, adv_BT, clip_low, dual_clip, clip_high)


def mix_ppg(
    logp_BT: Array,
    behav_logp_BT: Array,
    prox_logp_BT: Array,
    adv_BT: Array,
    clip: float | Array = 0.2,
    dual_clip: float | None = None,
    clip_high: float | Array | None = None,
) -> Array:
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
    adv_BT = jax.lax.stop_gradient(adv_BT)
    ratio_BT = ratio(logp_BT, behav_logp_BT)
    centre_BT = jax.lax.stop_gradient(ratio(prox_logp_BT, behav_logp_BT))
    low_BT = jnp.maximum(centre_BT - clip, 0.0)
    high_BT = centre_BT + (clip if clip_high is None else clip_high)
    near_BT = jnp.clip(ratio_BT, low_BT, high_BT)
    loss_BT = jnp.maximum(-adv_BT * ratio_BT, -adv_BT * near_BT)
    if dual_clip is None:
        return loss_BT
    return jnp.where(adv_BT < 0, jnp.minimum(loss_BT, -adv_BT * dual_clip), loss_BT)


def value_loss(value_BT: Array, old_value_BT: Array, return_BT: Array, clip: float) -> Array:
    """PPO's clipped value loss per token.

        0.5 max((V - G)^2, (clip(V, V_k - clip, V_k + clip) - G)^2)

    V_k is the value at the start of the step, G the return; `clip`, the largest move from V_k that
    still earns, is in units of return.
    """
    chex.assert_equal_shape([value_BT, old_value_BT, return_BT])
    old_value_BT, return_BT = jax.lax.stop_gradient((old_value_BT, return_BT))
    near_BT = jnp.clip(value_BT, old_value_BT - clip, old_value_BT + clip)
    return 0.5 * jnp.maximum(jnp.square(value_BT - return_BT), jnp.square(near_BT - return_BT))
