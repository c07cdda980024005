"""Replay by priority: which groups of the ring are worth being drawn again.

`replay.sampler` names an entry of SAMPLERS: a priority >= 0 for each row, and an order in which
groups of these priorities are drawn. The drawn rows are trained on by any objective.

PTR-PPO (arXiv 2112.03798) draws in proportion to max |A|, mean |A| or the scaled reward of a
trajectory. HiPPO (Pattern Recognition 162, 2025) replays highlights; only its abstract was at hand,
so this is the plain reading of it: the groups of the highest reward first. Its penalty reward is
not built.
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from remix_jax.rl import masked
from remix_jax.types import Rows

EXPONENT = 0.6
"""alpha of PTR-PPO's samplers: Schaul et al. 2016, for proportional priorities."""


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
    that counts all are 0: there is nothing to draw. p and alpha, the exponent, are >= 0.
    """
    chex.assert_equal_shape([priority_B, valid_B])
    real_B = valid_B > 0
    priority_B = jnp.where(real_B, priority_B, jnp.zeros_like(priority_B))
    # Relative to the largest, a power neither overflows nor vanishes for all rows at once.
    largest = priority_B.max()
    share_B = jnp.where(largest > 0, masked.divide(priority_B, largest), jnp.ones_like(priority_B))
    weight_B = jnp.where(real_B, share_B**exponent, jnp.zeros_like(share_B))
    return masked.divide(weight_B, weight_B.sum())


def uniform(key: jax.Array, priority_g: jax.Array) -> jax.Array:
    """A lottery: the groups of the smallest numbers are drawn; whatever their priorities, [g]."""
    return jax.random.uniform(key, priority_g.shape)


def proportional(key: jax.Array, priority_g: jax.Array) -> jax.Array:
    """Draws one after the other without replacement, each with `draw_probabilities` of the rest.

        lottery_g = E_g / P(g),  E_g exponential of mean 1      (Efraimidis and Spirakis 2006)

    Groups of priority 0 come last.
    """
    weight_g = draw_probabilities(priority_g, jnp.ones_like(priority_g), EXPONENT)
    wait_g = jax.random.exponential(key, weight_g.shape)
    # A weight of 0 waits longer than any other, in an order of its own.
    return jnp.where(weight_g > 0, wait_g / jnp.maximum(weight_g, 1e-30), 1e30 * (1 + wait_g))


def highest_first(key: jax.Array, priority_g: jax.Array) -> jax.Array:
    """The groups of the highest priority, equal ones in random order."""
    order_g = jnp.lexsort((jax.random.uniform(key, priority_g.shape), -priority_g))
    return jnp.argsort(order_g).astype(jnp.float32)


class Sampler(NamedTuple):
    """What makes a row worth being drawn, and how groups are drawn by it."""

    priority: Callable[[Rows], jax.Array] | None  # [R]; None: all alike
    lottery: Callable[[jax.Array, jax.Array], jax.Array]
    stored_advantage: bool = False


def _stored(priority: Callable[[jax.Array, jax.Array], jax.Array]) -> Sampler:
    """A sampler by the advantages that rows were collected with."""

    def of_rows(rows: Rows) -> jax.Array:
        assert rows.stored_adv_BT is not None, "Config.stores_advantage"
        return priority(rows.stored_adv_BT, rows.mask_BT)

    return Sampler(of_rows, proportional, stored_advantage=True)


def _reward(rows: Rows) -> jax.Array:
    """Of rows with a signal: a group of equal rewards teaches nothing."""
    return scaled_reward(rows.reward_B, rows.valid_B & rows.signal_B)


SAMPLERS: dict[str, Sampler] = {
    "uniform": Sampler(None, uniform),
    "max_advantage": _stored(max_advantage),
    "mean_advantage": _stored(mean_advantage),
    "reward": Sampler(_reward, proportional),
    "highlights": Sampler(_reward, highest_first),
}
"""PTR-PPO's are max_advantage, mean_advantage and reward; HiPPO's is highlights."""
