"""Medians over seeds with 95 % intervals: of numbers, and of curves."""

import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from remix_jax.run import report

RESAMPLES = 10_000
LEAST = 3  # with fewer values an interval is their range
COVERAGE = 0.95
Curve = tuple[Sequence[float], Sequence[float]]


class Interval(NamedTuple):
    """Median and interval over seeds; `used` of `of` seeds had a value."""

    median: float
    low: float
    high: float
    used: int
    of: int


class Band(NamedTuple):
    """Median and interval of curves, at every place x."""

    x: np.ndarray
    median: np.ndarray
    low: np.ndarray
    high: np.ndarray


def median(values: Sequence[float | None], missing: float | None = None) -> Interval | None:
    """The median over seeds and the 95 % interval of its percentile bootstrap; None without values.

    Seeds are resampled plainly, not within base models: a seed has its own base model or shares it
    with few, and an interval that held the base models fixed would leave out how much they differ.
    With fewer than 3 values the interval is their range. Infinity (a level never reached) is a
    value like any other; the result may be infinite, never NaN.

    Args:
      values: one a seed.
      missing: what a None counts as; by default a None is left out.
    """
    filled = [missing if value is None else value for value in values]
    numbers = np.array([value for value in filled if value is not None], float)
    if not numbers.size:
        return None
    middle, low, high = intervals(numbers[:, None])[:, 0].tolist()
    return Interval(middle, low, high, numbers.size, len(values))


def intervals(values: np.ndarray) -> np.ndarray:
    """Median, low and high of every column: [seeds, columns] -> [3, columns]."""
    ordered = np.sort(values, axis=0)
    count = len(ordered)
    middle = (ordered[(count - 1) // 2] + ordered[count // 2]) / 2
    if count < LEAST:
        return np.stack([middle, ordered[0], ordered[-1]])
    below, above = _middle_ranks(count)
    medians = (ordered[below] + ordered[above]) / 2
    # Order statistics: interpolating towards an infinite one would give NaN.
    tail = (1 - COVERAGE) / 2
    low, high = np.quantile(medians, [tail, 1 - tail], axis=0, method="inverted_cdf")
    return np.stack([middle, low, high])


@functools.cache
def _middle_ranks(count: int) -> tuple[np.ndarray, np.ndarray]:
    """The two middle ranks of every resample of `count` values.

    The median of a resample of sorted values is at the median of the resampled ranks, so that one
    sort serves all columns, and the result does not depend on the order of the seeds.
    """
    draws = np.random.default_rng(0).integers(count, size=(RESAMPLES, count))
    draws.sort(axis=1)
    return draws[:, (count - 1) // 2], draws[:, count // 2]


def band(curves: Sequence[Curve]) -> Band:
    """Median and interval over seeds wherever any seed has a point.

    Seeds with points elsewhere count by interpolation; the band covers the x that all seeds cover.

    Args:
      curves: (x ascending, y), one a seed.
    """
    places = sorted({*itertools.chain.from_iterable(xs for xs, _ in curves)})
    rows = [[report.interpolate(xs, ys, at) for xs, ys in curves] for at in places]
    shared = [(at, row) for at, row in zip(places, rows, strict=True) if None not in row]
    if not shared:
        return Band(*np.empty((4, 0)))
    values = np.array([row for _, row in shared], float).T
    return Band(np.array([at for at, _ in shared]), *intervals(values))
