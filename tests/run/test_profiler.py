"""The window of steps that --profile traces."""

import pytest

from experiments.main import profile_window
from remix_jax.errors import InputError


@pytest.mark.parametrize("text", ["5", "5,", "0,1", "3,0", "a,b", "9,3", "1,2,3", "-1,2"])
def test_a_wrong_window_is_refused(text):
    with pytest.raises(InputError, match=f"--profile={text}: must be"):
        profile_window(text, steps=10)


def test_a_window_within_the_run():
    assert profile_window(None, 10) is None
    assert profile_window("9,2", 10) == (9, 2)
