"""The family in the learner's step: whole mini-batches, rows of an expert, what rows must keep."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from remix_jax.data.problems import Problem
from remix_jax.learner import step
from remix_jax.rl import family, replay
from remix_jax.rollout.draws import Draw
from remix_jax.rollout.rollouts import expert_rows
from tests.learner.tiny import (
    P,
    T,
    advance,
    assert_learned_alike,
    fresh_rows,
    grouped,
    host,
    make_config,
    stage_of,
    start,
)


def config_of(name, **changes):
    """A small run of the method: replay, a narrow clip, one pass, no KL."""
    method = family.METHODS[name]
    advantage = "method" if method.own_advantage else method.advantage
    fields = {
        "objective__method": name,
        "objective__aggregation": method.aggregation or "token-mean",
        "objective__clip": 0.02,
        "replay__window": 3,
        "reincarnation_step": 0,
        "kl__coef": 0.0,
        "passes": 1,
        "mini_batch_size": 8,
        "micro_batch_size": 8,
    }
    if method.experts == "needed":
        fields["expert__bank"] = "bank"
    make = make_config if advantage == "gae" else grouped
    config = make(**fields | changes)
    config.objective.advantage = advantage or config.objective.advantage
    return config


def expert_of(config, number):
    """The expert's rows of the groups that `fresh_rows` makes for the step."""
    rng = np.random.default_rng([99, number])
    stage = stage_of(config, number)
    n = stage.fresh_groups
    problems = [Problem(problem=str(i), answers=(0,), id=str(i)) for i in range(n)]
    prompts = [rng.integers(0, 11, rng.integers(1, P + 1)).tolist() for _ in range(n)]
    traces = {
        (str(i), (0,)): (tuple(rng.integers(0, 11, rng.integers(2, T + 1)).tolist()), 1.0)
        for i in range(n)
    }
    draw = Draw(problems, prompts, [None] * n, 100 * number)
    return expert_rows(draw, traces, stage, config, pad_id=0)


def steps_of(name, steps=2, wider=(0, 0), **changes):
    """State before and after the last of some steps, and its metrics; `wider`: padding slots."""
    config = config_of(name, **changes)
    learner, state = start(config)
    if wider != (0, 0):
        groups = state.replay.capacity // config.group_size
        slots = (P + wider[0], T + wider[1])
        ring = replay.init(groups, config.group_size, *slots, max_uses=4)
        state = state.replace(replay=ring)
    before = metrics = None
    for number in range(1, steps + 1):
        rows = None
        if config.own_rows:
            rows = fresh_rows(config, state, number, wider)
            if config.expert_rows:
                keep = rows.valid_B.shape[0] // config.group_size
                rows = jax.tree.map(lambda x, n=keep: x[:n], rows)
                rows = rows.replace(group_B=100 * number + jnp.arange(keep))
        expert = expert_of(config, number) if config.expert_rows else None
        before = host(state)
        state, metrics = advance(learner, state, config, number, rows, expert)
        metrics.pop("shown")  # by the width of the rows, and an expert's have NaN
    return before, host(state), host(metrics)


@pytest.mark.parametrize("name", ["bapo", "m2po", "p3o"])
def test_micro_batches_and_padding_change_nothing(name):
    """Bounds, threshold and ESS are those of the mini-batch, not of each part of it."""
    _, whole, metrics = steps_of(name)
    _, parts, part_metrics = steps_of(name, wider=(3, 2), micro_batch_size=2)
    assert_learned_alike(whole.params, parts.params, atol=1e-4)
    assert metrics.pop("learn_use") != part_metrics.pop("learn_use"), "other buffers"
    chex.assert_trees_all_close(metrics, part_metrics, rtol=3e-3, atol=3e-4)


def test_rows_of_an_expert_are_trained_on_without_a_ratio():
    """LUFFY: NaN for the log-probs of nobody, finite everything else; the expert's rows count."""
    before, after, metrics = steps_of("luffy", steps=1, replay__share=0.0)
    rows = after.replay.rows
    experts = rows.expert_B & rows.valid_B
    assert experts.sum() == int(metrics["n_expert"]) == 4
    assert int(metrics["n_fresh"]) == 4
    written_BT = rows.behav_logp_BT[experts][np.asarray(rows.mask_BT)[experts] == 1]
    assert written_BT.size
    assert np.isnan(written_BT).all()
    assert all(np.isfinite(value).all() for value in metrics.values())
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after.params))
    assert np.array_equal(rows.expert_B.reshape(-1, 2)[:4], [[False, True]] * 4)
    group_B = rows.group_B.reshape(-1, 2)[:4]
    np.testing.assert_array_equal(group_B[:, 0], group_B[:, 1])
    assert (rows.used_B[experts] == 1).all()
    assert replay.clear(jax.tree.map(jnp.asarray, after.replay)).fates_U.sum() == 4
    assert not np.array_equal(
        before.params["embed"]["embedding"], after.params["embed"]["embedding"]
    )


def test_stored_advantages_are_those_of_the_collection():
    """ToPPO: R - V_k at the step that sampled the row, also after later steps."""
    config = config_of("toppo", objective__whiten=False)
    learner, state = start(config)
    state, _ = advance(learner, state, config, 1)
    first = host(state)
    rows = first.replay.rows
    new_B = rows.version_B == 1
    mask_BT = np.asarray(jax.tree.map(jnp.asarray, rows).mask_BT)[new_B] == 1
    reward_BT = np.repeat(rows.reward_B[new_B][:, None], T, axis=1)
    assert np.any(rows.stored_adv_BT[new_B][mask_BT] != reward_BT[mask_BT]), (
        "the critic has a value"
    )
    state, metrics = advance(learner, state, config, 2)
    later = host(state).replay.rows
    assert int(metrics["n_replayed"]) > 0
    np.testing.assert_array_equal(
        later.stored_adv_BT[later.version_B == 1], rows.stored_adv_BT[new_B]
    )
    assert np.any(later.stored_adv_BT[later.version_B == 2])


def test_mini_batches_of_whole_groups():
    config = config_of("agro", mini_batch_size=4, micro_batch_size=2, passes=3)
    learner, _ = start(config)
    stage, key = stage_of(config, 1), jax.random.key(0)
    index, _, _ = step._mini_batches(learner.static, stage, key, {})
    assert index.shape == (6, 4)
    index = np.asarray(index).reshape(6, 2, 2)
    np.testing.assert_array_equal(index[..., 1], index[..., 0] + 1)
    np.testing.assert_array_equal(np.sort(index.reshape(3, -1)), [range(8)] * 3)
