"""Fixtures of the rl tests: double precision, and every function with and without jit."""

import jax
import numpy as np
import pytest

from tests.rl import token_rows


@pytest.fixture
def x64():
    """Float64 for the length of a test."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


@pytest.fixture(params=[np.float64, np.float32])
def dtype(request):
    """Both precisions, JAX set accordingly."""
    if request.param is np.float64:
        request.getfixturevalue("x64")
    return request.param


@pytest.fixture(params=["eager", "jit"])
def compiled(request):
    """A function transformation: nothing, then jax.jit."""
    return {"eager": token_rows.eager, "jit": jax.jit}[request.param]
