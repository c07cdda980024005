"""Medians and intervals over seeds, against SciPy and by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from experiments.report import intervals


def test_interval_is_that_of_scipy():
    for count in (3, 5, 8, 20):
        values = np.random.default_rng(count).normal(size=count)
        ours = intervals.median(values)
        theirs = stats.bootstrap(
            (values,), np.median, n_resamples=10_000, method="percentile", rng=1
        ).confidence_interval
        assert ours.median == pytest.approx(np.median(values))
        spread = np.ptp(values)
        assert ours.low == pytest.approx(theirs.low, abs=0.06 * spread)
        assert ours.high == pytest.approx(theirs.high, abs=0.06 * spread)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([2.5] * 5, (2.5, 2.5, 2.5, 5, 5)),
        ([5.0, 1.0, 4.0, 2.0, 9.0], (4, 1, 9, 5, 5)),
        ([9.0, 5.0, 4.0, 2.0, 1.0], (4, 1, 9, 5, 5)),  # in any order
        ([1.0, 4.0], (2.5, 1, 4, 2, 2)),  # few values: their range
        ([3.0], (3, 3, 3, 1, 1)),
        ([1.0, None, math.nan, 3.0], (2, 1, 3, 2, 4)),
        ([1.0, math.inf, 3.0], (3, 1, math.inf, 3, 3)),
        ([math.inf] * 3, (math.inf, math.inf, math.inf, 3, 3)),
        ([], None),
        ([None, math.nan], None),
    ],
)
def test_medians_by_hand(values, expected):
    assert intervals.median(values) == expected


def test_one_infinity_of_nine_does_not_reach_the_interval():
    found = intervals.median([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, math.inf])
    assert found.median == 5
    assert math.isfinite(found.high)  # 5 of 9 draws of the one infinity: far beyond 2.5 %


def test_band_interpolates_and_ends_with_the_shortest_seed():
    curves = [
        ([0, 100, 200], [0.0, 0.2, 0.4]),
        ([0, 50, 100, 150], [0.0, 0.3, 0.6, 0.9]),
        ([0, 200], [0.3, 0.3]),
    ]
    band = intervals.band(curves)
    assert list(band.index) == [0, 50, 100, 150]
    assert list(band["median"]) == pytest.approx([0.0, 0.3, 0.3, 0.3])
    assert list(band["low"]) == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert list(band["high"]) == pytest.approx([0.3, 0.3, 0.6, 0.9])
    assert intervals.band([([0, 1], [0, 1]), ([2, 3], [0, 1])]).empty
