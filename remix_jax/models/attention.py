"""Attention of whole rows (`attend`) and of one token more (`step`), by what suits the device.

             whole rows                                      one token, to its row's cache
    plain    batched products with gradients by hand         all of the cache, the rest masked
             (`products.attention`); every score in memory
    splash   JAX's TPU kernel: scores stay on the chip,      `flash_decoding.tpu`: what is filled
             blocks above the diagonal are skipped
    cudnn    `jax.nn.dot_product_attention` with cuDNN's     `flash_decoding.gpu`: the same, and
             fused kernel, for GPUs                          each row writes to a slot of its own

They agree within rounding at real tokens. Shape letters are those of `products`; the T queries are
those of the slots from `first` (static) on.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention
from jax.sharding import PartitionSpec

from remix_jax import sharding
from remix_jax.models import flash_decoding, products
from remix_jax.models.products import MASKED

LONG = 1024  # slots from which a kernel pays: shorter rows and caches are attended to plainly
_BLOCK = {"plain": 1, "splash": 512, "cudnn": 64}  # slots come in multiples of it
_LANES = 128  # of a TPU's vector registers


def chosen(platform: str, dtype: str) -> str:
    """The kernel for a platform ("cpu", "gpu", "tpu"); cuDNN's takes no float32."""
    kinds = {"tpu": "splash", "gpu": "cudnn" if dtype == "bfloat16" else "plain"}
    return kinds.get(platform, "plain")


def for_slots(kind: str, slots: int) -> tuple[str, int]:
    """What attends to rows of so many slots, and the multiple of its block that it asks for."""
    kind = kind if slots >= LONG else "plain"
    return kind, slots + -slots % _BLOCK[kind]


def for_cache(kind: str, slots: int, head_dim: int) -> tuple[str, int]:
    """`for_slots` of a cache, in the terms of `step`; Triton wants powers of 2."""
    fits = head_dim & (head_dim - 1) == 0 if kind == "cudnn" else slots >= LONG
    kind = kind if fits else "plain"
    return kind, slots + -slots % (1 if kind == "plain" else flash_decoding.SLOTS)


def visibility(kind: str, segments_BS: jax.Array) -> jax.Array:
    """The segments as `attend` takes them, made once for all layers: a bias, or themselves.

    A slot sees itself and the slots before it that have its own number.
    """
    segments_BS = segments_BS.astype(jnp.int32)
    if kind != "plain":
        return segments_BS
    S = segments_BS.shape[1]
    causal_SS = jnp.tril(jnp.ones((S, S), bool))
    own_BSS = segments_BS[:, :, None] == segments_BS[:, None]
    return jnp.where(causal_SS[None] & own_BSS, 0.0, MASKED)


def attend(kind: str, q_BKMTE, k_BKSE, v_BKSE, visible, first: int, dtype: str) -> jax.Array:
    """softmax(q k^T) v over what each query may see, float32 [B, K, M, T, E].

    q comes scaled by 1 / sqrt(E), `visible` from `visibility`; `dtype` is that of the operands.
    """
    B, K, M, T, E = q_BKMTE.shape
    if kind == "plain":
        bias_BTS = visible[:, first : first + T]
        q_BKXE = q_BKMTE.reshape(B, K, M * T, E)
        out_BKXE = products.attention(q_BKXE, k_BKSE, v_BKSE, bias_BTS, dtype)
        return out_BKXE.reshape(B, K, M, T, E)
    q, k, v = (x.astype(dtype) for x in (q_BKMTE, k_BKSE, v_BKSE))
    if kind == "cudnn":
        return cudnn(q, k, v, visible, first).astype(jnp.float32)
    given: tuple[jax.Array, ...] = (q, k, v, visible)
    missing = -B % sharding.row_shards(sharding.in_use())
    if missing:
        given = tuple(jnp.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1)) for x in given)
    out = _by_device(functools.partial(splash, first=first), *given)
    return out[:B].astype(jnp.float32)


def step(kind: str, q_NKME, k_NKE, v_NKE, old, new, filled_N, bias_NC, slot, dtype: str):
    """`attend` for one query a row [N, K, M, E]; and `new` with its key and value at `slot`.

    A part of a cache is its keys [N, K, E, S] and values [N, K, S, E]. Of `old` (None: there is one
    part) a row sees the first `filled_N` slots (at least 1), of `new` those where `bias_NC` is 0.
    A `slot` [N] is each row's own: it sees all up to there, of one part.
    """
    if slot.ndim:
        return _in_place(q_NKME, k_NKE, v_NKE, new, slot, dtype)
    write = jax.lax.dynamic_update_slice_in_dim
    k_NKE, v_NKE = k_NKE.astype(dtype), v_NKE.astype(dtype)
    new = (
        write(new[0], k_NKE[..., None], slot, axis=3),
        write(new[1], v_NKE[:, :, None], slot, axis=2),
    )
    parts, summed = [(*new, bias_NC)], ()
    if old is not None:
        S, E = old[1].shape[2:]
        if for_cache(kind, S, E)[0] == "splash":
            kernel = functools.partial(flash_decoding.tpu, dtype=dtype)
            summed = _by_device(kernel, q_NKME, *old, filled_N)
        else:
            bias_NS = jnp.where(jnp.arange(S)[None] < filled_N[:, None], 0.0, MASKED)
            parts.insert(0, (*old, bias_NS))
    return products.attention_step(q_NKME, parts, dtype, summed), new


def _in_place(q_NKME, k_NKE, v_NKE, cache, slot_N, dtype: str):
    parts = q_NKME, k_NKE[:, :, None], v_NKE[:, :, None]
    qkv_NKXE = jnp.concatenate(parts, axis=2).astype(dtype)
    kernel = functools.partial(flash_decoding.gpu, dtype=dtype)
    out_NKME, *cache = _by_device(kernel, qkv_NKXE, *cache, slot_N)
    return out_NKME, tuple(cache)


def _by_device(kernel, *given: jax.Array):
    """Every device for its own rows and key heads; the last of the arguments has no heads."""
    if sharding.in_use() is None:
        return kernel(*given)
    rows, heads = PartitionSpec(sharding.ROWS), PartitionSpec(sharding.ROWS, "tensor")
    specs = (heads,) * (len(given) - 1) + (rows,)
    return jax.shard_map(kernel, in_specs=specs, out_specs=heads, check_vma=False)(*given)


def splash(q_BKMTE, k_BKSE, v_BKSE, segments_BS, first: int, interpret: bool = False):
    """The TPU kernel on one device's share."""
    B, K, M, T, E = q_BKMTE.shape
    S = k_BKSE.shape[2]
    # Slots that the kernel takes at once.
    block_T, block_S = (min(_BLOCK["splash"], slots + -slots % _LANES) for slots in (T, S))
    rows, width = -T % block_T, -E % _LANES
    q = jnp.pad(q_BKMTE.reshape(B, K * M, T, E), ((0, 0), (0, 0), (0, rows), (0, width)))
    k, v = (jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, width))) for x in (k_BKSE, v_BKSE))
    asking_BT = jnp.pad(segments_BS[:, first : first + T], ((0, 0), (0, rows)))
    forward = of_keys = (block_T, block_S, block_S)
    kernel = splash_attention.make_splash_mha_single_device(
        splash_attention.MultiHeadMask([splash_attention.CausalMask((T + rows, S), first)] * K * M),
        block_sizes=splash_attention.BlockSizes(*forward, *of_keys, block_T, block_S),
        interpret=interpret,
    )
    out_BHTE = jax.vmap(kernel)(q, k, v, splash_attention.SegmentIds(q=asking_BT, kv=segments_BS))
    return out_BHTE[:, :, :T, :E].reshape(B, K, M, T, E)


def cudnn(q_BKMTE, k_BKSE, v_BKSE, segments_BS, first: int, implementation: Any = "cudnn"):
    """cuDNN's fused kernel; "xla" is the same call without it."""
    B, K, M, T, E = q_BKMTE.shape
    S = k_BKSE.shape[2]
    rows = -T % _BLOCK["cudnn"]
    q_BTHE = jnp.moveaxis(q_BKMTE.reshape(B, K * M, T, E), 1, 2)
    q_BTHE = jnp.pad(q_BTHE, ((0, 0), (0, rows), (0, 0), (0, 0)))
    k_BSKE, v_BSKE = jnp.moveaxis(k_BKSE, 1, 2), jnp.moveaxis(v_BKSE, 1, 2)
    slot_T, slot_S = first + jnp.arange(T + rows), jnp.arange(S)
    causal_TS = slot_T[:, None] >= slot_S[None, :]
    # A query that only fills up the block sees what the last one sees: never nothing.
    asking_BT = jnp.pad(segments_BS[:, first : first + T], ((0, 0), (0, rows)), mode="edge")
    own_BTS = asking_BT[:, :, None] == segments_BS[:, None]
    seen_B1TS = (causal_TS[None] & own_BTS)[:, None]
    out_BTHE = jax.nn.dot_product_attention(
        q_BTHE, k_BSKE, v_BSKE, mask=seen_B1TS, scale=1.0, implementation=implementation
    )
    return jnp.moveaxis(out_BTHE[:, :T], 2, 1).reshape(B, K, M, T, E)
