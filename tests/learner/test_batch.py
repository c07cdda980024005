"""What is known of rows before the first update: signal, advantages under holes, the gaps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from remix_jax.learner import batch as batches
from remix_jax.learner.state import Learner, static_of
from remix_jax.rl import replay
from remix_jax.types import batch_of, empty_rows, kept_rows
from tests.learner.tiny import P, T, fresh_rows, grouped, make_config, stage_of, start


def config_of(**changes):
    return grouped(kl__coef=0.0, replay__share=0.0, **changes)


@pytest.mark.parametrize("advantage", ["group_normalized", "rloo", "mean_baseline"])
def test_signal_is_of_the_group(advantage):
    """With graded rewards a row may lie at the mean of its group: its group has a signal."""
    config = config_of()
    config.group_size, config.objective.advantage = 4, advantage
    learner, state = start(config)
    rows = fresh_rows(config, state, 1)
    rewards = jnp.asarray([0, 0.5, 1, 0.5, 0.3, 0.3, 0.3, 0.3])
    rows = rows.replace(reward_B=rewards)
    kept = batches.complete(learner, stage_of(config, 1), state, rows, None, {})
    assert kept.signal_B.tolist() == [True] * 4 + [False] * 4
    assert kept.version_B.tolist() == [1] * 8


def some_batch(rng, n=5, **known):
    rows = empty_rows(n, P, T).replace(
        response_len_B=jnp.asarray([T, T, 3, 1, T], jnp.int32),
        loss_mask_BT=jnp.asarray(rng.integers(0, 2, (n, T)), jnp.float32),
        reward_B=jnp.asarray(rng.normal(size=n), jnp.float32),
        behav_logp_BT=jnp.asarray(-rng.random((n, T)), jnp.float32),
        valid_B=jnp.asarray([True, True, True, True, False]),
    )
    return batch_of(kept_rows(rows), **known)


def test_advantages_skip_the_tokens_that_the_policy_did_not_write():
    """GAE over the counted tokens alone, the reward on the last of them; NumPy, token by token."""
    rng = np.random.default_rng(0)
    value_BT = rng.normal(size=(5, T)).astype(np.float32)
    batch = some_batch(rng, value_BT=jnp.asarray(value_BT))
    static = static_of(make_config(objective__gamma=0.9, objective__lam=0.8))
    adv_BT, return_BT = batches._critic_advantage(static, batch)
    mask_BT = np.asarray(batch.mask_BT)
    assert 0 < mask_BT[0].sum() < T, "a hole"
    assert not mask_BT[4].any()
    for b in range(5):
        counted = np.flatnonzero(mask_BT[b])
        following, running, expected = 0.0, 0.0, np.zeros(T)
        for t in counted[::-1]:
            reward = float(batch.reward_B[b]) if t == counted[-1] else 0.0
            running = reward + 0.9 * following - value_BT[b, t] + 0.9 * 0.8 * running
            following, expected[t] = value_BT[b, t], running
        np.testing.assert_allclose(adv_BT[b], expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(
            np.asarray(return_BT)[b, counted], expected[counted] + value_BT[b, counted], rtol=1e-5
        )


def test_a_masked_row_has_a_part_in_the_statistics_of_its_group_alone():
    """objective.mask_truncated: the mean of (1, 0, 0) with the cut row's, which takes no pass."""
    config = config_of(objective__mask_truncated=True)
    config.objective.advantage = "mean_baseline"
    learner = Learner(static_of(config), *[None] * 4, 0)
    rows = empty_rows(4, P, T).replace(
        response_len_B=jnp.full(4, T), valid_B=jnp.arange(4) < 3, group_B=jnp.zeros(4, jnp.int32),
        reward_B=jnp.asarray([1.0, 0, 0, 9]), loss_mask_BT=jnp.ones((4, T)).at[1].set(0.0),
    )  # fmt: skip
    ring = replay.init(2, 2, P, T, max_uses=1)
    _, batch, _ = batches.with_advantages(learner, ring, batch_of(kept_rows(rows)), {}, 1.0)
    np.testing.assert_allclose(batch.adv_BT[:, 0], [2 / 3, 0, -1 / 3, 0], rtol=1e-6)
    assert batch.valid_B.tolist() == [True, False, True, False]


def test_kl_in_the_reward_of_a_group_is_summed_over_the_response():
    """verl's apply_kl_penalty and its sum of token rewards; an expert's row is charged nothing."""
    config = config_of()
    config.kl.coef, config.kl.in_reward, config.kl.estimator = 0.1, True, "k1"
    config.objective.advantage = "mean_baseline"
    learner = Learner(static_of(config), *[None] * 4, 0)
    rng = np.random.default_rng(2)
    logps = {f"{name}_logp_BT": -rng.random((5, T)) for name in ("prox", "base", "prev")}
    logps["prox_logp_BT"][0] = np.nan
    known = {name: jnp.asarray(x, jnp.float32) for name, x in logps.items()}
    batch = some_batch(rng, expert_B=jnp.asarray([True] + [False] * 4), **known)
    kl_BT = logps["prox_logp_BT"] - 0.7 * logps["base_logp_BT"] - 0.3 * logps["prev_logp_BT"]
    earned_B = batch.reward_B - 0.1 * np.where(batch.own_BT == 1, kl_BT, 0).sum(axis=1)
    ring = replay.init(5, 2, P, T, max_uses=1)
    _, found, _ = batches.with_advantages(learner, ring, batch, {}, 0.7)
    expected_B1 = np.asarray(earned_B - earned_B[:4].mean())[:, None]
    mask_BT = np.asarray(batch.mask_BT)
    np.testing.assert_allclose(found.adv_BT, expected_B1 * mask_BT, rtol=1e-4, atol=1e-6)


def test_masks_are_valid_rows_in_length_where_the_loss_counts():
    batch = some_batch(np.random.default_rng(1), expert_B=jnp.asarray([True] + [False] * 4))
    mask_BT, counted_BT = np.asarray(batch.mask_BT), np.asarray(batch.loss_mask_BT)
    for b, length in enumerate([T, T, 3, 1, 0]):
        np.testing.assert_array_equal(mask_BT[b], counted_BT[b] * (np.arange(T) < length))
    assert not batch.own_BT[0].any()
    np.testing.assert_array_equal(batch.own_BT[1:], mask_BT[1:])


def test_gaps_of_the_sampler():
    """Exact log-probs have no gap; of shifted ones mean, maximum and error are known."""
    config = config_of()
    learner, state = start(config)
    rows = fresh_rows(config, state, 1)
    gap = jax.jit(lambda rows: batches.sampler_gap(learner, state.params, rows))
    exact = gap(rows)
    assert abs(exact["sampler_gap"]) < 1e-6
    assert exact["sampler_gap_max"] < 1e-5
    assert exact["token_mult_prob_error"] == pytest.approx(1, abs=1e-6)
    shifted_BT = rows.behav_logp_BT + jnp.where(jnp.arange(T) == 0, 0.3, -0.1)[None]
    found = gap(rows.replace(behav_logp_BT=shifted_BT))
    n = config.micro_batch_size
    tokens = np.asarray(rows.mask_BT)[:n].sum()
    mean = (0.3 * n - 0.1 * (tokens - n)) / tokens
    error = (np.exp(0.3) * n + np.exp(0.1) * (tokens - n)) / tokens
    assert found["sampler_gap"] == pytest.approx(mean, abs=1e-5)
    assert found["sampler_gap_max"] == pytest.approx(0.3, abs=1e-5)
    assert found["token_mult_prob_error"] == pytest.approx(error, abs=1e-5)
    assert exact["truncation_gap"] == pytest.approx(-0.01, abs=1e-6)
