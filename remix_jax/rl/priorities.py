"""Replay by priority: what a row is worth being drawn again (PTR-PPO, arXiv 2112.03798).

Priorities are numbers >= 0 a row, or a group; `draw_probabilities` makes them a distribution over
the slots of the ring for `jax.random.choice`. The drawn rows are trained on by any objective.
"""

import chex
import jax
import jax.numpy as jnp

from remix_jax.rl import masked


def max_advantage(adv_BT: jax.Array, mask_BT: jax.Array) -> jax.Array:
    """max over the row's tokens of |A|, [B]; 0 for a row without tokens."""
    chex.assert_equal_shape([adv_BT, mask_BT])
    return jnp.abs(masked.zero_masked(adv_BT, mask_BT)).max(axis=1)


def mean_advantage(adv_BT: jax.Array, mask_BT: jax.Array) -> jax.Array:
    """Mean over the row's tokens of |A|, [B]; 0 for a row without tokens."""
    chex.assert_equal_shape([adv_BT, mask_BT])
    total_B = jnp.abs(masked.zero_masked(adv_BT, mask_BT)).sum(axis=1)
    return masked.divide(total_B, mask_BT.sum(axis=1))


def scaled_reward(reward_B: jax.Array, valid_B: jax.Array) -> jax.Array:
    """(R - min) / (max - min) over the rows that count, [B]; 0 for the others.

    With all rewards equal every row has 1: none is worth more than another.
    """
    chex.assert_equal_shape([reward_B, valid_B])
    real_B = valid_B > 0
    lowest = jnp.where(real_B, reward_B, jnp.inf).min()
    width = jnp.where(real_B, reward_B, -jnp.inf).max() - lowest
    scaled_B = jnp.where(width > 0, (reward_B - lowest) / width, jnp.ones_like(reward_B))
    return jnp.where(real_B, scaled_B, jnp.zeros_like(reward_B))


def draw_probabilities(priority_B: jax.Array, valid_B: jax.Array, exponent: float) -> jax.Array:
    """P(b) = p_b^alpha / sum p^alpha over the rows that count (Schaul et al. 2016, eq. 1), [B].

    Uniform with alpha = 0, and also when no row that counts has a priority above 0. Without a row
    that counts all are 0: there is nothing to draw.

    Args:
      priority_B: p >= 0.
      valid_B: rows that may be drawn.
      exponent: alpha >= 0.
    """
    chex.assert_equal_shape([priority_B, valid_B])
    real_B = valid_B > 0
    priority_B = jnp.where(real_B, priority_B, jnp.zeros_like(priority_B))
    # Relative to the largest, a power neither overflows nor vanishes for all rows at once.
    largest = priority_B.max()
    share_B = jnp.where(largest > 0, masked.divide(priority_B, largest), jnp.ones_like(priority_B))
    weight_B = jnp.where(real_B, share_B**exponent, jnp.zeros_like(share_B))
    return masked.divide(weight_B, weight_B.sum())
