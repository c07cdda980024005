"""Medians and intervals over seeds."""

import math

import numpy as np
import pytest
from scipy import stats

from remix_jax.reporting import bootstrap


def test_interval_is_that_of_scipy():
    for count in (3, 5, 8, 20):
        values = np.random.default_rng(count).normal(size=count)
        ours = bootstrap.median(list(values))
        theirs = stats.bootstrap(
            (values,), np.median, n_resamples=10_000, method="percentile", rng=1
        ).confidence_interval
        assert ours.median == pytest.approx(np.median(values))
        spread = np.ptp(values)
        assert ours.low == pytest.approx(theirs.low, abs=0.06 * spread)
        assert ours.high == pytest.approx(theirs.high, abs=0.06 * spread)


def test_constants_have_no_spread_and_order_does_not_matter():
    assert bootstrap.median([2.5] * 5) == (2.5, 2.5, 2.5, 5, 5)
    values = [5.0, 1.0, 4.0, 2.0, 9.0]
    assert bootstrap.median(values) == bootstrap.median(sorted(values))
    assert bootstrap.median(values) == (4, 1, 9, 5, 5)


def test_few_values_show_their_range():
    assert bootstrap.median([1.0, 4.0]) == (2.5, 1, 4, 2, 2)
    assert bootstrap.median([3.0]) == (3, 3, 3, 1, 1)
    assert bootstrap.median([]) is None
    assert bootstrap.median([None, None]) is None


def test_missing_and_infinite_values():
    assert bootstrap.median([1.0, None, 3.0]) == (2, 1, 3, 2, 3)
    assert bootstrap.median([1.0, None, 3.0], missing=math.inf) == (3, 1, math.inf, 3, 3)
    assert bootstrap.median([None] * 3, missing=math.inf) == (math.inf,) * 3 + (3, 3)
    mostly = bootstrap.median([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, math.inf])
    assert mostly.median == 5
    assert math.isfinite(mostly.high)  # 5 of 9 draws of the one infinity: far beyond 2.5 %


def test_band_interpolates_and_ends_with_the_shortest_seed():
    curves = [
        ([0, 100, 200], [0.0, 0.2, 0.4]),
        ([0, 50, 100, 150], [0.0, 0.3, 0.6, 0.9]),
        ([0, 200], [0.3, 0.3]),
    ]
    band = bootstrap.band(curves)
    assert list(band.x) == [0, 50, 100, 150]
    assert list(band.median) == pytest.approx([0.0, 0.3, 0.3, 0.3])
    assert list(band.low) == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert list(band.high) == pytest.approx([0.3, 0.3, 0.6, 0.9])
    assert len(bootstrap.band([([0, 1], [0, 1]), ([2, 3], [0, 1])]).x) == 0
