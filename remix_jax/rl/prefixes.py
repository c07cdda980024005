"""PrefixRL (arXiv 2601.18795): where successful traces are cut, how many groups start from a cut.

The policy is trained, on its own samples, to go on from a prefix of a trace that succeeded. The
prefix is context, as the prompt is: it lies in the prompt's slots, so that no loss, ratio, KL,
entropy or length norm ever sees it, and a group is made of the responses to one (problem, cut).
"""

import bisect
import math
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

import numpy as np


class Cuts(NamedTuple):
    """Of one trace."""

    lengths: tuple[int, ...]  # of its prefixes, in tokens and ascending
    moved: int  # of these, drawn again further ahead: they had shown the answer
    dropped: int  # asked for and not to be had


def draw_cuts(
    seed: int,
    problem: int,
    length: int,
    count: int,
    low: float,
    high: float,
    shows: Callable[[int], bool],
) -> Cuts:
    """Cuts of a trace of `length` tokens, fixed by (seed, problem): drawn once and kept.

    Uniform without replacement over the whole numbers in [low, high] length that leave a token on
    either side. One that shows the answer is drawn again among those free that do not.

    Args:
      count: cuts wanted.
      low, high: in [0, 1].
      shows: whether the first so many tokens show the answer; a longer prefix shows no less.
    """
    rng = np.random.default_rng((seed, problem))
    first, last = max(math.ceil(low * length), 1), min(math.floor(high * length), length - 1)
    lengths = np.arange(first, last + 1)
    drawn = rng.choice(lengths, min(count, len(lengths)), replace=False)
    if not drawn.size or not shows(int(drawn.max())):
        return Cuts(tuple(sorted(drawn.tolist())), 0, count - len(drawn))
    safe = lengths[: bisect.bisect_left(lengths, True, key=lambda length: shows(int(length)))]
    kept = drawn[np.isin(drawn, safe)]
    free = np.setdiff1d(safe, kept)
    again = rng.choice(free, min(len(drawn) - len(kept), len(free)), replace=False)
    cuts = sorted([*kept.tolist(), *again.tolist()])
    return Cuts(tuple(cuts), len(again), count - len(cuts))


def prefixed_units(before: int, after: int, share: float) -> int:
    """Groups that start from a prefix, among those generated between two counts of the run.

        floor(after s) - floor(before s),     s = share, the decimal as written

    Of the first n groups of a run floor(n s) are prefixed.
    """
    exact = Fraction(str(share))
    return int(after * exact) - int(before * exact)
