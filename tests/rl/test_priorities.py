"""Priorities of replay and the probabilities that they give."""

import numpy as np
import pytest

from remix_jax.rl import replay
from remix_jax.types import empty_rows, kept_rows

NAN = np.nan
ADV_BT = np.array([[1.0, -3.0, NAN], [NAN, 0.5, 0.5], [NAN, NAN, NAN]], np.float32)


def rows_of(**columns):
    n = len(next(iter(columns.values())))
    filled = {"valid_B": np.ones(n, bool), "response_len_B": np.full(n, 3)} | columns
    return kept_rows(empty_rows(n, 1, 3)).replace(**filled)


def test_priorities_by_hand(compiled):
    rows = rows_of(stored_adv_BT=ADV_BT, loss_mask_BT=np.float32(np.isfinite(ADV_BT)))
    np.testing.assert_allclose(compiled(replay.max_advantage)(rows), [3, 0.5, 0])
    np.testing.assert_allclose(compiled(replay.mean_advantage)(rows), [2, 0.5, 0])


@pytest.mark.parametrize("excluded", ["valid_B", "signal_B"])
def test_scaled_reward(compiled, excluded):
    def scaled(*reward):
        columns = {"signal_B": np.ones(4, bool), excluded: np.array([True, True, True, False])}
        return compiled(replay.scaled_reward)(rows_of(reward_B=np.float32(reward), **columns))

    np.testing.assert_allclose(scaled(-1, 0, 3, NAN), [0, 0.25, 1, 0])
    np.testing.assert_allclose(scaled(2, 2, 2, 9), [1, 1, 1, 0])


@pytest.mark.parametrize(
    ("priority", "exponent", "expected"),
    [
        ((1.0, 2.0, 1.0, 0.0), 1.0, (0.25, 0.5, 0.25, 0.0)),
        ((1.0, 2.0, 0.0, 0.0), 2.0, (0.2, 0.8, 0.0, 0.0)),
        ((1.0, 2.0, 5.0), 0.0, (1 / 3, 1 / 3, 1 / 3)),
        ((0.0, 0.0, 0.0), 1.0, (1 / 3, 1 / 3, 1 / 3)),
        ((1e30, 1e30, 2e30, 0.0), 2.0, (1 / 6, 1 / 6, 4 / 6, 0.0)),
    ],
)
def test_draw_probabilities(priority, exponent, expected, compiled):
    draw = compiled(replay.draw_probabilities)
    np.testing.assert_allclose(draw(np.float32(priority), exponent), expected, rtol=1e-6)
