"""Settings of the suite: eight CPU devices, no silent rank promotion, shared vectors."""

import gc
import os
import pathlib
from collections.abc import Iterator

from tests.compiling import on_devices, shared_programs

os.environ.update(on_devices(8) | shared_programs())
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module", autouse=True)
def _forget_programs() -> Iterator[None]:
    """Drops a module's compiled programs after it.

    Every one holds memory maps, of which Linux gives a process 65,530; XLA crashes beyond them.
    """
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """The folder of reference data beside the checkout; tests that need it skip without it."""
    path = ROOT.parent / "shared"
    if not path.is_dir():
        pytest.skip("reference vectors (../shared) are not on this machine")
    return path


@pytest.fixture(scope="session")
def goldens(shared: pathlib.Path) -> pathlib.Path:
    """Vectors made by running peers."""
    return shared / "goldens"
