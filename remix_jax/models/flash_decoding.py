"""Attention of one query a row that reads of a cache what the row has filled (Flash-Decoding).

A cache has room for the longest row, and most rows are short: `products.attention_step` reads all
of it. Here the blocks that a row fills are taken one after the other with a running maximum and
sum (Milakov and Gimelshein, arXiv:1805.02867), so scores never leave the chip. On a TPU one program
goes through the blocks of all rows, the next one on its way while one is computed. On a GPU
(Triton) rows, key heads and equal parts of a row are programs of their own, and write the new key
and value too: a layer's attention is one launch, two where few rows leave the card idle.

Keys are [N, K, E, S], values [N, K, S, E]. Shape letters are those of `products`; W are blocks.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas import triton as plgpu

from remix_jax.models.products import MASKED, Summed, attention_step, einsum

SLOTS = 128  # a cache's slots are a multiple of it: TPU registers have so many lanes
_TPU_BLOCK = 512  # slots; long enough for its transfer to hide what starting it costs
_GPU_BLOCK = 64
_GPU_PROGRAMS = 128  # that keep a card busy: with fewer rows and heads, a row's blocks are shared
_GPU_ROWS = 16  # of the least product that tensor cores take, more than most M


def _further(q_ME, k_ES, v_SE, slots_left, so_far, dtype: str) -> Summed:
    """The sums with one block more, of whose slots the first `slots_left` (at least 1) count."""
    out_ME, total_M1, best_M1 = so_far
    inside_1S = jax.lax.broadcasted_iota(jnp.int32, (1, k_ES.shape[1]), 1) < slots_left
    score_MS = jnp.where(inside_1S, einsum("me,es->ms", q_ME, k_ES, dtype), MASKED)
    newest_M1 = jnp.maximum(best_M1, score_MS.max(-1, keepdims=True))
    exp_MS, kept_M1 = jnp.exp(score_MS - newest_M1), jnp.exp(best_M1 - newest_M1)
    out_ME = out_ME * kept_M1 + einsum("ms,se->me", exp_MS, v_SE, dtype)
    return out_ME, total_M1 * kept_M1 + exp_MS.sum(-1, keepdims=True), newest_M1


def tpu(q_NKME, k_NKES, v_NKSE, length_N, dtype: str, interpret: bool = False) -> list[Summed]:
    """The kernel for TPUs, on one device's share; at least 1 slot of a row, length_N, is filled."""
    (N, K, M, E), S = q_NKME.shape, v_NKSE.shape[2]
    block = _TPU_BLOCK if K * E <= 1024 else SLOTS  # keys and values, twice, are to fit on the chip
    # The grid has a step for each block that holds something, of row after row.
    blocks_N = pl.cdiv(length_N, block)
    end_N = jnp.cumsum(blocks_N)
    step_W = jnp.arange(N * pl.cdiv(S, block))
    row_W = (step_W[:, None] >= end_N[None]).sum(axis=1, dtype=jnp.int32)

    def kernel(row_W, begin_N, length_N, q_ref, k_ref, v_ref, *refs):
        step = pl.program_id(0)
        row = row_W[step]
        first = (step - begin_N[row]) * block

        @pl.when(first == 0)
        def _():
            for ref, value in zip(refs, (0.0, 0.0, MASKED), strict=True):
                ref[...] = jnp.full_like(ref, value)

        left = length_N[row] - first
        # The last block may reach beyond the cache, to whatever lies there.
        inside_S1 = jax.lax.broadcasted_iota(jnp.int32, (block, 1), 0) < left
        for head in range(K):
            v_SE = jnp.where(inside_S1, v_ref[0, head], 0)
            so_far = [ref[0, head] for ref in refs]
            summed = _further(q_ref[0, head], k_ref[0, head], v_SE, left, so_far, dtype)
            for ref, value in zip(refs, summed, strict=True):
                ref[0, head] = value

    def of_row(*shape):
        return pl.BlockSpec((1, *shape), lambda step, row_W, *_: (row_W[step], 0, 0, 0))

    def of_keys(step, row_W, begin_N, length_N):
        return row_W[step], 0, 0, step - begin_N[row_W[step]]

    def of_values(step, row_W, begin_N, length_N):
        return row_W[step], 0, step - begin_N[row_W[step]], 0

    shapes = [(K, M, E), (K, M, 1), (K, M, 1)]
    call = pl.pallas_call(
        kernel,
        out_shape=[jax.ShapeDtypeStruct((N, *shape), jnp.float32) for shape in shapes],
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(end_N[-1],),
            in_specs=[
                of_row(K, M, E),
                pl.BlockSpec((1, K, E, block), of_keys),
                pl.BlockSpec((1, K, block, E), of_values),
            ],
            out_specs=[of_row(*shape) for shape in shapes],
        ),
        interpret=interpret,
        name="flash_decoding",
    )
    return [tuple(call(row_W, end_N - blocks_N, length_N, q_NKME, k_NKES, v_NKSE))]


def _gpu_program(
    M, splits, dtype, slot_ref, qkv_ref, keys_ref, values_ref, new_keys, new_values, *refs
):
    """A part of one row's blocks, for one key head; the first part writes the new slot."""
    slot, split = slot_ref[...], pl.program_id(2)
    rows, E = max(pl.next_power_of_2(M), _GPU_ROWS), qkv_ref.shape[1]
    blocks = pl.cdiv(slot + 1, _GPU_BLOCK)
    each = pl.cdiv(blocks, splits)
    real_M1 = jnp.arange(rows)[:, None] < M
    q_ME = plgpu.load(qkv_ref.at[pl.ds(0, rows)], mask=real_M1, other=0.0)
    k_E, v_E = qkv_ref[M], qkv_ref[M + 1]

    @pl.when(split == 0)
    def _():
        new_keys[:, slot] = k_E
        new_values[slot, :] = v_E

    def further(i, so_far):
        here = pl.ds(i * _GPU_BLOCK, _GPU_BLOCK)
        left = slot + 1 - i * _GPU_BLOCK
        # The new slot is not read from where another program may be writing it.
        new_S = jnp.arange(_GPU_BLOCK) == left - 1
        k_ES = jnp.where(new_S[None], k_E[:, None], keys_ref[:, here])
        v_SE = jnp.where(new_S[:, None], v_E[None], values_ref[here, :])
        return _further(q_ME, k_ES, v_SE, left, so_far, dtype)

    nothing = jnp.zeros((rows, E)), jnp.zeros((rows, 1)), jnp.full((rows, 1), MASKED)
    end = jnp.minimum((split + 1) * each, blocks)
    summed = jax.lax.fori_loop(split * each, end, further, nothing)
    if splits == 1:
        summed = [summed[0] / summed[1]]
    for ref, value in zip(refs, summed, strict=True):
        plgpu.store(ref, value.astype(ref.dtype), mask=real_M1)


def gpu(
    qkv_NKXE, keys_NKES, values_NKSE, slot_N, dtype: str, interpret: bool = False
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The kernel for GPUs, on one device's share: attention, and the cache with the new slot.

    E must be a power of 2, S a multiple of SLOTS; a row sees the slots up to its own, `slot_N`.
    Of the X = M + 2 vectors M are queries, then come a key and a value: so one operation makes all.
    """
    (N, K, X, E), S = qkv_NKXE.shape, values_NKSE.shape[2]
    M = X - 2
    rows = max(pl.next_power_of_2(M), _GPU_ROWS)
    splits = min(pl.next_power_of_2(pl.cdiv(_GPU_PROGRAMS, N * K)), 8)

    def of_head(*shape):
        return pl.BlockSpec((None, None, *shape), lambda n, k, split: (n, k) + (0,) * len(shape))

    def of_split(width):
        where = pl.BlockSpec(
            (None, None, None, rows, width), lambda n, k, split: (split, n, k, 0, 0)
        )
        return where, jax.ShapeDtypeStruct((splits, N, K, M, width), jnp.float32)

    caches = [of_head(E, S), of_head(S, E)]
    whole = of_head(rows, E), jax.ShapeDtypeStruct((N, K, M, E), dtype)
    outs = [whole] if splits == 1 else [of_split(width) for width in (E, 1, 1)]
    out_specs, out_shape = zip(*outs, strict=True)
    keys_NKES, values_NKSE, *found = pl.pallas_call(
        functools.partial(_gpu_program, M, splits, dtype),
        grid=(N, K, splits),
        in_specs=[
            pl.BlockSpec((None,), lambda n, k, split: (n,)),
            of_head(max(rows, X), E),
            *caches,
        ],
        out_specs=[*caches, *out_specs],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (keys_NKES, values_NKSE)]
        + list(out_shape),
        input_output_aliases={2: 0, 3: 1},
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=2),
        interpret=interpret,
        name="flash_decoding",
    )(slot_N, qkv_NKXE, keys_NKES, values_NKSE)
    if splits > 1:
        found = [attention_step(qkv_NKXE[:, :, :M], [], dtype, list(zip(*found, strict=True)))]
    return found[0], keys_NKES, values_NKSE
