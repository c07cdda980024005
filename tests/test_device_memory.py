"""Running out of memory is one line: the phase, what was asked for, what needs less."""

import subprocess
import sys

import jax
import pytest

from remix_jax import device_memory
from remix_jax.device_memory import OutOfMemoryError, phase

MESSAGES = {
    "RESOURCE_EXHAUSTED: Out of memory allocating 26954065672 bytes.": "26954065672 bytes",
    "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 2.50GiB.": "2.50GiB",
    "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.1G of 15.48G hbm.\n x": (
        "Used 20.1G of 15.48G hbm"
    ),
}


@pytest.mark.parametrize("message", MESSAGES)
def test_xla_s_words_become_one_line(message):
    with pytest.raises(OutOfMemoryError) as error, phase("sampling"):
        raise jax.errors.JaxRuntimeError(message)
    text = str(error.value)
    assert text.startswith("out of memory in sampling: ")
    assert MESSAGES[message] in text
    assert "memory.decode_tokens" in text
    assert "\n" not in text


def test_other_errors_stay_what_they_are():
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), phase("learning"):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")
    with (
        pytest.raises(OutOfMemoryError, match=r"in compiling: MemoryError, .*remat"),
        phase("compiling", "learning"),
    ):
        raise MemoryError


def test_every_remedy_is_a_field():
    from remix_jax.config import Config

    config = Config()
    for remedies in device_memory.REMEDIES.values():
        for name in remedies.split(", "):
            if "." in name:
                section, _, field = name.partition(" ")[0].partition(".")
                assert hasattr(getattr(config, section), field), name


PROGRAM = """
import resource, jax, jax.numpy as jnp
from remix_jax.device_memory import phase, OutOfMemoryError
jnp.zeros(3).block_until_ready()
resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))
try:
    with phase("learning"):
        jnp.ones((1 << 33,), jnp.float32).block_until_ready()
except OutOfMemoryError as error:
    print(error)
"""


def test_a_real_allocation_that_does_not_fit():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.stdout.startswith(
        "out of memory in learning: Out of memory allocating 34359738368 bytes"
    ), done
    assert len(done.stdout.splitlines()) == 1
