"""lambda(t), the stages, and the rollouts of a run to the last row."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from remix_jax.rl import schedules
from tests import reference, vectors

TOTALS = vectors.accounting("rollout_totals.json")
PER_STEP = vectors.accounting("rollouts_per_step.csv")
LAMBDA = vectors.accounting("lambda.json")

# ---------------------------------------------------------------------------- lambda(t)


def test_lambda_by_hand():
    by_hand = {0: 1, 1: 1, 50: 1, 51: 0.9, 60: 0.9, 61: 0.8, 75: 0.7, 90: 0.6, 91: 0.5, 900: 0.5}
    for step, weight in by_hand.items():
        assert schedules.kl_convex_weight(step) == pytest.approx(weight, rel=1e-15), step


def test_lambda_golden():
    for step, weight in zip(LAMBDA["t"], LAMBDA["lam"], strict=True):
        assert abs(schedules.kl_convex_weight(step) - weight) < 1e-12
        assert abs(reference.kl_convex_weight(step) - weight) < 1e-12
    many = schedules.kl_convex_weight(np.array(LAMBDA["t"]))
    np.testing.assert_allclose(many, LAMBDA["lam"], rtol=0, atol=1e-12)


def test_lambda_golden_traced(compiled):
    weight = compiled(schedules.kl_convex_weight)(jnp.array(LAMBDA["t"]))
    assert weight.dtype == jnp.float32
    np.testing.assert_allclose(weight, LAMBDA["lam"], rtol=1e-6)


def test_lambda_of_a_traced_step():
    weight = jax.jit(schedules.kl_convex_weight)
    assert [round(float(weight(step)), 6) for step in (50, 51, 91)] == [1.0, 0.9, 0.5]


def test_lambda_with_scaled_breakpoints():
    """A short run: weight 1 up to step 4, a drop of 0.25 every 3 steps, down to 0.3."""
    actual = [
        float(schedules.kl_convex_weight(step, start=4, every=3, drop=0.25, floor=0.3))
        for step in range(1, 16)
    ]
    expected = [1.0] * 4 + [0.75] * 3 + [0.5] * 3 + [0.3] * 5
    np.testing.assert_allclose(actual, expected, rtol=1e-12)


# ---------------------------------------------------------------------------- rollouts


@pytest.mark.parametrize("row", TOTALS, ids=lambda row: row["id"])
def test_published_totals(row):
    units, steps, share, last = row["B"], row["steps"], row["p"], row["T"]
    planned = schedules.planned_units(steps, units, share, last)
    assert planned == row["total_floor_cum"] == row["total_exact"]
    assert np.floor(planned / 1000) / 1000 == row["printed_M_truncated"]
    assert planned == sum(fresh_of_step(step, units, share, last) for step in range(1, steps + 1))


@pytest.mark.parametrize("row", [row for row in TOTALS if row["B"] == 2048], ids=lambda r: r["id"])
def test_published_totals_in_whole_groups(row):
    """GRPO counts groups of 8: the same totals, though other rows step by step."""
    groups = schedules.planned_units(row["steps"], row["B"] // 8, row["p"], row["T"])
    assert 8 * groups == row["total_floor_cum"]


def fresh_of_step(step, units, share, last=0):
    before, after = (schedules.planned_units(s, units, share, last) for s in (step - 1, step))
    return after - before


def test_rollouts_step_by_step():
    runs = {row["id"]: row for row in TOTALS}
    cumulative = 0
    for expected in PER_STEP:
        run, step = runs[expected["id"]], int(expected["step"])
        fresh = fresh_of_step(step, run["B"], run["p"], run["T"])
        cumulative = fresh + (cumulative if step > 1 else 0)
        where = f"{run['id']} step {step}"
        assert fresh == int(expected["fresh_floor_cum"]), where
        assert fresh == reference.fresh_rows(step, run["B"], run["p"], run["T"]), where
        assert cumulative == int(expected["cum_floor_cum"]), where
        assert cumulative == schedules.planned_units(step, run["B"], run["p"], run["T"]), where
        if expected["stage"] == "1":
            assert run["B"] - fresh == int(expected["replay_slots_floor_cum"]), where


def test_static_slots_hold_every_step():
    for units, share in itertools.product((1, 2, 5, 10, 32, 256), (0.0, 0.1, 0.3, 0.4, 0.7, 0.9)):
        counts = [fresh_of_step(step, units, share) for step in range(1, 101)]
        fewest, most = schedules.fresh_unit_range(units, share)
        assert (min(counts), max(counts)) == (fewest, most), (units, share)
        assert most - fewest <= 1


def test_fractions_are_exact():
    """In binary (1 - 0.9) x 10 is just below 1, and its floor would be 0 fresh rows forever."""
    assert [fresh_of_step(step, 10, 0.9) for step in (1, 2, 3)] == [1, 1, 1]
    assert schedules.fresh_unit_range(10, 0.9) == (1, 1)
    assert schedules.planned_units(7, 10, 0.9, 0) == 7
    assert schedules.fresh_unit_range(256, 0.4) == (153, 154)
    assert fresh_of_step(10**7, 1000, 0.3) == 700


def test_nothing_replayed_is_all_fresh():
    assert [fresh_of_step(step, 7, 0.0) for step in (1, 2, 50)] == [7, 7, 7]
    assert schedules.fresh_unit_range(7, 0.0) == (7, 7)


def test_planned_units_around_the_switch():
    assert [schedules.planned_units(steps, 10, 0.4, 3) for steps in range(6)] == [
        0,
        6,
        12,
        18,
        28,
        38,
    ]
    assert schedules.planned_units(5, 10, 0.4, 0) == 30  # never reincarnated


def test_learning_rate_rises_and_falls():
    def rates(**options):
        return [schedules.learning_rate(step, 6, 2.0, **options) for step in range(1, 7)]

    assert rates() == [2.0] * 6
    assert rates(warmup=2) == [1, 2, 2, 2, 2, 2]
    assert rates(warmup=2, decay="linear") == [1, 2, 2, 1.5, 1, 0.5]
    np.testing.assert_allclose(rates(decay="cosine")[::3], [2, 1])
    assert schedules.learning_rate(3, 3, 1.0, warmup=5) == 0.6, "a warm-up longer than the run"
