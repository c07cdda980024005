"""The replay ring: what is in it, what can be drawn, what became of what left."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from remix_jax.rl import replay
from remix_jax.types import empty_rows, kept_rows

P, T, GROUPS, G = 3, 4, 8, 2


def make_rows(ids, version, valid=None, signal=True):
    """Rows that carry their id in every field that should travel with them."""
    ids = np.asarray(ids)
    rows = kept_rows(empty_rows(len(ids), P, T))
    return rows.replace(
        tokens_BS=jnp.asarray(np.repeat(ids[:, None], P + T, axis=1), jnp.int32),
        behav_logp_BT=jnp.asarray(np.repeat(-ids[:, None] / 7.0, T, axis=1), jnp.float32),
        reward_B=jnp.asarray(ids, jnp.float32),
        success_B=jnp.asarray(ids > 0),
        group_B=jnp.asarray(ids // G, jnp.int32),
        version_B=jnp.full(len(ids), version, jnp.int32),
        response_len_B=jnp.full(len(ids), T, jnp.int32),
        signal_B=jnp.full(len(ids), signal),
        valid_B=jnp.asarray(np.ones(len(ids), bool) if valid is None else valid),
    )


def ring(**changes):
    return replay.init(**{"groups": GROUPS, "group_size": G, "prompt_slots": P,
                          "response_slots": T, "max_uses": 4} | changes)  # fmt: skip


def draw(state, step, window=2, slots=6, groups=6, seed=0):
    slots_B, taken_B = replay.sample(
        state, jax.random.key(seed), jnp.int32(step), window, "uniform", slots, jnp.int32(groups)
    )
    return np.asarray(slots_B), np.asarray(taken_B)


def drawn_ids(state, *args, **kwargs):
    slots_B, taken_B = draw(state, *args, **kwargs)
    return np.asarray(state.rows.reward_B)[slots_B[taken_B]].astype(int).tolist()


def test_an_empty_ring_gives_nothing():
    assert drawn_ids(ring(), step=5) == []


def test_fresh_rows_are_not_replayed_in_their_own_step():
    state, _ = replay.add(ring(), make_rows(range(6), version=3))
    assert drawn_ids(state, step=3) == []
    assert sorted(drawn_ids(state, step=4)) == list(range(6))


def test_partial_ring_gives_all_it_has_once():
    state, _ = replay.add(ring(), make_rows(range(4), version=1))
    assert sorted(drawn_ids(state, step=2, slots=6, groups=6)) == [0, 1, 2, 3]


@pytest.mark.parametrize("adds", [1, 2, 3, 5, 9])
def test_full_and_wrapped_rings_hold_the_newest_rows(adds):
    state, step_rows, slots = ring(), 6, []
    for k in range(1, adds + 1):
        rows = make_rows(range(100 * k, 100 * k + step_rows), version=k)
        state, slots = replay.add(state, rows)
        np.testing.assert_array_equal(
            state.rows.reward_B[slots], np.arange(100 * k, 100 * k + step_rows)
        )
        np.testing.assert_array_equal(state.rows.tokens_BS[slots, 0], rows.tokens_BS[:, 0])
    written = [100 * k + i for k in range(1, adds + 1) for i in range(step_rows)]
    held = np.asarray(state.rows.reward_B)[np.asarray(state.rows.valid_B)].astype(int)
    assert sorted(held) == written[-GROUPS * G :]
    assert int(state.cursor) == adds * step_rows % (GROUPS * G)


def test_exactly_full_ring_can_be_drawn_whole():
    state, _ = replay.add(ring(), make_rows(range(GROUPS * G), version=1))
    assert sorted(drawn_ids(state, step=2, slots=GROUPS, groups=GROUPS)) == list(range(GROUPS * G))


def test_window_bounds_the_age():
    state = ring()
    for k in (1, 2, 3):
        state, _ = replay.add(state, make_rows([10 * k, 10 * k + 1], version=k))
    assert sorted(drawn_ids(state, step=4, window=2)) == [20, 21, 30, 31]
    assert sorted(drawn_ids(state, step=4, window=1)) == [30, 31]
    assert drawn_ids(state, step=9, window=2) == []


def test_groups_stay_whole_and_are_drawn_without_replacement():
    state, _ = replay.add(ring(), make_rows(range(GROUPS * G), version=1))
    for seed in range(20):
        ids = drawn_ids(state, step=2, slots=4, groups=3, seed=seed)
        assert len(ids) == len(set(ids)) == 3 * G
        assert all(ids[i + 1] == ids[i] + 1 and ids[i] % G == 0 for i in range(0, len(ids), G))


def test_draws_are_uniform_over_groups():
    state, _ = replay.add(ring(), make_rows(range(GROUPS * G), version=1))
    hits = np.zeros(GROUPS)
    for seed in range(400):
        for i in drawn_ids(state, step=2, slots=2, groups=2, seed=seed)[::G]:
            hits[i // G] += 1
    expected = 400 * 2 / GROUPS
    assert ((hits - expected) ** 2 / expected).sum() < 24.3  # chi-square, 7 degrees, p = .001


def test_ungraded_rows_and_empty_slots_are_not_drawn():
    rows = make_rows(range(6), version=1, valid=[True, False, False, False, True, True])
    state, _ = replay.add(ring(), rows)
    assert sorted(drawn_ids(state, step=2)) == [0, 4, 5]


def test_successes_are_drawn_uniformly_from_the_window_alone():
    state = ring()
    for k in (1, 2, 3):
        rewards = [10 * k, 0, 10 * k + 2, 0]
        state, _ = replay.add(state, make_rows(rewards, version=k, valid=[True, True, True, False]))
    draw = jax.jit(functools.partial(replay.draw_successes, window=2, count=300))
    slots, there = draw(state, jax.random.key(0), jnp.int32(3))
    drawn = np.asarray(state.rows.reward_B)[np.asarray(slots)]
    assert bool(there)
    found, hits = np.unique(drawn, return_counts=True)
    assert found.tolist() == [20, 22, 30, 32], "steps 2 and 3, valid successes"
    assert ((hits - 75) ** 2 / 75).sum() < 16.3  # chi-square, 3 degrees, p = .001


def test_without_a_success_none_is_there():
    state, _ = replay.add(ring(), make_rows([0, 0], version=1))
    _, there = replay.draw_successes(state, jax.random.key(0), jnp.int32(1), 5, 4)
    assert not bool(there)


def test_every_row_has_one_fate():
    state = ring(groups=3)
    for k in range(1, 6):
        state, slots = replay.add(state, make_rows(range(4 * k, 4 * k + 4), k, signal=k != 2))
        for use in range(k):
            state = replay.touch(state, slots, jnp.asarray([True, True, use == 0, False]))
    state = replay.clear(state)
    # uses of the rows of step k: k, k, 1, 0; step 2 had no signal; uses beyond 4 count as 4
    expected = {"zero": 4, 0: 4, 1: 4 + 2, 3: 2, 4: 4}
    fates = np.asarray(state.fates_U)
    assert fates[replay.ZERO_SIGNAL] == expected["zero"]
    assert [int(n) for n in fates[1:]] == [expected.get(u, 0) for u in range(5)]
    assert fates.sum() == 20
    assert drawn_ids(state, step=6, slots=3, groups=3) == []
    again = replay.clear(state)
    np.testing.assert_array_equal(again.fates_U, fates)


def test_more_rows_than_the_ring_holds_are_refused():
    with pytest.raises(ValueError, match="18 rows do not go into a ring of 16"):
        replay.add(ring(), make_rows(range(18), version=1))
    with pytest.raises(ValueError, match="groups of 2"):
        replay.add(ring(), make_rows(range(3), version=1))


def test_the_ring_is_scan_data():
    """Carried through a scan, with jit, it ends as it does step by step."""

    def body(state, k):
        rows = make_rows(range(6), version=0)
        rows = rows.replace(version_B=jnp.full(6, k), reward_B=rows.reward_B + 100 * k)
        state, slots = replay.add(state, rows)
        return replay.touch(state, slots, jnp.ones(6, bool)), slots

    scanned, _ = jax.jit(lambda s: jax.lax.scan(body, s, jnp.arange(5)))(ring())
    stepped = ring()
    for k in range(5):
        stepped, _ = body(stepped, jnp.int32(k))
    jax.tree.map(np.testing.assert_array_equal, scanned, stepped)


def test_eight_devices_give_what_one_gives():
    mesh = Mesh(np.array(jax.devices()), ("data",))
    rows_sharded = NamedSharding(mesh, PartitionSpec("data"))
    whole = NamedSharding(mesh, PartitionSpec())

    def place(state):
        rows = jax.device_put(state.rows, rows_sharded)
        rest = jax.device_put((state.cursor, state.fates_U), whole)
        return state.replace(rows=rows, cursor=rest[0], fates_U=rest[1])

    @jax.jit
    def step(state, rows, k):
        state, slots = replay.add(state, rows)
        old, taken = replay.sample(state, jax.random.key(k), k, 2, "uniform", 3, jnp.int32(3))
        state = replay.touch(replay.touch(state, slots, jnp.ones(8, bool)), old, taken)
        return state, replay.take(state, old), taken

    one, eight = ring(), place(ring())
    for k in range(1, 5):
        rows = make_rows(range(10 * k, 10 * k + 8), version=k)
        one, old_one, taken_one = step(one, rows, k)
        eight, old_eight, taken_eight = step(eight, jax.device_put(rows, rows_sharded), k)
        assert len(eight.rows.tokens_BS.sharding.device_set) == 8
        jax.tree.map(np.testing.assert_array_equal, (one, taken_one), (eight, taken_eight))
        jax.tree.map(np.testing.assert_array_equal, old_one, old_eight)


def rewarded(rewards, **options):
    """A ring of one step: groups of G rows that all have the group's reward."""
    rows = make_rows(range(len(rewards) * G), version=1, **options)
    reward_B = jnp.repeat(jnp.asarray(rewards, jnp.float32), G)
    return replay.add(ring(), rows.replace(reward_B=reward_B))[0]


@functools.partial(jax.jit, static_argnums=(1, 2))
def draw_by(state, sampler, groups, seed):
    key = jax.random.key(seed)
    return replay.sample(state, key, jnp.int32(2), 2, sampler, groups, jnp.int32(groups))


def drawn_groups(state, sampler, groups, seed):
    slots_B, taken_B = draw_by(state, sampler, groups, seed)
    return (np.asarray(slots_B)[np.asarray(taken_B)][::G] // G).tolist()


def test_highlights_are_drawn_first_and_ties_at_random():
    state = rewarded([0.0, 1.0, 0.0, 1.0, 0.5, 1.0])
    drawn = [drawn_groups(state, "highlights", 2, seed) for seed in range(30)]
    assert {i for pair in drawn for i in pair} == {1, 3, 5}
    assert set(drawn_groups(state, "highlights", 4, 0)) == {1, 3, 5, 4}
    assert len(drawn_groups(state, "highlights", 8, 0)) == 6, "nothing is duplicated"


def test_groups_without_a_signal_are_no_highlights():
    state = rewarded([1.0, 0.5, 1.0], signal=np.repeat([False, True, False], G))
    assert drawn_groups(state, "highlights", 1, 0) == [1]
    assert drawn_groups(state, "reward", 1, 0) == [1]


@pytest.mark.parametrize("sampler", ["max_advantage", "mean_advantage"])
def test_priorities_weigh_the_draw(sampler):
    """Of one group drawn, P = p^.6 / sum p^.6; p is the mean of the group's rows."""
    rows = make_rows(range(3 * G), version=1)
    size_B1 = jnp.repeat(jnp.asarray([0.0, 1.0, 8.0], jnp.float32), G)[:, None]
    sign_T1 = jnp.asarray([1.0, -1.0, 1.0, -1.0], jnp.float32)[None, :]
    state, _ = replay.add(ring(with_advantage=True), rows.replace(stored_adv_BT=size_B1 * sign_T1))
    hits = np.zeros(3)
    for seed in range(300):
        hits[drawn_groups(state, sampler, 1, seed)[0]] += 1
    share = 8**0.6 / (1 + 8**0.6)
    assert hits[0] == 0
    assert abs(hits[2] / 300 - share) < 4 * np.sqrt(share * (1 - share) / 300)
    assert drawn_groups(state, sampler, 3, 0)[-1] == 0, "priority 0 comes last"
