"""Traces of a window of steps."""

import jax.numpy as jnp
import pytest

from remix_jax.errors import InputError
from remix_jax.run import profiler


@pytest.mark.parametrize("text", ["5", "5,", "0,1", "3,0", "a,b", "9,3", "1,2,3", "-1,2"])
def test_a_wrong_window_is_refused(text):
    with pytest.raises(InputError, match=f"--profile={text}: must be"):
        profiler.window(text, steps=10)


def test_a_window_within_the_run():
    assert profiler.window(None, 10) is None
    assert profiler.window("9,2", 10) == (9, 2)


def test_only_the_window_is_traced(tmp_path):
    traced = profiler.Profiler((2, 2), tmp_path)
    left = []
    for step in (1, 2, 3, 4):
        traced.before(step)
        (jnp.ones((8, 8)) @ jnp.ones((8, 8))).block_until_ready()
        ended = traced.after(step)
        left.append((ended, len(list(tmp_path.rglob("*.xplane.pb")))))
    traced.close()
    assert left == [(False, 0), (False, 0), (True, 1), (False, 1)]


def test_a_run_that_ends_within_the_window_leaves_its_trace(tmp_path):
    traced = profiler.Profiler((1, 5), tmp_path)
    traced.before(1)
    assert not traced.after(1)
    traced.close()
    assert list(tmp_path.rglob("*.xplane.pb"))
