"""Medians over seeds with 95 % bootstrap intervals: of numbers, and of curves."""

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

RESAMPLES = 10_000
LEAST = 3  # with fewer values an interval is their range
COVERAGE = 0.95
INFINITE = "∞"  # a ratio where only the method reached the level
SPREAD = "median over seeds [95 % bootstrap interval]"


class Interval(NamedTuple):
    """Median and interval over seeds; `used` of `of` seeds had a value."""

    median: float
    low: float
    high: float
    used: int
    of: int


def median(values: Iterable[float | None]) -> Interval | None:
    """The median over seeds and the 95 % interval of its percentile bootstrap; None without values.

    Seeds are resampled plainly, not within base models: a seed has its own base model or shares it
    with few, and an interval that held the base models fixed would leave out how much they differ.
    With fewer than 3 values the interval is their range.

    Args:
      values: one a seed. None and NaN are left out; infinity (a level never reached) is a value
        like any other, and the result may be infinite, never NaN.
    """
    everything = np.array(list(values), float)
    numbers = everything[~np.isnan(everything)]
    if not numbers.size:
        return None
    middle, low, high = intervals(numbers[:, None])[:, 0].tolist()
    return Interval(middle, low, high, numbers.size, everything.size)


def cell(
    interval: Interval | None,
    show: Callable[[float], str],
    unit: str = "",
    infinite: str = "never",
) -> str:
    """ "median [low–high] unit", or the one value where there is no spread to show."""
    if interval is None:
        return "-"
    middle, low, high = (
        show(value) if math.isfinite(value) else infinite for value in interval[:3]
    )
    text = middle if low == middle == high else f"{middle} [{low}–{high}]"
    text += unit if math.isfinite(interval.median) else ""
    return text if interval.used == interval.of else f"{text} ({interval.used} of {interval.of})"


def intervals(values: np.ndarray) -> np.ndarray:
    """Median, low and high of every column: [seeds, columns] -> [3, columns].

    Not scipy.stats.bootstrap, which interpolates between resampled medians and so makes NaN of an
    infinite one; here the ends of the interval are order statistics.
    """
    ordered = np.sort(values, axis=0)
    count = len(ordered)
    middle = (ordered[(count - 1) // 2] + ordered[count // 2]) / 2
    if count < LEAST:
        return np.stack([middle, ordered[0], ordered[-1]])
    below, above = _middle_ranks(count)
    medians = (ordered[below] + ordered[above]) / 2
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


def band(curves: Iterable[tuple[Sequence[float], Sequence[float]]]) -> pd.DataFrame:
    """Median and interval over seeds wherever any seed has a point: columns median, low, high.

    Seeds with points elsewhere count by interpolation; the band covers the x that all seeds cover.

    Args:
      curves: (x ascending, y), one a seed.
    """
    columns = [pd.Series(ys, index=xs, dtype=float) for xs, ys in curves]
    frame = pd.concat(columns, axis=1).sort_index()
    frame = frame.interpolate("index", limit_area="inside").dropna()
    values = intervals(frame.to_numpy().T) if len(frame) else np.empty((3, 0))
    return pd.DataFrame(values.T, index=frame.index, columns=["median", "low", "high"])
