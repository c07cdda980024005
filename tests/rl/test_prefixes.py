"""Cuts of traces and the mix of prefixed groups, from their definitions."""

import itertools
from fractions import Fraction

import numpy as np
import pytest

from remix_jax.rl.schedules import prefixed_units
from remix_jax.rollout.draws import draw_cuts


def never(length):
    return False


def test_cuts_are_uniform_over_the_whole_range():
    """Cuts of 10,000 traces of 20 tokens: each length from 8 to 16 as often as any other."""
    drawn = [n for p in range(10_000) for n in draw_cuts(0, p, 20, 3, 0.4, 0.8, never).lengths]
    lengths, counts = np.unique(drawn, return_counts=True)
    assert lengths.tolist() == list(range(8, 17))
    expected = 30_000 / 9  # standard error below 50
    assert np.abs(counts - expected).max() < 5 * 50


def test_cuts_are_kept_and_differ_by_seed_and_problem():
    def cuts(seed, problem):
        return draw_cuts(seed, problem, 1000, 3, 0.4, 0.8, never)

    assert cuts(1, 2) == cuts(1, 2)
    assert len({cuts(seed, problem).lengths for seed in (0, 1) for problem in (0, 1)}) == 4
    assert len(set(cuts(1, 2).lengths)) == 3
    assert cuts(1, 2).lengths == tuple(sorted(cuts(1, 2).lengths))


@pytest.mark.parametrize("answer_at", [0, 420, 500, 799, 801])
def test_a_cut_never_shows_the_answer(answer_at):
    """The answer is complete after `answer_at` tokens of 1,000; cuts lie in 400..800."""
    plain = [draw_cuts(0, p, 1000, 3, 0.4, 0.8, never) for p in range(50)]
    cuts = [draw_cuts(0, p, 1000, 3, 0.4, 0.8, lambda n: n >= answer_at) for p in range(50)]
    for before, after in zip(plain, cuts, strict=True):
        fine = [n for n in before.lengths if n < answer_at]
        assert set(fine) <= set(after.lengths), "a good cut is kept"
        assert all(400 <= n < answer_at for n in after.lengths)
        assert len(set(after.lengths)) == len(after.lengths)
        assert len(after.lengths) + after.dropped == 3
        assert after.moved == len(after.lengths) - len(fine)
    assert all(c.dropped == (3 if answer_at == 0 else 0) for c in cuts)
    assert all(c.moved == 0 for c in cuts) == (answer_at in (0, 801))


@pytest.mark.parametrize(
    ("length", "lengths"), [(1, ()), (2, (1,)), (3, (2,)), (5, (2, 3, 4)), (6, (3, 4))]
)
def test_short_traces_have_fewer_cuts(length, lengths):
    """Whole numbers in [.4 n, .8 n] that leave a token on either side."""
    cuts = draw_cuts(0, 0, length, 3, 0.4, 0.8, never)
    assert cuts.lengths == lengths
    assert cuts.dropped == 3 - len(lengths)


@pytest.mark.parametrize("answer_at", [5, 6, 7, 8])
def test_a_cut_may_lie_right_before_the_answer(answer_at):
    """Of 4 to 8 tokens all that lie before the answer are taken: 3 wanted, 1 to 3 there."""
    cuts = draw_cuts(0, 0, 10, 3, 0.4, 0.8, lambda n: n >= answer_at)
    assert len(cuts.lengths) == min(answer_at - 4, 3)
    if answer_at <= 7:
        assert cuts.lengths == tuple(range(4, answer_at))


@pytest.mark.parametrize("share", [0.75, 0.3, 1.0, 0.001])
def test_the_mix_is_exact_over_steps(share):
    steps = [7, 10, 10, 9, 48, 1, 1, 1, 100]
    ends = np.cumsum([0, *steps])
    counts = [prefixed_units(a, b, share) for a, b in itertools.pairwise(ends)]
    assert sum(counts) == int(Fraction(str(share)) * sum(steps))
    for count, step in zip(counts, steps, strict=True):
        assert abs(count - share * step) < 1
    assert [prefixed_units(4 * k, 4 * k + 4, 0.75) for k in range(3)] == [3, 3, 3]
