"""Quantities of the whole mini-batch: BAPO, M2PO, P3O, GePPO; by hand and by trial."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from remix_jax.rl import off_policy
from tests.rl import family_reference as family
from tests.rl import token_rows

NAMES = ("logp", "behav_logp", "adv", "mask")


def find(name, logp_BT, behav_logp_BT, adv_BT, mask_BT, target=0.0):
    """What a function of the whole mini-batch finds; every row is a replayed one."""
    columns = {
        "behav_logp_BT": behav_logp_BT,
        "adv_BT": adv_BT,
        "params": {"target": target, "bound": target},
    }
    columns["age_B"] = np.ones(len(mask_BT), int)
    return token_rows.call(getattr(off_policy, name), logp_BT, mask_BT, **columns)


bapo_bounds = functools.partial(find, "bapo_bounds")
m2po_threshold = functools.partial(find, "m2po_threshold")
effective_sample_size = functools.partial(find, "effective_sample_size")


def m2po(logp_BT, behav_logp_BT, adv_BT, mask_BT, threshold):
    columns = {"behav_logp_BT": behav_logp_BT, "adv_BT": adv_BT, "stats": threshold}
    return token_rows.call(off_policy.m2po, logp_BT, mask_BT, **columns)


def by_hand(log_ratio_and_adv):
    """logp, behav_logp, adv and mask of tokens over three rows, with garbage under the mask."""
    tokens = [*log_ratio_and_adv, *[(30.0, np.nan)] * 3]
    log_ratio, adv = np.array(tokens).T.reshape(2, 3, -1)
    mask_BT = np.isfinite(adv).astype(np.float64)
    return log_ratio - 2.0, np.full_like(log_ratio, -2.0), adv, mask_BT


# ratios beyond every bound: P = c_high, N = 0.6 + 0.7 while c_low <= 0.7
BAPO_TOKENS = [(np.log(ratio), adv) for ratio, adv in ((5.0, 1.0), (0.5, -1.0), (0.7, -1.0))]


@pytest.mark.parametrize(
    ("target", "low", "high"),
    [
        (0.4, 0.6, 1.2),  # 1.2 / 2.5 = 0.48: the search does not start
        (0.495, 0.6, 1.3),  # 1.25 / 2.55 = 0.490, 1.3 / 2.6 = 0.5
        (0.601, 0.6, 2.0),  # 1.95 / 3.25 = 0.6, 2 / 3.3 = 0.606
        (0.697, 0.6, 3.0),  # 2.95 / 4.25 = 0.694, 3 / 4.3 = 0.698
        (0.8, 0.9, 3.0),  # out of reach: first c_high, then c_low to its end
    ],
)
def test_bapo_bounds_by_hand(target, low, high, compiled, x64):
    search = compiled(functools.partial(bapo_bounds, target=target))
    found = search(*by_hand(BAPO_TOKENS))
    np.testing.assert_allclose(found, (low, high), rtol=1e-12)


def test_bapo_without_a_signal_stays_where_it_starts():
    rows = token_rows.without_garbage(token_rows.make_rows(dtype=np.float32))
    rows["adv"] = np.zeros_like(rows["adv"])
    found = bapo_bounds(*(rows[name] for name in NAMES), target=0.4)
    np.testing.assert_allclose(found, (0.6, 1.2), rtol=1e-6)


def test_bapo_per_micro_batch_would_be_another_algorithm(x64):
    """The batch that ends at (0.6, 1.3), split after its first row of two tokens."""
    for part, expected in ((slice(0, 1), (0.6, 1.2)), (slice(1, 3), (0.9, 3.0))):
        found = bapo_bounds(*(x_BT[part] for x_BT in by_hand(BAPO_TOKENS)), target=0.495)
        np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("log_ratios", "target", "threshold"),
    [
        # means of the squares 0.0156, 0.0625, 0.25 so far: 0.0156, 0.0391, 0.109
        ((0.125, 0.25, 0.5), 0.04, (0.0625 + 0.25) / 2),
        ((0.125, 0.25, 0.5), 0.11, np.inf),
        ((0.125, 0.25, 0.5), 0.005, 0.015625 / 2),
        ((0.125, 0.25, 0.25), 0.04, (0.015625 + 0.0625) / 2),  # equal ones go together
    ],
)
def test_m2po_threshold_by_hand(log_ratios, target, threshold, compiled, x64):
    """Signs alternate towards the gaining side; the other three tokens are nobody's concern."""
    signs = (1, -1, 1)
    tokens = [(s * x, s) for s, x in zip(signs, log_ratios, strict=True)]
    tokens += [(3.0, -1.0), (-3.0, 1.0), (0.0, 1.0)]
    arguments = by_hand(tokens)
    actual = compiled(functools.partial(m2po_threshold, target=target))(*arguments)
    assert actual == threshold
    loss_BT = np.asarray(m2po(*arguments, threshold=actual))
    kept = [x**2 <= threshold for x in log_ratios] + [True] * 3
    np.testing.assert_array_equal(loss_BT[arguments[3] == 1] != 0, kept)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("target", [0.04, 0.2])
def test_m2po_threshold_by_trial(seed, target, x64):
    rows = token_rows.make_rows(seed)
    expected = family.m2po_threshold(token_rows.without_garbage(rows), target)
    assert expected > 0
    actual = m2po_threshold(*(rows[name] for name in NAMES), target=target)
    log_ratio_BT = rows["logp"] - rows["behav_logp"]
    concerned_BT = (rows["mask"] == 1) & (log_ratio_BT * rows["adv"] > 0)
    squares = np.square(log_ratio_BT)[concerned_BT]
    assert expected < actual <= np.inf
    assert not np.any((squares > expected * (1 + 1e-12)) & (squares < actual))


def test_m2po_drops_nothing_of_rounding(x64):
    """Ratios of 1 but for rounding: another pass may round otherwise, and no token may go."""
    noise = 1e-7 * np.random.default_rng(0).normal(size=9)
    first = by_hand([(x, 1.0) for x in noise])
    threshold = m2po_threshold(*first, target=0.04)
    loss_BT = m2po(first[0] + 1e-6, *first[1:], threshold=threshold)
    assert np.all(np.asarray(loss_BT)[first[3] == 1] != 0)


def test_effective_sample_size(compiled, x64):
    rows = token_rows.make_rows()
    ess = compiled(effective_sample_size)(*(rows[name] for name in NAMES))
    expected = family.effective_sample_size(token_rows.without_garbage(rows))
    assert expected < 0.9
    np.testing.assert_allclose(ess, expected, rtol=1e-12)


def test_effective_sample_size_at_its_ends():
    ones_BT = jnp.ones((3, 4), jnp.float32)
    assert effective_sample_size(ones_BT, ones_BT, ones_BT, ones_BT) == 1
    assert effective_sample_size(ones_BT, ones_BT, ones_BT, 0 * ones_BT) == 1
    one_heavy_BT = ones_BT.at[1, 2].set(1e6)
    ess = effective_sample_size(one_heavy_BT, ones_BT, ones_BT, ones_BT)
    np.testing.assert_allclose(ess, 1 / 12, rtol=1e-6)


@pytest.mark.parametrize("name", ["bapo_bounds", "m2po_threshold", "effective_sample_size"])
def test_garbage_and_padding(name, x64):
    """What lies under the mask and beyond the rows changes nothing."""
    rows = token_rows.make_rows()
    expected = find(name, *(token_rows.without_garbage(rows)[n] for n in NAMES), target=0.4)
    dirty = {n: np.where(rows["mask"] == 1, rows[n], np.nan) for n in NAMES if n != "mask"}
    dirty["mask"] = rows["mask"]
    for other in (dirty, token_rows.padded(dirty, garbage=np.inf)):
        found = find(name, *(other[n] for n in NAMES), target=0.4)
        np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("batches", [1, 2, 3, 5])
def test_geppo_weights(batches):
    nu_M = off_policy.geppo_weights(3 * batches - 3)
    age_M = np.arange(len(nu_M))
    np.testing.assert_allclose(nu_M.sum(), 1.0, rtol=1e-12)
    np.testing.assert_allclose((nu_M * (age_M + 1)).sum(), batches, rtol=1e-12)
    np.testing.assert_allclose(off_policy.geppo_clip(0.2, nu_M), 0.2 / batches, rtol=1e-12)
    if batches == 2:
        np.testing.assert_allclose(nu_M, [0.4, 0.3, 0.2, 0.1], rtol=1e-12)


def test_geppo_clip_of_uniform_weights():
    for ages in (1, 3, 4):
        clip = off_policy.geppo_clip(0.2, np.full(ages, 1 / ages))
        np.testing.assert_allclose(clip, 2 * 0.2 / (ages + 1), rtol=1e-12)


def test_age_weight():
    age_B = np.array([0, 0, 3, 4, 1, 2])
    valid_B = np.array([True, True, True, True, True, False])

    def age_weight(valid_B):
        mask_BT = np.float32(valid_B)[:, None]
        return token_rows.call(off_policy.age_weight, mask_BT, mask_BT, age_B=age_B)

    weight_B = age_weight(valid_B)
    # nu: .4 .4 .1 0 .3, over their mean of 0.24
    expected_B = np.array([0.4, 0.4, 0.1, 0.0, 0.3, 0.0]) / 0.24
    np.testing.assert_allclose(weight_B, expected_B, rtol=1e-6)
    assert not np.any(age_weight(np.zeros(6, bool)))
