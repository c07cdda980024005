"""GAE and the group advantages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from remix_jax.rl import advantages, masked
from tests import reference, vectors
from tests.rl import token_rows

ADV = vectors.losses("verl_adv")
GROUP_METHODS = {
    "grpo": (advantages.group_normalized, reference.group_normalized),
    "grpo_nostd": (advantages.mean_baseline, reference.mean_baseline),
    "rloo": (advantages.rloo, reference.rloo),
}
group_method = pytest.mark.parametrize("method", GROUP_METHODS)

# ---------------------------------------------------------------------------- GAE


def outcome_reward(reward_B, mask_BT):
    """The reward of a row on its last real token."""
    reward_BT = np.zeros_like(mask_BT)
    for b, mask_T in enumerate(mask_BT):
        if mask_T.any():
            reward_BT[b, np.flatnonzero(mask_T)[-1]] = reward_B[b]
    return reward_BT


def test_gae_by_hand(compiled):
    # gamma lam = 0.25; the third slot of the first row is a hole.
    reward_BT = jnp.array([[0.0, 1.0, 9.0, 2.0], [1.0, 9.0, 9.0, 9.0], [9.0, 9.0, 9.0, 9.0]])
    value_BT = jnp.array([[1.0, 2.0, 9.0, 3.0], [0.5, 9.0, 9.0, 9.0], [9.0, 9.0, 9.0, 9.0]])
    mask_BT = jnp.array([[1.0, 1.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    adv_BT, return_BT = compiled(advantages.gae)(reward_BT, value_BT, mask_BT, 0.5, 0.5)
    # deltas of row 0: 0 + .5 * 2 - 1 = 0;  1 + .5 * 3 - 2 = .5;  2 + 0 - 3 = -1
    expected_BT = [[0.0625, 0.25, 0.0, -1.0], [0.5, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]
    np.testing.assert_array_equal(adv_BT, expected_BT)
    np.testing.assert_array_equal(return_BT, [[1.0625, 2.25, 0, 2], [1, 0, 0, 0], [0, 0, 0, 0]])


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (0.99, 0.95), (0.9, 0.0), (0.0, 0.7)])
def test_gae_by_the_equation(gamma, lam, compiled, x64):
    rows = token_rows.make_rows()
    actual = compiled(advantages.gae)(rows["reward"], rows["value"], rows["mask"], gamma, lam)
    clean = token_rows.without_garbage(rows)
    expected = reference.gae(clean["reward"], clean["value"], clean["mask"], gamma, lam)
    for actual_BT, expected_BT in zip(actual, expected, strict=True):
        np.testing.assert_allclose(actual_BT, expected_BT, rtol=1e-12, atol=1e-12)
        assert np.all(np.asarray(actual_BT)[rows["mask"] == 0] == 0)


@pytest.mark.parametrize("case", ADV)
def test_gae_goldens(case, compiled, x64):
    arrays, settings = ADV[case]
    mask_BT = arrays["in/mask"]
    for i, (gamma, lam) in enumerate(settings["case"]["gae"]):
        adv_BT, return_BT = compiled(advantages.gae)(
            arrays["in/rewards_dense"], arrays["in/values"], mask_BT, gamma, lam
        )
        white_BT = compiled(masked.whiten)(adv_BT, mask_BT)
        for name, actual_BT in (
            ("adv_raw", adv_BT),
            ("returns", return_BT),
            ("adv_whitened", white_BT),
        ):
            np.testing.assert_allclose(
                np.asarray(actual_BT)[mask_BT == 1],
                arrays[f"gae{i}/{name}"][mask_BT == 1],
                rtol=1e-7,
                atol=1e-12,
                err_msg=f"gae{i} {name}",
            )


@pytest.mark.parametrize("case", ADV)
def test_gae_goldens_in_single_precision(case):
    arrays, settings = ADV[case]
    mask_BT = arrays["in/mask"].astype(np.float32)
    inputs = [arrays[name].astype(np.float32) for name in ("in/rewards_dense", "in/values")]
    for i, (gamma, lam) in enumerate(settings["case"]["gae"]):
        adv_BT, return_BT = jax.jit(advantages.gae)(*inputs, mask_BT, gamma, lam)
        assert adv_BT.dtype == return_BT.dtype == jnp.float32
        expected_BT = arrays[f"gae{i}/adv_raw"]
        actual = np.asarray(adv_BT)[mask_BT == 1]
        np.testing.assert_allclose(actual, expected_BT[mask_BT == 1], rtol=1e-5, atol=1e-5)


def test_gae_of_remix_is_reward_minus_value(compiled, x64):
    rows = token_rows.without_garbage(token_rows.make_rows())
    reward_B = np.array([1.0, 0.0, 1.0, 0.0, 1.0, -1.0, 0.25])
    reward_BT = outcome_reward(reward_B, rows["mask"])
    adv_BT, return_BT = compiled(advantages.gae)(reward_BT, rows["value"], rows["mask"], 1.0, 1.0)
    np.testing.assert_allclose(adv_BT, (reward_B[:, None] - rows["value"]) * rows["mask"])
    np.testing.assert_allclose(return_BT, reward_B[:, None] * rows["mask"], atol=1e-12)


def test_gae_does_not_see_padding_holes_or_neighbours(x64):
    rows = token_rows.make_rows()
    wide = token_rows.padded(rows)
    narrow = advantages.gae(rows["reward"], rows["value"], rows["mask"], 0.9, 0.8)
    padded = advantages.gae(wide["reward"], wide["value"], wide["mask"], 0.9, 0.8)
    for narrow_BT, padded_BT in zip(narrow, padded, strict=True):
        np.testing.assert_array_equal(padded_BT[:-2, 1:-2], narrow_BT)
    b = 2  # the row with a prefix, a hole and padding: alone, with its real tokens side by side
    slots = np.flatnonzero(rows["mask"][b])
    alone = advantages.gae(
        rows["reward"][b : b + 1, slots],
        rows["value"][b : b + 1, slots],
        np.ones((1, len(slots))),
        0.9,
        0.8,
    )
    for alone_1T, narrow_BT in zip(alone, narrow, strict=True):
        np.testing.assert_allclose(alone_1T[0], narrow_BT[b, slots], rtol=1e-14)


def test_no_gradient_through_gae(compiled):
    rows = token_rows.make_rows(dtype=np.float32)

    def total(reward_BT, value_BT):
        adv_BT, return_BT = advantages.gae(reward_BT, value_BT, rows["mask"], 0.9, 0.8)
        return (adv_BT + 2 * return_BT).sum()

    for grad_BT in compiled(jax.grad(total, argnums=(0, 1)))(rows["reward"], rows["value"]):
        assert np.all(grad_BT == 0)


# ---------------------------------------------------------------------------- groups

REWARD_B = np.array([1.0, 0.3, 0.0, 0.1, 1.0, 0.1, -2.5, 0.1, 0.0, 0.7, 1.0])
GROUP_B = np.array([7, 0, 7, 3, 7, 3, 0, 3, 7, 5, 0])
"""Shuffled groups of 4, 3, 3 (equal rewards) and 1 rows."""


@group_method
def test_group_advantage_by_the_equation(method, compiled, x64):
    function, equation = GROUP_METHODS[method]
    actual_B = compiled(function)(REWARD_B, GROUP_B)
    np.testing.assert_allclose(actual_B, equation(REWARD_B, GROUP_B), rtol=1e-12, atol=1e-15)


def test_group_advantages_by_hand(compiled):
    reward_B = jnp.array([1.0, 0.0, 0.0, 0.0])
    group_B = jnp.zeros(4, int)
    np.testing.assert_allclose(
        compiled(advantages.group_normalized)(reward_B, group_B), [1.5, -0.5, -0.5, -0.5], rtol=1e-5
    )
    np.testing.assert_allclose(
        compiled(advantages.mean_baseline)(reward_B, group_B), [0.75, -0.25, -0.25, -0.25]
    )
    np.testing.assert_allclose(
        compiled(advantages.rloo)(reward_B, group_B), [1.0, -1 / 3, -1 / 3, -1 / 3], rtol=1e-6
    )


@group_method
@pytest.mark.parametrize("case", ADV)
def test_group_goldens(case, method, compiled, x64):
    arrays, _ = ADV[case]
    adv_B = compiled(GROUP_METHODS[method][0])(arrays["in/score"], arrays["in/group"])
    # Groups of equal rewards: rounding noise up to 1e-9 in the golden, exactly 0 here.
    np.testing.assert_allclose(
        np.asarray(adv_B)[:, None] * arrays["in/mask"],
        arrays[f"{method}/adv"],
        rtol=1e-7,
        atol=2e-9,
    )


@group_method
@pytest.mark.parametrize("case", ADV)
def test_group_goldens_in_single_precision(case, method):
    arrays, _ = ADV[case]
    score_B = arrays["in/score"].astype(np.float32)
    adv_B = jax.jit(GROUP_METHODS[method][0])(score_B, arrays["in/group"])
    assert adv_B.dtype == jnp.float32
    expected_BT = arrays[f"{method}/adv"]
    actual_BT = np.asarray(adv_B)[:, None] * arrays["in/mask"]
    np.testing.assert_allclose(actual_BT, expected_BT, rtol=2e-5, atol=1e-6)


@group_method
def test_equal_rewards_are_exactly_zero(method, compiled):
    function = compiled(GROUP_METHODS[method][0])
    sizes = (2, 3, 5, 6, 7, 8)
    group_B = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    for scale in (1.0, 0.1, 1 / 3, -0.7, 1e-8, 12345.678, 0.0):
        # Another reward in each group: the equality is within a group, not over the batch.
        reward_B = (scale * (1 + 0.1 * group_B)).astype(np.float32)
        np.testing.assert_array_equal(function(reward_B, group_B), np.zeros(len(group_B)))


@group_method
def test_a_row_alone_keeps_its_reward(method, compiled):
    reward_B = np.array([0.0, 1.0, -0.7], np.float32)
    adv_B = compiled(GROUP_METHODS[method][0])(reward_B, np.array([2, 0, 1]))
    np.testing.assert_allclose(adv_B, reward_B, rtol=2e-6)


@group_method
def test_permuting_rows_permutes_advantages(method, compiled, x64):
    function = compiled(GROUP_METHODS[method][0])
    adv_B = np.asarray(function(REWARD_B, GROUP_B))
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(REWARD_B))
        actual_B = function(REWARD_B[order], GROUP_B[order])
        np.testing.assert_allclose(actual_B, adv_B[order], rtol=1e-12, atol=1e-15)


@group_method
def test_only_the_partition_matters(method, x64):
    function, _ = GROUP_METHODS[method]
    names = {7: -1, 0: 10**6, 3: 0, 5: 8}
    renamed_B = np.array([names[group] for group in GROUP_B])
    np.testing.assert_array_equal(function(REWARD_B, renamed_B), function(REWARD_B, GROUP_B))


@group_method
def test_a_shift_of_a_group_changes_nothing(method, x64):
    function, _ = GROUP_METHODS[method]
    together_B = GROUP_B != 5  # the row alone has no baseline to absorb the shift
    shifted_B = REWARD_B + 100.0 * (GROUP_B + 1)
    np.testing.assert_allclose(
        function(shifted_B, GROUP_B)[together_B],
        function(REWARD_B, GROUP_B)[together_B],
        rtol=1e-9,
        atol=1e-12,
    )


def test_rloo_is_the_scaled_mean_baseline(x64):
    size_B = np.array([np.sum(group == GROUP_B) for group in GROUP_B])
    expected_B = advantages.mean_baseline(REWARD_B, GROUP_B) * size_B / np.maximum(size_B - 1, 1)
    np.testing.assert_allclose(advantages.rloo(REWARD_B, GROUP_B), expected_B, rtol=1e-14)


def test_eps_is_added_to_the_standard_deviation(x64):
    adv_B = advantages.group_normalized(REWARD_B, GROUP_B, eps=0.5)
    np.testing.assert_allclose(adv_B, reference.group_normalized(REWARD_B, GROUP_B, 0.5))
    # By position, as callers from outside pass it.
    np.testing.assert_array_equal(adv_B, advantages.group_normalized(REWARD_B, GROUP_B, 0.5))


@group_method
@pytest.mark.parametrize("garbage", [1e30, np.nan, np.inf])
def test_rows_that_do_not_count(method, garbage, compiled, x64):
    function = compiled(lambda r, g, m: GROUP_METHODS[method][0](r, g, mask_B=m))
    mask_B = np.array([1, 0, 1, 1, 1, 0, 1, 0, 0, 1, 1], np.float64)
    live = mask_B == 1
    adv_B = np.asarray(function(np.where(live, REWARD_B, garbage), GROUP_B, mask_B))
    expected = GROUP_METHODS[method][1](REWARD_B[live], GROUP_B[live])
    np.testing.assert_allclose(adv_B[live], expected, rtol=1e-12, atol=1e-15)
    assert np.all(adv_B[~live] == 0)


@group_method
def test_whole_groups_that_do_not_count(method, compiled):
    function = compiled(lambda r, g, m: GROUP_METHODS[method][0](r, g, mask_B=m))
    reward_B = REWARD_B.astype(np.float32)
    mask_B = (GROUP_B != 7).astype(np.float32)
    adv_B = np.asarray(function(reward_B, GROUP_B, mask_B))
    assert np.all(np.isfinite(adv_B))
    assert np.all(adv_B[GROUP_B == 7] == 0)
    expected_B = np.asarray(function(reward_B, GROUP_B, np.ones_like(mask_B)))
    np.testing.assert_array_equal(adv_B[GROUP_B != 7], expected_B[GROUP_B != 7])


@group_method
def test_wrong_shapes_are_refused(method):
    with pytest.raises(AssertionError):
        GROUP_METHODS[method][0](jnp.ones(3), jnp.zeros(4, int))
    with pytest.raises(AssertionError):
        GROUP_METHODS[method][0](jnp.ones((3, 1)), jnp.zeros((3, 1), int))
