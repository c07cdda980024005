"""From verdicts to figures: Pass@1, pass@k, maj@k and their intervals. Arrays in, numbers out.

Shape letters: P problems, N samples a problem.
"""

import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence

import numpy as np

LEVEL = 0.95
RESAMPLES = 10_000  # of the bootstrap
MAJORITY_DRAWS = 1_000  # subsets a problem over which maj@k is averaged

Interval = tuple[float, float]


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Chance that k of n samples, drawn without replacement, hold a right one; unbiased.

        1 - C(n - c, k) / C(n, k) = 1 - prod_{i = n - c + 1}^{n} (1 - k / i)     (Chen et al. 2021)

    Args:
      samples: n.
      correct: c, of the n.
      k: at most n.
    """
    if not 1 <= k <= samples or not 0 <= correct <= samples:
        raise ValueError(f"pass@{k} of {correct} right in {samples} is not defined")
    if samples - correct < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(samples - correct + 1, samples + 1))


def majority_at_k(
    votes: Sequence[Hashable | None], right: Sequence[bool], k: int, seed: int = 0
) -> float:
    """Chance that the commonest answer of k samples is right; ties go to the one met first.

    For k = n all samples vote, in their order. Below, the mean over `MAJORITY_DRAWS` random
    ordered subsets.

    Args:
      votes: the class of each sample's answer; None casts no vote. No vote at all is wrong.
      right: whether each sample is.
      k: votes, at most n.
      seed: of the subsets.
    """
    n = len(votes)
    if not 1 <= k <= n:
        raise ValueError(f"maj@{k} of {n} samples is not defined")
    if k == n:
        return _majority(votes, right, range(n))
    rng = np.random.default_rng(seed)
    draws = (rng.permutation(n)[:k].tolist() for _ in range(MAJORITY_DRAWS))
    return float(np.mean([_majority(votes, right, draw) for draw in draws]))


def _majority(votes, right, order) -> float:
    count = Counter(votes[i] for i in order if votes[i] is not None)
    if not count:
        return 0.0
    ((winner, _),) = count.most_common(1)  # of equals the one met first
    return float(next(right[i] for i in order if votes[i] == winner))


def classes(answers: Sequence[str | None], same: Callable[[str, str], bool]) -> list[int | None]:
    """The class of each answer: that of the first class whose first answer is the same.

    Args:
      answers: of the samples of a problem; None and empty ones belong to no class.
      same: equivalence of two answers; asked of texts that differ.
    """
    known: list[str] = []
    found: dict[str, int] = {}
    for answer in filter(None, answers):
        if answer not in found:
            like = (i for i, other in enumerate(known) if same(answer, other))
            found[answer] = next(like, len(known))
            if found[answer] == len(known):
                known.append(answer)
    return [found[answer] if answer else None for answer in answers]


def interval(correct_PN: np.ndarray, seed: int = 0) -> tuple[Interval, str]:
    """95 % interval of a set's Pass@1, and the name of its method.

    With one sample a problem, Wilson's; with several, whose verdicts depend on each other, the
    percentiles of a bootstrap over problems. Where all is right or all wrong a bootstrap would
    have no width: there Wilson's too, of the problems.
    """
    from scipy import stats  # half a second to import

    problems, samples = correct_PN.shape
    mean_P = correct_PN.mean(axis=1)
    if samples == 1 or np.ptp(mean_P) == 0:
        return wilson(round(float(mean_P.mean()) * problems), problems), "Wilson"
    found = stats.bootstrap(
        (mean_P,),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return (float(found.low), float(found.high)), "bootstrap over problems"


def mean_interval(shares: Sequence[float], intervals: Sequence[Interval]) -> Interval:
    """95 % interval of the unweighted mean of independent shares, from the interval of each.

    The distances of the shares to their bounds add up in squares, each side for itself (the method
    of variance estimates recovery, Zou and Donner 2008).
    """
    mean, sets = sum(shares) / len(shares), list(zip(shares, intervals, strict=True))
    below = math.sqrt(sum((share - low) ** 2 for share, (low, _) in sets))
    above = math.sqrt(sum((high - share) ** 2 for share, (_, high) in sets))
    return mean - below / len(sets), mean + above / len(sets)


def wilson(correct: int, total: int) -> Interval:
    """Wilson's score interval of a proportion."""
    from scipy import stats

    found = stats.binomtest(correct, total).proportion_ci(LEVEL, method="wilson")
    return float(found.low), float(found.high)
