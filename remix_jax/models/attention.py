"""Attention of whole rows behind one function, by the kernel that suits the device.

    plain    batched products with gradients by hand (`products.attention`); every score in memory
    splash   JAX's TPU kernel: scores stay on the chip, blocks above the diagonal are skipped
    cudnn    `jax.nn.dot_product_attention` with cuDNN's fused kernel, for GPUs

They agree within rounding at real tokens; at padding all are finite and mean nothing.

Shape letters: as in `products`; H = K * M query heads. The T queries are those of the slots from
S_real - T on, where S_real leaves out what `padded_slots` added.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as splash_kernel,
)
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask
from jax.sharding import PartitionSpec

from remix_jax import sharding
from remix_jax.models import products

LONG = 1024  # slots from which a kernel pays: shorter rows are attended to plainly
MASKED = -1e30  # finite: a query that may see nothing gets uniform weights, never NaN
_BLOCK = {"plain": 1, "splash": 512, "cudnn": 64}  # slots come in multiples of it
_LANES = 128  # of a TPU's vector registers


def chosen(platform: str, dtype: str) -> str:
    """The kernel for a platform ("cpu", "gpu", "tpu"); cuDNN's takes no float32."""
    if platform == "tpu":
        return "splash"
    return "cudnn" if platform == "gpu" and dtype == "bfloat16" else "plain"


def for_slots(kind: str, slots: int) -> str:
    """What attends to rows of so many slots."""
    return kind if slots >= LONG else "plain"


def padded_slots(kind: str, slots: int) -> int:
    """Slots that the kernel asks for: the next multiple of its block."""
    return slots + -slots % _BLOCK[kind]


def visibility(kind: str, mask_BS: jax.Array) -> jax.Array:
    """What `attend` needs to know of the mask, made once for all layers: a bias, or the mask.

    A slot sees itself and the real slots before it.
    """
    if kind != "plain":
        return (mask_BS != 0).astype(jnp.int32)
    S = mask_BS.shape[1]
    causal_SS = jnp.tril(jnp.ones((S, S), bool))
    return jnp.where(causal_SS[None] & (mask_BS != 0)[:, None], 0.0, MASKED)


def attend(
    kind: str,
    q_BKMTE: jax.Array,
    k_BKSE: jax.Array,
    v_BKSE: jax.Array,
    visible: jax.Array,
    first: int,
    dtype: str,
) -> jax.Array:
    """softmax(q k^T) v over what each query may see, float32 [B, K, M, T, E].

    Args:
      q_BKMTE: scaled by 1 / sqrt(E) already.
      visible: as `visibility` gives it, for that kind (of `execution.ATTENTIONS`).
      first: slot of the first query (static).
      dtype: of the operands; sums are float32.
    """
    if kind == "plain":
        B, K, M, T, E = q_BKMTE.shape
        bias_BTS = visible[:, first : first + T]
        q_BKXE = q_BKMTE.reshape(B, K, M * T, E)
        out_BKXE = products.attention(q_BKXE, k_BKSE, v_BKSE, bias_BTS, dtype)
        return out_BKXE.reshape(B, K, M, T, E)
    q, k, v = (x.astype(dtype) for x in (q_BKMTE, k_BKSE, v_BKSE))
    if kind == "splash":
        return _splash_on_mesh(q, k, v, visible, first).astype(jnp.float32)
    return cudnn(q, k, v, visible, first).astype(jnp.float32)


def _splash_on_mesh(q_BKMTE, k_BKSE, v_BKSE, real_BS, first: int):
    """`splash`; on a mesh every device for its own rows and key heads."""
    call = functools.partial(splash, first=first)
    given: tuple[jax.Array, ...] = (q_BKMTE, k_BKSE, v_BKSE, real_BS)
    mesh = sharding.in_use()
    if mesh is None:
        return call(*given)
    B = q_BKMTE.shape[0]
    missing = -B % sharding.row_shards(mesh)  # every device gets as many rows
    if missing:
        given = tuple(jnp.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1)) for x in given)
    rows, heads = PartitionSpec(sharding.ROWS), PartitionSpec(sharding.ROWS, "tensor")
    mapped = jax.shard_map(
        call, in_specs=(heads, heads, heads, rows), out_specs=heads, check_vma=False
    )
    return mapped(*given)[:B]


def splash(q_BKMTE, k_BKSE, v_BKSE, real_BS, first: int, interpret: bool = False):
    """The TPU kernel on one device's share; real and padding slots are segments of their own."""
    B, K, M, T, E = q_BKMTE.shape
    S = k_BKSE.shape[2]
    rows, width = -T % _block(T), -E % _LANES
    q = jnp.pad(q_BKMTE.reshape(B, K * M, T, E), ((0, 0), (0, 0), (0, rows), (0, width)))
    k, v = (jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, width))) for x in (k_BKSE, v_BKSE))
    q_real_BT = jnp.pad(real_BS[:, first : first + T], ((0, 0), (0, rows)))
    kernel = _splash_kernel(K * M, T + rows, S, first, interpret)
    segments = splash_kernel.SegmentIds(q=q_real_BT, kv=real_BS)
    out_BHTE = jax.vmap(kernel)(q, k, v, segments)
    return out_BHTE[:, :, :T, :E].reshape(B, K, M, T, E)


def _block(slots: int) -> int:
    """Slots that the kernel takes at once."""
    return min(_BLOCK["splash"], slots + -slots % _LANES)


def _splash_kernel(heads: int, T: int, S: int, first: int, interpret: bool):
    mask = splash_mask.CausalMask((T, S), offset=first)
    q, kv = _block(T), _block(S)
    blocks = splash_kernel.BlockSizes(
        block_q=q,
        block_kv=kv,
        block_kv_compute=kv,
        block_q_dkv=q,
        block_kv_dkv=kv,
        block_kv_dkv_compute=kv,
        block_q_dq=q,
        block_kv_dq=kv,
    )
    return splash_kernel.make_splash_mha(
        splash_mask.MultiHeadMask([mask] * heads),
        head_shards=1,
        q_seq_shards=1,
        block_sizes=blocks,
        interpret=interpret,
    )


def cudnn(q_BKMTE, k_BKSE, v_BKSE, real_BS, first: int, implementation: Any = "cudnn"):
    """cuDNN's fused kernel; "xla" is the same call without it."""
    B, K, M, T, E = q_BKMTE.shape
    S = k_BKSE.shape[2]
    rows = -T % _BLOCK["cudnn"]
    q_BTHE = jnp.moveaxis(q_BKMTE.reshape(B, K * M, T, E), 1, 2)
    q_BTHE = jnp.pad(q_BTHE, ((0, 0), (0, rows), (0, 0), (0, 0)))
    k_BSKE, v_BSKE = jnp.moveaxis(k_BKSE, 1, 2), jnp.moveaxis(v_BKSE, 1, 2)
    slot_T, slot_S = first + jnp.arange(T + rows), jnp.arange(S)
    causal_TS = slot_T[:, None] >= slot_S[None, :]
    seen_B1TS = (causal_TS[None] & (real_BS != 0)[:, None])[:, None]
    out_BTHE = jax.nn.dot_product_attention(
        q_BTHE, k_BSKE, v_BSKE, mask=seen_B1TS, scale=1.0, implementation=implementation
    )
    return jnp.moveaxis(out_BTHE[:, :T], 2, 1).reshape(B, K, M, T, E)
