"""The replay state: a ring of rows, groups kept whole, as data for the carry of a scan.

Every generated row goes through the ring, also the fresh ones that are trained on at once: so a
row's uses are counted in one place, and its fate is recorded when it is overwritten or dropped.
The unit is the group (PPO: one row). Which groups are drawn is a sampler of SAMPLERS.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array

from remix_jax.rl import masked
from remix_jax.types import Rows, empty_rows, kept_rows

ZERO_SIGNAL = 0
"""Index in `fates_U` of rows whose group had equal rewards; index 1 + u: rows used u times."""


class ReplayState(flax.struct.PyTreeNode):
    """A ring of rows, written from `cursor` on, and the fates of rows that left."""

    rows: Rows
    cursor: Array  # int32, slot of the next write
    fates_U: Array  # int32, rows that left: [zero signal, used 0 times, used 1 time, ...]
    group_size: int = flax.struct.field(pytree_node=False)

    @property
    def capacity(self) -> int:
        """R, rows that the ring holds."""
        return self.rows.valid_B.shape[0]


def init(
    groups: int,
    group_size: int,
    prompt_slots: int,
    response_slots: int,
    max_uses: int,
    with_advantage: bool = False,
    with_weight: bool = False,
) -> ReplayState:
    """An empty ring for `groups` groups; uses beyond `max_uses` are counted as max_uses."""
    empty = empty_rows(groups * group_size, prompt_slots, response_slots)
    zero_BT = jnp.zeros_like(empty.behav_logp_BT)
    adv_BT = zero_BT if with_advantage else None
    weight_BT = jnp.copy(zero_BT) if with_weight else None
    return ReplayState(
        rows=kept_rows(empty, stored_adv_BT=adv_BT, sampler_weight_BT=weight_BT),
        cursor=jnp.zeros((), jnp.int32),
        fates_U=jnp.zeros((max_uses + 2,), jnp.int32),
        group_size=group_size,
    )


def add(state: ReplayState, rows: Rows) -> tuple[ReplayState, Array]:
    """Writes whole groups at the cursor, over the oldest; returns the slots [F] they went to.

    Raises:
      ValueError: more rows than the ring holds, or no whole number of groups.
    """
    n = rows.valid_B.shape[0]
    if n > state.capacity or n % state.group_size:
        raise ValueError(
            f"{n} rows do not go into a ring of {state.capacity} as groups of {state.group_size}"
        )
    slots_F = (state.cursor + jnp.arange(n)) % state.capacity
    fates_U = _fates(state, take(state, slots_F))
    written = jax.tree.map(lambda old, new: old.at[slots_F].set(new), state.rows, rows)
    cursor = (state.cursor + n) % state.capacity
    return state.replace(rows=written, cursor=cursor, fates_U=fates_U), slots_F


def take(state: ReplayState, slots_B: Array) -> Rows:
    """The rows at some slots."""
    return jax.tree.map(lambda x: x[slots_B], state.rows)


def sample(
    state: ReplayState, key: Array, step: Array, window: int, sampler: str, room: int, groups: Array
) -> tuple[Array, Array]:
    """Draws whole groups without replacement; with fewer eligible ones than asked for all of them.

    A group is eligible when 1 <= age, age = step - version, a row of it is valid, and no token of
    it is of a policy more than `window` steps old.

    Args:
      sampler: a key of SAMPLERS; a group's priority is the mean of its valid rows'.
      room: groups that the result has slots for (static).
      groups: groups wanted, at most `room` (may be traced).

    Returns:
      slots_B: slots of room * group_size rows; taken_B: which of them are drawn and valid.
    """
    by_group = (-1, state.group_size)
    valid_gG = state.rows.valid_B.reshape(by_group)
    age_g = step - state.rows.version_B.reshape(by_group)[:, 0]
    oldest_g = age_g + state.rows.lag_B.reshape(by_group).max(axis=1)
    eligible_g = valid_gG.any(axis=1) & (age_g >= 1) & (oldest_g <= window)
    priority, lottery = SAMPLERS[sampler][:2]
    priority_gG = jnp.where(valid_gG, priority(state.rows).reshape(by_group), 0.0)
    priority_g = masked.divide(priority_gG.sum(axis=1), valid_gG.sum(axis=1))
    lottery_g = lottery(key, jnp.where(eligible_g, priority_g, 0.0))
    drawn_g = jnp.argsort(jnp.where(eligible_g, lottery_g, jnp.inf))[:room]
    taken_g = eligible_g[drawn_g] & (jnp.arange(drawn_g.shape[0]) < groups)
    member_G = jnp.arange(state.group_size)
    slots_B = (drawn_g[:, None] * state.group_size + member_G[None, :]).reshape(-1)
    taken_B = jnp.repeat(taken_g, state.group_size) & state.rows.valid_B[slots_B]
    return slots_B, taken_B


def draw_successes(
    state: ReplayState, key: Array, step: Array, window: int, count: int
) -> tuple[Array, Array]:
    """Draws `count` rows uniformly, with replacement, among the successes of an age below `window`.

    Returns their slots [B], and whether there is a success at all (else they mean nothing).
    """
    rows = state.rows
    success_R = rows.valid_B & rows.success_B & (step - rows.version_B < window)
    weight_R = jnp.where(success_R.any(), success_R, True).astype(jnp.float32)
    slots_B = jax.random.choice(key, weight_R.shape[0], (count,), p=weight_R / weight_R.sum())
    return slots_B, success_R.any()


def touch(state: ReplayState, slots_B: Array, trained_B: Array) -> ReplayState:
    """Counts one more gradient pass over the rows at `slots_B` where `trained_B`."""
    used_R = state.rows.used_B.at[slots_B].add(trained_B.astype(jnp.int32))
    return state.replace(rows=state.rows.replace(used_B=used_R))


def clear(state: ReplayState) -> ReplayState:
    """Empties the ring; its rows' fates are recorded."""
    rows = state.rows.replace(valid_B=jnp.zeros_like(state.rows.valid_B))
    return state.replace(rows=rows, fates_U=_fates(state, state.rows))


def _fates(state: ReplayState, rows: Rows) -> Array:
    """`fates_U` with valid rows that leave now; an expert's are not counted: not generated."""
    buckets = state.fates_U.shape[0]
    fate_B = jnp.minimum(rows.used_B + 1, buckets - 1)
    fate_B = jnp.where(rows.signal_B, fate_B, ZERO_SIGNAL)
    hit_BU = fate_B[:, None] == jnp.arange(buckets)[None, :]
    counted_B = rows.valid_B & ~rows.expert_B
    return state.fates_U + (hit_BU & counted_B[:, None]).sum(axis=0).astype(jnp.int32)


# ---------------------------------------------------------------------------- priorities of rows


def alike(rows: Rows) -> Array:
    """0 for every row, [R]."""
    return jnp.zeros_like(rows.reward_B)


def max_advantage(rows: Rows) -> Array:
    """max over the row's tokens of |A| at its collection, [R]; 0 for a row without tokens."""
    return _stored_size(rows).max(axis=1)


def mean_advantage(rows: Rows) -> Array:
    """Mean over the row's tokens of |A| at its collection, [R]; 0 for a row without tokens."""
    return masked.divide(_stored_size(rows).sum(axis=1), rows.mask_BT.sum(axis=1))


def _stored_size(rows: Rows) -> Array:
    assert rows.stored_adv_BT is not None, "Config.stores_advantage"
    return jnp.abs(masked.zero_masked(rows.stored_adv_BT, rows.mask_BT))


def scaled_reward(rows: Rows) -> Array:
    """(R - min) / (max - min) over the rows with a signal, [R]; 1 if all equal; 0 for others."""
    real_B, reward_B = rows.valid_B & rows.signal_B, rows.reward_B
    lowest = jnp.where(real_B, reward_B, jnp.inf).min()
    width = jnp.where(real_B, reward_B, -jnp.inf).max() - lowest
    scaled_B = jnp.where(width > 0, (reward_B - lowest) / width, jnp.ones_like(reward_B))
    return jnp.where(real_B, scaled_B, jnp.zeros_like(reward_B))


# ---------------------------------------------------------------------------- lotteries of groups


def uniform(key: Array, priority_g: Array) -> Array:
    """A random number a group, [g], whatever their priorities."""
    return jax.random.uniform(key, priority_g.shape)


def proportional(key: Array, priority_g: Array) -> Array:
    """Draws one after the other without replacement, each with `draw_probabilities` of the rest.

        lottery_g = E_g / P(g),  E_g exponential of mean 1      (Efraimidis and Spirakis 2006)

    Groups of priority 0 come last.
    """
    weight_g = draw_probabilities(priority_g)
    wait_g = jax.random.exponential(key, weight_g.shape)
    # A weight of 0 waits longer than any other, in an order of its own.
    return jnp.where(weight_g > 0, wait_g / jnp.maximum(weight_g, 1e-30), 1e30 * (1 + wait_g))


def draw_probabilities(priority_g: Array, exponent: float = 0.6) -> Array:
    """P(g) = p_g^alpha / sum p^alpha, [g]; uniform if all p are 0.

    Schaul et al. 2016, eq. 1, and their alpha for proportional priorities.
    """
    # Relative to the largest, a power neither overflows nor vanishes for all rows at once.
    largest = priority_g.max()
    share_g = jnp.where(largest > 0, masked.divide(priority_g, largest), jnp.ones_like(priority_g))
    weight_g = share_g**exponent
    return masked.divide(weight_g, weight_g.sum())


def highest_first(key: Array, priority_g: Array) -> Array:
    """The groups of the highest priority, equal ones in random order."""
    order_g = jnp.lexsort((jax.random.uniform(key, priority_g.shape), -priority_g))
    return jnp.argsort(order_g).astype(jnp.float32)


class Sampler(NamedTuple):
    """What makes a row worth being drawn, and how groups are drawn by it."""

    priority: Callable[[Rows], Array]  # >= 0
    lottery: Callable[[Array, Array], Array]  # a number a group: the smallest are drawn
    stored_advantage: bool = False  # the priority reads the advantage of the collection


SAMPLERS = {
    "uniform": Sampler(alike, uniform),
    "max_advantage": Sampler(max_advantage, proportional, stored_advantage=True),
    "mean_advantage": Sampler(mean_advantage, proportional, stored_advantage=True),
    "reward": Sampler(scaled_reward, proportional),
    "highlights": Sampler(scaled_reward, highest_first),
}
"""PTR-PPO's (arXiv 2112.03798) are max_advantage, mean_advantage and reward. HiPPO's (Pattern
Recognition 162, 2025; only its abstract was at hand) is highlights, without its penalty reward."""
