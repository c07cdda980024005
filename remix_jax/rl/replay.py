"""The replay state: a ring of rows, groups kept whole, as data for the carry of a scan.

Every generated row goes through the ring, also the fresh ones that are trained on at once: so a
row's uses are counted in one place, and its fate is recorded when it is overwritten or dropped.
The unit is the group (PPO: one row). Nothing here knows tokens from log-probs; a row is a pytree.
"""

import flax.struct
import jax
import jax.numpy as jnp

from remix_jax.rl import masked, priorities
from remix_jax.types import Rows, empty_rows, kept_rows

ZERO_SIGNAL = 0
"""Index in `fates_U` of rows whose group had equal rewards; index 1 + u: rows used u times."""


class ReplayState(flax.struct.PyTreeNode):
    """A ring of R = capacity rows, written from `cursor` on, and the fates of rows that left."""

    rows: Rows
    cursor: jax.Array  # int32, slot of the next write
    fates_U: jax.Array  # int32, rows that left: [zero signal, used 0 times, used 1 time, ...]
    group_size: int = flax.struct.field(pytree_node=False)


def init(
    groups: int,
    group_size: int,
    prompt_slots: int,
    response_slots: int,
    max_uses: int,
    with_advantage: bool = False,
) -> ReplayState:
    """An empty ring for `groups` groups; uses beyond `max_uses` are counted as max_uses."""
    empty = empty_rows(groups * group_size, prompt_slots, response_slots)
    adv_BT = jnp.zeros_like(empty.behav_logp_BT) if with_advantage else None
    return ReplayState(
        rows=kept_rows(empty, stored_adv_BT=adv_BT),
        cursor=jnp.zeros((), jnp.int32),
        fates_U=jnp.zeros((max_uses + 2,), jnp.int32),
        group_size=group_size,
    )


def capacity(state: ReplayState) -> int:
    """R, rows that the ring holds."""
    return state.rows.valid_B.shape[0]


def add(state: ReplayState, rows: Rows) -> tuple[ReplayState, jax.Array]:
    """Writes whole groups at the cursor, over the oldest; returns the slots [F] they went to.

    Raises:
      ValueError: more rows than the ring holds, or no whole number of groups.
    """
    n = rows.valid_B.shape[0]
    if n > capacity(state) or n % state.group_size:
        raise ValueError(
            f"{n} rows do not go into a ring of {capacity(state)} as groups of {state.group_size}"
        )
    slots_F = (state.cursor + jnp.arange(n)) % capacity(state)
    fates_U = state.fates_U + fates(take(state, slots_F), state.fates_U.shape[0])
    written = jax.tree.map(lambda old, new: old.at[slots_F].set(new), state.rows, rows)
    cursor = (state.cursor + n) % capacity(state)
    return state.replace(rows=written, cursor=cursor, fates_U=fates_U), slots_F


def take(state: ReplayState, slots_B: jax.Array) -> Rows:
    """The rows at some slots."""
    return jax.tree.map(lambda x: x[slots_B], state.rows)


def sample(
    state: ReplayState,
    key: jax.Array,
    step: jax.Array,
    window: int,
    slots: int,
    groups: jax.Array,
    sampler: str = "uniform",
) -> tuple[jax.Array, jax.Array]:
    """Draws whole groups without replacement among those of the last steps; uniformly by default.

    A group is eligible when 1 <= age <= window, age = step - version, and a row of it is valid.
    With fewer eligible groups than asked for all of them come: nothing is duplicated.

    Args:
      slots: groups that the result has room for (static).
      groups: groups wanted, at most `slots` (may be traced).
      sampler: a key of `priorities.SAMPLERS`; a group's priority is the mean of its valid rows'.

    Returns:
      slots_B: slots of slots * group_size rows; taken_B: which of them are drawn and valid.
    """
    by_group = (-1, state.group_size)
    valid_gG = state.rows.valid_B.reshape(by_group)
    age_g = step - state.rows.version_B.reshape(by_group)[:, 0]
    eligible_g = valid_gG.any(axis=1) & (age_g >= 1) & (age_g <= window)
    priority, lottery = priorities.SAMPLERS[sampler][:2]
    priority_g = jnp.zeros(eligible_g.shape)
    if priority is not None:
        priority_gG = jnp.where(valid_gG, priority(state.rows).reshape(by_group), 0.0)
        priority_g = masked.divide(priority_gG.sum(axis=1), valid_gG.sum(axis=1))
        priority_g = jnp.where(eligible_g, priority_g, 0.0)
    lottery_g = jnp.where(eligible_g, lottery(key, priority_g), jnp.inf)
    drawn_g = jnp.argsort(lottery_g)[:slots]
    taken_g = eligible_g[drawn_g] & (jnp.arange(drawn_g.shape[0]) < groups)
    member_G = jnp.arange(state.group_size)
    slots_B = (drawn_g[:, None] * state.group_size + member_G[None, :]).reshape(-1)
    taken_B = jnp.repeat(taken_g, state.group_size) & state.rows.valid_B[slots_B]
    return slots_B, taken_B


def draw_successes(
    state: ReplayState, key: jax.Array, step: jax.Array, window: int, count: int
) -> tuple[jax.Array, jax.Array]:
    """Draws `count` rows uniformly, with replacement, among the successes of the last steps.

    Rows with `success_B` and an age below `window`; this step's rows, of age 0, are among them.

    Returns:
      slots_B: slots of `count` rows; any: whether there is a success at all (else they mean
      nothing).
    """
    rows = state.rows
    success_R = rows.valid_B & rows.success_B & (step - rows.version_B < window)
    weight_R = jnp.where(success_R.any(), success_R, True).astype(jnp.float32)
    slots_B = jax.random.choice(key, weight_R.shape[0], (count,), p=weight_R / weight_R.sum())
    return slots_B, success_R.any()


def touch(state: ReplayState, slots_B: jax.Array, trained_B: jax.Array) -> ReplayState:
    """Counts one more gradient pass over the rows at `slots_B` where `trained_B`."""
    used_R = state.rows.used_B.at[slots_B].add(trained_B.astype(jnp.int32))
    return state.replace(rows=state.rows.replace(used_B=used_R))


def clear(state: ReplayState) -> ReplayState:
    """Empties the ring; its rows' fates are recorded."""
    fates_U = state.fates_U + fates(state.rows, state.fates_U.shape[0])
    gone = jnp.zeros_like(state.rows.valid_B)
    rows = state.rows.replace(valid_B=gone)
    return state.replace(rows=rows, fates_U=fates_U)


def fates(rows: Rows, buckets: int) -> jax.Array:
    """Valid rows by fate, [zero signal, used 0 times, used once, ...], length `buckets`.

    Rows that an expert wrote are not counted: they were not generated.
    """
    fate_B = jnp.minimum(rows.used_B + 1, buckets - 1)
    fate_B = jnp.where(rows.signal_B, fate_B, ZERO_SIGNAL)
    hit_BU = fate_B[:, None] == jnp.arange(buckets)[None, :]
    counted_B = rows.valid_B & ~rows.expert_B
    return (hit_BU & counted_B[:, None]).sum(axis=0).astype(jnp.int32)
