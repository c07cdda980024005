"""Estimators against exhaustive enumeration and published values."""

import itertools
import math

import numpy as np
import pytest

from remix_jax.evaluation import results


@pytest.mark.parametrize(("n", "c"), [(1, 0), (1, 1), (5, 0), (5, 2), (5, 5), (8, 3)])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(n, c):
    right = [True] * c + [False] * (n - c)
    for k in range(1, n + 1):
        subsets = list(itertools.combinations(right, k))
        expected = sum(map(any, subsets)) / len(subsets)
        assert results.pass_at_k(n, c, k) == pytest.approx(expected, abs=1e-12)


def test_pass_at_k_stays_exact_where_binomials_overflow():
    n, c, k = 1024, 3, 512
    expected = 1 - math.comb(n - c, k) / math.comb(n, k)
    assert results.pass_at_k(n, c, k) == pytest.approx(expected, rel=1e-12)
    for bad in ((4, 5, 1), (4, 1, 5), (4, 1, 0)):
        with pytest.raises(ValueError, match="not defined"):
            results.pass_at_k(*bad)


def test_majority_takes_the_commonest_then_the_first():
    right = {"a": False, "b": True, None: False}

    def majority(votes, k=None):
        verdicts = [right[vote] for vote in votes]
        return results.majority_at_k(votes, verdicts, k or len(votes))

    assert majority(["a", "b", "b"]) == 1
    assert majority(["a", "b", "b", "a"]) == 0
    assert majority(["b", "a", "a", "b"]) == 1
    assert majority([None, None, "b"]) == 1, "no answer is no vote"
    assert majority([None, None]) == 0
    with pytest.raises(ValueError, match="not defined"):
        majority(["a"], 2)


def test_majority_of_fewer_is_the_mean_over_ordered_subsets():
    votes, right = ["a", "b", "b", "c", "a"], [True, False, False, False, True]
    whole = [
        results.majority_at_k([votes[i] for i in order], [right[i] for i in order], 3)
        for order in itertools.permutations(range(5), 3)
    ]
    expected = np.mean(whole)
    found = results.majority_at_k(votes, right, 3)
    assert found == pytest.approx(expected, abs=4 * 0.5 / math.sqrt(results.MAJORITY_DRAWS))
    assert found == results.majority_at_k(votes, right, 3)
    assert results.majority_at_k(votes, right, 1) == pytest.approx(0.4, abs=0.07)


def test_classes_join_what_is_the_same():
    same = lambda a, b: a.strip("0") == b.strip("0")  # noqa: E731
    found = results.classes(["5", None, "05", "7", "", "70", "5"], same)
    assert found == ["5", None, "5", "7", None, "7", "5"]


def wilson(correct, total):
    """Of so many right problems, one sample each."""
    found, method = results.interval((np.arange(total) < correct).astype(float)[:, None])
    assert method == "Wilson"
    return found


@pytest.mark.parametrize(("correct", "total"), [(0, 30), (15, 30), (410, 500), (83, 83)])
def test_wilson_holds_the_shares_that_a_score_test_accepts(correct, total):
    share = np.linspace(0, 1, 100_001)
    error = 1.959963984540054 * np.sqrt(share * (1 - share) / total)
    accepted = share[np.abs(correct / total - share) <= error + 1e-12]
    expected = (accepted[0], accepted[-1])
    assert wilson(correct, total) == pytest.approx(expected, abs=1.1e-5)


def test_bootstrap_has_the_width_of_the_normal_approximation():
    correct_PN = (np.random.default_rng(1).random((400, 4)) < 0.3).astype(float)
    (low, high), method = results.interval(correct_PN)
    error = correct_PN.mean(axis=1).std() / math.sqrt(400)
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.05)
    assert (high + low) / 2 == pytest.approx(correct_PN.mean(), abs=0.2 * error)
    assert method == "bootstrap over problems"


def test_wilson_stands_in_where_a_bootstrap_says_nothing():
    one = (np.arange(400) % 3 == 0).astype(float)[:, None]
    assert results.interval(one) == (wilson(134, 400), "Wilson")
    assert results.interval(np.zeros((30, 32))) == (wilson(0, 30), "Wilson")
    assert results.interval(np.ones((30, 32))) == (wilson(30, 30), "Wilson")


def test_the_interval_of_the_mean_is_that_of_simulated_means():
    rng, sizes, shares = np.random.default_rng(0), (400, 900, 2500), (0.3, 0.6, 0.1)
    means = np.mean(
        [rng.binomial(n, p, 200_000) / n for n, p in zip(sizes, shares, strict=True)], axis=0
    )
    expected = np.quantile(means, [0.025, 0.975])
    each = [wilson(round(n * p), n) for n, p in zip(sizes, shares, strict=True)]
    low, high = results.mean_interval(shares, each)
    assert (low, high) == pytest.approx(tuple(expected), abs=1e-3)
    assert results.mean_interval([0.3], [(0.2, 0.5)]) == pytest.approx((0.2, 0.5))
