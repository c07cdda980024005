"""Aggregations, their (sum, count) pairs, whitening."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from remix_jax.rl import masked
from tests import reference, vectors
from tests.rl import token_rows

MODES = reference.MODES
PER_TOKEN = MODES[:3]
"""The modes whose count depends on the mask; the fourth divides by the width of the array."""


def identity(x_BT):
    return x_BT


def test_every_mode_is_listed():
    assert set(masked.AGGREGATIONS) == set(MODES)


def test_by_hand(compiled):
    x_BT = jnp.array([[1.0, 2.0, 7.0], [4.0, 9.0, 9.0], [5.0, 5.0, 5.0]])
    mask_BT = jnp.array([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    by_hand = {
        "token-mean": 7 / 3,
        "seq-mean-token-sum": (3 + 4) / 2,
        "seq-mean-token-mean": (1.5 + 4) / 2,
        "seq-mean-token-sum-norm": 7 / 3,
    }
    for mode, expected in by_hand.items():
        actual = compiled(functools.partial(masked.aggregate, mode=mode))(x_BT, mask_BT)
        assert actual.dtype == jnp.float32
        np.testing.assert_allclose(actual, expected, rtol=1e-6, err_msg=mode)


def test_value_and_gradient_by_the_equations(compiled, x64):
    rows = token_rows.make_rows()
    x_BT, mask_BT = rows["value"], rows["mask"]
    loss, grad = token_rows.losses_and_gradients(identity, [x_BT], mask_BT, compiled)
    for i, mode in enumerate(MODES):
        np.testing.assert_allclose(loss[i], reference.aggregate(x_BT, mask_BT, mode), rtol=1e-12)
        weight_BT = reference.aggregation_weights(mask_BT, mode)
        np.testing.assert_allclose(grad[i], weight_BT, rtol=1e-12)
        assert np.all(grad[i][mask_BT == 0] == 0)


@pytest.mark.parametrize("case", vectors.losses("verl_misc"))
def test_golden_aggregation(case, compiled, x64):
    arrays, _ = vectors.losses("verl_misc")[case]
    x_BT, mask_BT = arrays["agg/in/loss_mat"], arrays["value/in/mask"]
    loss, _ = token_rows.losses_and_gradients(identity, [x_BT], mask_BT, compiled)
    np.testing.assert_allclose(loss, arrays["agg/local"], rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("garbage", [1e30, -1e30, np.inf, np.nan])
def test_garbage_influences_nothing(garbage, compiled):
    clean = token_rows.without_garbage(token_rows.make_rows(dtype=np.float32))
    dirty_BT = np.where(clean["mask"] == 1, clean["value"], np.float32(garbage))
    run = functools.partial(token_rows.losses_and_gradients, identity, compiled=compiled)
    expected_loss, expected_grad = run([clean["value"]], clean["mask"])
    loss, grad = run([dirty_BT], clean["mask"])
    np.testing.assert_array_equal(loss, expected_loss)
    np.testing.assert_array_equal(grad, expected_grad)
    assert np.all(grad[:, clean["mask"] == 0] == 0)


def test_nothing_to_count_is_zero(compiled):
    x_BT = np.full((3, 4), 5.0, np.float32)
    loss, grad = token_rows.losses_and_gradients(identity, [x_BT], np.zeros_like(x_BT), compiled)
    assert np.all(loss == 0)
    assert np.all(grad == 0)


@pytest.mark.parametrize("mode", MODES)
def test_count_is_that_of_the_pair(mode, compiled):
    rows = token_rows.make_rows(dtype=np.float32)
    pair = compiled(functools.partial(masked.sum_and_count, mode=mode))
    count = compiled(functools.partial(masked.count, mode=mode))(rows["mask"])
    assert count == pair(rows["value"], rows["mask"])[1]
    live = rows["mask"].sum(axis=1)
    expected = {"token-mean": live.sum(), "seq-mean-token-sum-norm": rows["mask"].shape[1]}
    assert count == expected.get(mode, (live > 0).sum())


@pytest.mark.parametrize("micro_batches", [2, 7])
@pytest.mark.parametrize("mode", MODES)
def test_pairs_of_micro_batches_add_up_to_the_batch(mode, micro_batches, x64):
    rows = token_rows.make_rows()
    x_BT, mask_BT = rows["value"], rows["mask"]
    pairs = [
        masked.sum_and_count(jnp.asarray(x), jnp.asarray(m), mode)
        for x, m in zip(
            np.array_split(x_BT, micro_batches), np.array_split(mask_BT, micro_batches), strict=True
        )
    ]
    total = sum(pair[0] for pair in pairs)
    count = sum(pair[1] for pair in pairs)
    if mode == "seq-mean-token-sum-norm":
        count = pairs[0][1]  # the width: a constant, not a sum
    whole = masked.aggregate(x_BT, mask_BT, mode)
    np.testing.assert_allclose(total / count, whole, rtol=1e-12)
    # What the pairs are for: the mean of the micro-batches' means is another number.
    mean_of_means = np.mean([masked.divide(*pair) for pair in pairs])
    assert abs(mean_of_means - whole) > 1e-3 * abs(whole)


@pytest.mark.parametrize("mode", MODES)
def test_gradient_of_a_micro_batch_under_the_whole_count(mode, x64):
    rows = token_rows.make_rows()
    x_BT, mask_BT = rows["value"], rows["mask"]
    count = masked.count(jnp.asarray(mask_BT), mode)

    def gradient(x_BT, mask_BT):
        return jax.grad(lambda x: masked.sum_and_count(x, mask_BT, mode)[0] / count)(x_BT)

    parts = [gradient(x_BT[i : i + 3], mask_BT[i : i + 3]) for i in (0, 3, 6)]
    weight_BT = reference.aggregation_weights(mask_BT, mode)
    np.testing.assert_allclose(np.concatenate(parts), weight_BT, rtol=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_padding_changes_nothing(mode, compiled, x64):
    rows = token_rows.make_rows()
    wide = token_rows.padded(rows)
    run = compiled(functools.partial(masked.sum_and_count, mode=mode))
    total, count = run(rows["value"], rows["mask"])
    wide_total, wide_count = run(wide["value"], wide["mask"])
    np.testing.assert_allclose(wide_total, total, rtol=1e-12)
    if mode in PER_TOKEN:
        assert wide_count == count
    else:  # the width is the count, so only rows may be added
        assert wide_count == count + 3


def test_unknown_mode_is_refused():
    x_BT = jnp.ones((2, 3))
    with pytest.raises(ValueError, match="token-median") as error:
        masked.aggregate(x_BT, x_BT, "token-median")
    assert all(mode in str(error.value) for mode in MODES)


def test_wrong_shapes_are_refused():
    with pytest.raises(AssertionError):
        masked.aggregate(jnp.ones((2, 3)), jnp.ones((3, 2)))
    with pytest.raises(AssertionError):
        masked.aggregate(jnp.ones(3), jnp.ones(3))


def test_divide():
    np.testing.assert_array_equal(
        masked.divide(jnp.array([3.0, 0.0, -4.0]), jnp.array([2.0, 0.0, 0.5])), [1.5, 0.0, -8.0]
    )


def test_mean_and_zero_masked():
    x_BT = jnp.array([[1.0, jnp.nan], [4.0, jnp.inf]])
    mask_BT = jnp.array([[1.0, 0.0], [1.0, 0.0]])
    assert masked.mean(x_BT, mask_BT) == 2.5
    np.testing.assert_array_equal(masked.zero_masked(x_BT, mask_BT), [[1.0, 0.0], [4.0, 0.0]])


# ---------------------------------------------------------------------------- whitening


def test_whiten_by_the_equation(compiled, x64):
    rows = token_rows.make_rows()
    actual = compiled(functools.partial(masked.whiten, eps=0.01))(rows["value"], rows["mask"])
    clean = token_rows.without_garbage(rows)
    expected = reference.whiten(clean["value"], clean["mask"], 0.01)
    np.testing.assert_allclose(actual, expected, rtol=1e-12)


def test_whiten_has_mean_0_and_unbiased_variance_1(compiled):
    rows = token_rows.make_rows(dtype=np.float32)
    x_BT = 3.0 * rows["value"] + 50.0  # far from 0: a one-pass variance would lose digits
    white_BT = np.asarray(compiled(masked.whiten)(x_BT, rows["mask"]))
    live = white_BT[rows["mask"] == 1]
    assert abs(live.mean()) < 1e-5
    assert abs(live.var(ddof=1) - 1) < 1e-4
    assert np.all(white_BT[rows["mask"] == 0] == 0)


def test_whiten_does_not_see_padding(x64):
    rows = token_rows.make_rows()
    wide = token_rows.padded(rows)
    white_BT = masked.whiten(rows["value"], rows["mask"])
    wide_BT = masked.whiten(wide["value"], wide["mask"])
    np.testing.assert_allclose(wide_BT[:-2, 1:-2], white_BT, rtol=1e-12)


@pytest.mark.parametrize("garbage", [1e30, np.inf, np.nan])
def test_whiten_does_not_see_garbage(garbage, compiled):
    clean = token_rows.without_garbage(token_rows.make_rows(dtype=np.float32))
    dirty_BT = np.where(clean["mask"] == 1, clean["value"], np.float32(garbage))
    whiten = compiled(masked.whiten)
    white_BT = whiten(clean["value"], clean["mask"])
    np.testing.assert_array_equal(whiten(dirty_BT, clean["mask"]), white_BT)


@pytest.mark.parametrize("tokens", [0, 1])
def test_whiten_without_a_variance_is_zero(tokens, compiled):
    mask_BT = np.zeros((3, 4), np.float32)
    mask_BT[1, :tokens] = 1
    white_BT = compiled(masked.whiten)(np.full((3, 4), 7.3, np.float32), mask_BT)
    np.testing.assert_array_equal(white_BT, np.zeros((3, 4)))
