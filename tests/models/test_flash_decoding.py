"""Kernels that read the filled part of a cache, in JAX's interpreter, against plain attention."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from remix_jax.models import attention, flash_decoding

FILLED = np.asarray([1, 64, 513, 128, 600, 640], np.int32)  # of S = 640 slots
NEW = np.where(np.arange(4)[None] <= 2, 0.0, attention.MASKED)  # of 4 slots
BLOCK = {"splash": 512, "cudnn": 64}


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    monkeypatch.setattr(attention, "LONG", 8)
    for name in ("tpu", "gpu"):
        kernel = functools.partial(getattr(flash_decoding, name), interpret=True)
        monkeypatch.setattr(flash_decoding, name, kernel)


def given(M, dtype="float32", E=16, C=4):
    """A query and the two parts of its cache, all keys and values real numbers."""
    rng, (N, K, S) = np.random.default_rng(M), (len(FILLED), 2, FILLED.max())

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), dtype)

    old, new = ((normal(N, K, E, slots), normal(N, K, slots, E)) for slots in (S, C))
    return normal(N, K, M, E).astype("float32"), old, new


def unread(kind, old):
    """NaN in every block of which nothing is filled, large numbers in the others' empty slots."""
    end_N = FILLED + -FILLED % BLOCK[kind]
    place_1S = np.arange(FILLED.max())[None]
    rest_NS = np.where(place_1S < end_N[:, None], 50.0, np.nan)
    filled_NS = place_1S < FILLED[:, None]

    def spoiled(x, shape):
        rest = rest_NS.reshape(shape).astype(x.dtype)
        return jnp.where(filled_NS.reshape(shape), x, rest)

    N, S = filled_NS.shape
    return spoiled(old[0], (N, 1, 1, S)), spoiled(old[1], (N, 1, S, 1))


@pytest.mark.parametrize("M", [1, 6, 7])
@pytest.mark.parametrize("kind", ["splash", "cudnn"])
def test_a_kernel_reads_the_filled_blocks_alone(kind, M):
    dtype = "float32" if M == 6 else "bfloat16"
    q, old, new = given(M, dtype)
    call = jax.jit(attention.step, static_argnums=(0, 6))
    got = call(kind, q, unread(kind, old), new, jnp.asarray(FILLED), NEW, dtype)
    want = call("plain", q, old, new, jnp.asarray(FILLED), NEW, dtype)
    tolerance = 1e-5 if dtype == "float32" else 1e-2
    np.testing.assert_allclose(got, want, atol=tolerance)


def test_the_tpu_kernel_takes_a_step_for_each_filled_block(monkeypatch):
    steps, pallas_call = [], flash_decoding.pl.pallas_call

    def counted(*args, grid_spec, **options):
        steps.append(int(grid_spec.grid[0]))
        return pallas_call(*args, grid_spec=grid_spec, **options)

    monkeypatch.setattr(flash_decoding.pl, "pallas_call", counted)
    q, old, new = given(1)
    attention.step("splash", q, old, new, jnp.asarray(FILLED), NEW, "float32")
    assert steps == [1 + 1 + 2 + 1 + 2 + 2]


@pytest.mark.parametrize("kind", ["splash", "cudnn"])
def test_on_a_mesh_each_device_reads_its_own_rows_and_heads(kind):
    q, old, new = jax.tree.map(lambda x: jnp.tile(x, (2, 1, 1, 1)), given(3))
    filled_N = jnp.asarray(np.concatenate([FILLED, FILLED[::-1]]))
    want = attention.step("plain", q, old, new, filled_N, NEW, "float32")
    mesh = jax.make_mesh((1, 4, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    with jax.set_mesh(mesh):
        call = jax.jit(lambda *x: attention.step(kind, *x, NEW, "float32"))
        got = call(q, old, new, filled_N)
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_short_caches_and_odd_heads_are_attended_to_plainly(monkeypatch):
    def none(*_, **__):
        raise AssertionError("a kernel was called")

    for name in ("tpu", "gpu"):
        monkeypatch.setattr(flash_decoding, name, none)
    q, old, new = given(1, E=12)
    attention.step("cudnn", q, old, new, jnp.asarray(FILLED), NEW, "float32")
    monkeypatch.undo()
    assert attention.for_cache("splash", attention.LONG - 1) == ("plain", attention.LONG - 1)
    assert attention.for_cache("cudnn", attention.LONG + 1) == ("cudnn", attention.LONG + 128)
    assert attention.for_cache("plain", attention.LONG + 1) == ("plain", attention.LONG + 1)
