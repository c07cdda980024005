"""Priorities of replay and the probabilities that they give."""

import numpy as np
import pytest

from remix_jax.rl import priorities

NAN = np.nan
ADV_BT = np.array([[1.0, -3.0, NAN], [NAN, 0.5, 0.5], [NAN, NAN, NAN]], np.float32)
MASK_BT = np.isfinite(ADV_BT).astype(np.float32)
VALID_B = np.array([True, True, True, False])


def test_priorities_by_hand(compiled):
    np.testing.assert_allclose(compiled(priorities.max_advantage)(ADV_BT, MASK_BT), [3, 0.5, 0])
    np.testing.assert_allclose(compiled(priorities.mean_advantage)(ADV_BT, MASK_BT), [2, 0.5, 0])


def test_scaled_reward(compiled):
    scaled = compiled(priorities.scaled_reward)
    np.testing.assert_allclose(scaled(np.float32([-1, 0, 3, NAN]), VALID_B), [0, 0.25, 1, 0])
    np.testing.assert_allclose(scaled(np.float32([2, 2, 2, 9]), VALID_B), [1, 1, 1, 0])


@pytest.mark.parametrize(
    ("priority", "exponent", "expected"),
    [
        ((1.0, 2.0, 1.0, 9.0), 1.0, (0.25, 0.5, 0.25, 0.0)),
        ((1.0, 2.0, 0.0, 9.0), 2.0, (0.2, 0.8, 0.0, 0.0)),
        ((1.0, 2.0, 5.0, NAN), 0.0, (1 / 3, 1 / 3, 1 / 3, 0.0)),
        ((0.0, 0.0, 0.0, 9.0), 1.0, (1 / 3, 1 / 3, 1 / 3, 0.0)),
        ((1e30, 1e30, 2e30, 0.0), 2.0, (1 / 6, 1 / 6, 4 / 6, 0.0)),
    ],
)
def test_draw_probabilities(priority, exponent, expected, compiled):
    draw = compiled(priorities.draw_probabilities)
    np.testing.assert_allclose(draw(np.float32(priority), VALID_B, exponent), expected, rtol=1e-6)
    assert not np.any(draw(np.float32(priority), np.zeros(4, bool), exponent))
