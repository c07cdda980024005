"""What a method needs to know of the whole mini-batch before it can weigh one token.

Compute each once per mini-batch, from arrays over all devices and micro-batches, at the parameters
the mini-batch starts from, and pass it to the loss of every micro-batch: computed per micro-batch
it is another algorithm. No gradient flows through any of them.
"""

from fractions import Fraction
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from remix_jax.rl import masked, objectives


class Bounds(NamedTuple):
    """The clip of the ratio: `low` binds tokens of A < 0, `high` those of A >= 0."""

    low: jax.Array
    high: jax.Array


def bapo_bounds(
    logp_BT: jax.Array,
    behav_logp_BT: jax.Array,
    adv_BT: jax.Array,
    mask_BT: jax.Array,
    target: float | jax.Array = 0.4,
    low: tuple[float, float] = (0.6, 0.9),
    high: tuple[float, float] = (1.2, 3.0),
    low_step: float = 0.02,
    high_step: float = 0.05,
) -> Bounds:
    """BAPO's clip bounds (arXiv 2510.18927, algorithm 1), for `objectives.ppo`.

        until P / (P + N) >= target:  raise c_high by its step, at its end c_low by its own
        P = sum over A >= 0 of A min(r, c_high),      N = sum over A < 0 of |A| max(r, c_low)

    The loss is ppo(.., clip_low=1 - c_low, clip_high=c_high - 1). Both at their ends, the search
    stops short of the target; without any signal it does not start.

    Args:
      target: rho_0, the share of the loss that tokens of A >= 0 should have.
      low, high: first and last value of c_low and of c_high.
    """
    logp_BT, behav_logp_BT, adv_BT = masked.zero_masked_all(mask_BT, logp_BT, behav_logp_BT, adv_BT)
    ratio_BT = objectives.ratio(logp_BT, behav_logp_BT)
    high_steps, low_steps = _steps_between(*high, high_step), _steps_between(*low, low_step)

    def after(steps):
        c_high = high[0] + high_step * jnp.minimum(steps, high_steps)
        c_low = low[0] + low_step * jnp.maximum(steps - high_steps, 0)
        return Bounds(c_low.astype(ratio_BT.dtype), c_high.astype(ratio_BT.dtype))

    def short_of_target(steps):
        c_low, c_high = after(steps)
        gain = (jnp.maximum(adv_BT, 0) * jnp.minimum(ratio_BT, c_high)).sum()
        cost = (jnp.maximum(-adv_BT, 0) * jnp.maximum(ratio_BT, c_low)).sum()
        return (gain < target * (gain + cost)) & (steps < high_steps + low_steps)

    steps = jax.lax.while_loop(short_of_target, lambda steps: steps + 1, jnp.zeros((), jnp.int32))
    return jax.lax.stop_gradient(after(steps))


def m2po_threshold(
    logp_BT: jax.Array,
    behav_logp_BT: jax.Array,
    adv_BT: jax.Array,
    mask_BT: jax.Array,
    target: float | jax.Array = 0.04,
) -> jax.Array:
    """M2PO's bound on (log r)^2 (arXiv 2510.01161), which keeps their mean <= target.

    Over the tokens that PPO's clip would concern: A > 0 and r > 1, or A < 0 and r < 1. Tokens above
    the bound are dropped, as few as possible; equal ones are kept or dropped together. The bound
    lies midway between the largest that is kept and the smallest that is dropped, where the
    rounding of another forward pass does not matter; inf if none is dropped.
    """
    logp_BT, behav_logp_BT, adv_BT = masked.zero_masked_all(mask_BT, logp_BT, behav_logp_BT, adv_BT)
    log_ratio_BT = logp_BT - behav_logp_BT
    concerned_BT = jnp.sign(adv_BT) * log_ratio_BT > 0
    # The others sort to the end, where no mean is small enough.
    square_n = jnp.sort(jnp.where(concerned_BT, jnp.square(log_ratio_BT), jnp.inf).reshape(-1))
    mean_n = jnp.cumsum(square_n) / jnp.arange(1, square_n.size + 1)
    last_of_equals_n = jnp.append(square_n[1:] > square_n[:-1], True)
    fits_n = (mean_n <= target) & last_of_equals_n
    kept = jnp.where(fits_n, square_n, -1.0).max()  # -1: not one
    next_up = jnp.where(square_n > kept, square_n, jnp.inf).min()
    return jax.lax.stop_gradient((jnp.maximum(kept, 0.0) + next_up) / 2)


def effective_sample_size(
    logp_BT: jax.Array, behav_logp_BT: jax.Array, mask_BT: jax.Array
) -> jax.Array:
    """ESS = (sum r)^2 / (n sum r^2) over the tokens under the mask, in (0, 1].

    1 when all ratios are equal, 1 / n when one outweighs the rest, 1 without a token. P3O's clip
    (arXiv 1905.01756) is ESS, its KL weight 1 - ESS.
    """
    log_ratio_BT = jnp.clip(
        jnp.subtract(*masked.zero_masked_all(mask_BT, logp_BT, behav_logp_BT)),
        -objectives.LOG_RATIO_BOUND,
        objectives.LOG_RATIO_BOUND,
    )
    # The quotient is the same for r / max r, whose squares cannot overflow.
    largest = jnp.where(mask_BT > 0, log_ratio_BT, -jnp.inf).max()
    ratio_BT = jnp.where(mask_BT > 0, jnp.exp(log_ratio_BT - largest), jnp.zeros_like(mask_BT))
    tokens = mask_BT.sum()
    ess = masked.divide(jnp.square(ratio_BT.sum()), tokens * jnp.square(ratio_BT).sum())
    return jax.lax.stop_gradient(jnp.where(tokens > 0, ess, jnp.ones_like(ess)))


def geppo_weights(batches: int) -> np.ndarray:
    """GePPO's weights nu_i of policies of age i = 0, 1, .. (Queeney et al. 2021).

    The nu of least sum of squares, hence of the largest effective batch, whose total movement a
    step is PPO's: sum nu = 1, sum nu_i (i + 1) = B, nu >= 0. In closed form, with M = 3 B - 2:

        nu_i = 2 (M - i) / (M (M + 1)),      i = 0 .. M - 1

    B = 2: (.4, .3, .2, .1).

    Args:
      batches: B >= 1, the batches that PPO would have collected for one update.
    """
    ages = 3 * batches - 2
    return 2.0 * (ages - np.arange(ages)) / (ages * (ages + 1))


def geppo_clip(clip: float, weights: np.ndarray) -> float:
    """GePPO's eps' = eps / sum_i nu_i (i + 1): PPO's trust region, spread over the ages."""
    return float(clip / np.sum(weights * (np.arange(len(weights)) + 1)))


def age_weight(age_B: jax.Array, weights_M: jax.Array, valid_B: jax.Array) -> jax.Array:
    """nu of each row's age over its mean over the rows that count, [B]: a factor of `mix_ppg`.

    An age of M or more, and a row that does not count, has weight 0.
    """
    chex.assert_equal_shape([age_B, valid_B])
    weights_M = jnp.asarray(weights_M)
    known_B = (valid_B > 0) & (age_B >= 0) & (age_B < weights_M.shape[0])
    nu_B = jnp.where(known_B, weights_M[jnp.clip(age_B, 0, weights_M.shape[0] - 1)], 0.0)
    rows = (valid_B > 0).sum().astype(nu_B.dtype)
    return masked.divide(nu_B * rows, nu_B.sum())


def _steps_between(first: float, last: float, step: float) -> int:
    """Whole steps from first to last, exactly: (3.0 - 1.2) / 0.05 is 36 also in binary."""
    return int((Fraction(str(last)) - Fraction(str(first))) / Fraction(str(step)))
