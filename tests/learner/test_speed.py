"""Traces of a window of steps, and figures of speed."""

import jax.numpy as jnp
import pytest

from remix_jax.config import Stage
from remix_jax.errors import InputError
from remix_jax.run import chips, speed
from tests.learner.tiny import P, T, make_config


@pytest.mark.parametrize("text", ["5", "5,", "0,1", "3,0", "a,b", "9,3", "1,2,3", "-1,2"])
def test_a_wrong_window_is_refused(text):
    with pytest.raises(InputError, match=f"--profile={text}: must be"):
        speed.window(text, steps=10)


def test_a_window_within_the_run():
    assert speed.window(None, 10) is None
    assert speed.window("9,2", 10) == (9, 2)


def test_only_the_window_is_traced(tmp_path):
    profiler = speed.Profiler((2, 2), tmp_path)
    left = []
    for step in (1, 2, 3, 4):
        profiler.before(step)
        (jnp.ones((8, 8)) @ jnp.ones((8, 8))).block_until_ready()
        ended = profiler.after(step)
        left.append((ended, len(list(tmp_path.rglob("*.xplane.pb")))))
    profiler.close()
    assert left == [(False, 0), (False, 0), (True, 1), (False, 1)]


def test_a_run_that_ends_within_the_window_leaves_its_trace(tmp_path):
    profiler = speed.Profiler((1, 5), tmp_path)
    profiler.before(1)
    assert not profiler.after(1)
    profiler.close()
    assert list(tmp_path.rglob("*.xplane.pb"))


def test_shares_of_the_peak_where_it_is_known(monkeypatch):
    config, stage = make_config(), Stage("mix", 8, 3, passes=2)
    measure = (config, stage, 30.0, (4e12, 6e12), (0.5, 2.0))
    assert speed.speeds(*measure) == {
        "tokens_per_second": 60.0,
        "learn_tokens_per_second": 2 * 8 * (P + T) / 2.0,
    }
    chip = chips.of_kind("TPU v5 lite")
    monkeypatch.setattr(speed.chips, "here", lambda: chip)
    monkeypatch.setattr(speed.jax, "device_count", lambda: 4)
    found = speed.speeds(*measure)
    assert found["mfu/sample"] == pytest.approx(8e12 / (4 * 197e12))
    assert found["mfu/learn"] == pytest.approx(3e12 / (4 * 197e12))


def test_chips_by_the_names_that_jax_gives_them():
    assert chips.of_kind("TPU v5 lite").flops < chips.of_kind("TPU v5p").flops
    assert chips.of_kind("TPU v5").memory_bytes == chips.of_kind("TPU v5p").memory_bytes
    assert chips.of_kind("TPU v6 lite").flops > chips.of_kind("TPU v5p").flops
    assert chips.of_kind("cpu") is None
