"""Kernels that read the filled part of a cache, in JAX's interpreter, against plain attention."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from remix_jax.models import attention, flash_decoding, products

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
    q, k, v = (x.astype("float32") for x in (normal(N, K, M, E), *normal(2, N, K, E)))
    return q, k, v, old, new


def unread(kind, old, filled_N=FILLED):
    """NaN in every block of which nothing is filled, large numbers in the others' empty slots."""
    end_N = FILLED + -FILLED % BLOCK[kind]
    place_1S = np.arange(FILLED.max())[None]
    rest_NS = np.where(place_1S < end_N[:, None], 50.0, np.nan)
    filled_NS = place_1S < filled_N[:, None]

    def spoiled(x, shape):
        rest = rest_NS.reshape(shape).astype(x.dtype)
        return jnp.where(filled_NS.reshape(shape), x, rest)

    N, S = filled_NS.shape
    return spoiled(old[0], (N, 1, 1, S)), spoiled(old[1], (N, 1, S, 1))


STEP = jax.jit(attention.step, static_argnums=(0, 9))


@pytest.mark.parametrize("M", [1, 6, 7])
def test_the_tpu_kernel_reads_the_filled_blocks_alone(M):
    dtype = "float32" if M == 6 else "bfloat16"
    q, k, v, old, new = given(M, dtype)
    there = new, jnp.asarray(FILLED), NEW, jnp.int32(2), dtype
    got, _ = STEP("splash", q, k, v, unread("splash", old), *there)
    want, _ = STEP("plain", q, k, v, old, *there)
    tolerance = 1e-5 if dtype == "float32" else 1e-2
    np.testing.assert_allclose(got, want, atol=tolerance)


@pytest.mark.parametrize("splits", [1, 4])
@pytest.mark.parametrize("M", [1, 6, 7])
def test_the_gpu_kernel_writes_each_row_s_slot_and_reads_the_filled_blocks(M, splits, monkeypatch):
    monkeypatch.setattr(flash_decoding, "_GPU_PROGRAMS", splits * len(FILLED) * 2)
    dtype = "float32" if M == 6 else "bfloat16"
    q, k, v, old, _ = given(M, dtype)
    slot_N = jnp.asarray(FILLED - 1)
    spoiled = unread("cudnn", old, FILLED - 1)
    got, (keys, values) = STEP("cudnn", q, k, v, None, spoiled, None, None, slot_N, dtype)
    at_N = jnp.arange(len(FILLED)), slice(None), slot_N
    written = (
        old[0].swapaxes(2, 3).at[at_N].set(k.astype(dtype)).swapaxes(2, 3),
        old[1].at[at_N].set(v.astype(dtype)),
    )
    bias = jnp.where(np.arange(FILLED.max())[None] < FILLED[:, None], 0.0, attention.MASKED)
    want = products.attention_step(q, [(*written, bias)], dtype)
    tolerance = 1e-5 if dtype == "float32" else 2e-2
    np.testing.assert_allclose(got.astype("float32"), want, atol=tolerance)
    for ours, before, new, axis in ((keys, spoiled[0], k, 3), (values, spoiled[1], v, 2)):
        ours, before = (jnp.moveaxis(x, axis, 1) for x in (ours, before))
        changed = before.at[jnp.arange(len(FILLED)), slot_N].set(new.astype(dtype))
        np.testing.assert_array_equal(*(x.astype("float32") for x in (ours, changed)))


def test_the_tpu_kernel_takes_a_step_for_each_filled_block(monkeypatch):
    steps, pallas_call = [], flash_decoding.pl.pallas_call

    def counted(*args, grid_spec, **options):
        steps.append(int(grid_spec.grid[0]))
        return pallas_call(*args, grid_spec=grid_spec, **options)

    monkeypatch.setattr(flash_decoding.pl, "pallas_call", counted)
    there = jnp.asarray(FILLED), NEW, jnp.int32(0), "float32"
    attention.step("splash", *given(1), *there)
    assert steps == [1 + 1 + 2 + 1 + 2 + 2]


@pytest.mark.parametrize("kind", ["splash", "cudnn"])
def test_on_a_mesh_each_device_reads_its_own_rows_and_heads(kind):
    q, k, v, *cache = jax.tree.map(lambda x: jnp.concatenate([x, x]), given(3))
    filled_N = jnp.asarray(np.concatenate([FILLED, FILLED[::-1]]))
    there = (*cache, filled_N, NEW, jnp.int32(0))
    if kind == "cudnn":
        there = None, cache[0], None, None, filled_N - 1
    call = jax.jit(lambda *x: attention.step(kind, *x, "float32"))
    want = call(q, k, v, *there)
    mesh = jax.make_mesh((1, 4, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    with jax.set_mesh(mesh):
        got = call(q, k, v, *there)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), got, want)


def test_short_caches_and_odd_heads_are_attended_to_plainly(monkeypatch):
    def none(*_, **__):
        raise AssertionError("a kernel was called")

    for name in ("tpu", "gpu"):
        monkeypatch.setattr(flash_decoding, name, none)
    there = jnp.asarray(FILLED), NEW, jnp.int32(0), "float32"
    attention.step("cudnn", *given(1, E=12), *there)
    monkeypatch.undo()
    assert attention.for_cache("splash", attention.LONG - 1, 64) == ("plain", attention.LONG - 1)
    assert attention.for_cache("splash", attention.LONG + 1, 80) == ("splash", attention.LONG + 128)
    assert attention.for_cache("cudnn", 129, 64) == ("cudnn", 256)
    assert attention.for_cache("cudnn", 129, 80) == ("plain", 129)
    assert attention.for_cache("plain", attention.LONG + 1, 64) == ("plain", attention.LONG + 1)
