"""Log-probs and entropies from final hidden states, in pieces of the vocabulary and of time.

Nowhere, forward or backward, is there an array of all tokens by all of the vocabulary: logits of
one piece are made, summed up and dropped, and made again for the gradient.

Shape letters beside those of `remix_jax.types`: C slots of a piece of time, n pieces of time,
W entries of a piece of the vocabulary, U pieces of the vocabulary, J devices that share it.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from remix_jax.models.products import einsum
from remix_jax.sharding import ROWS, constrain

_NEVER = -1e30  # logit of an entry that only fills up a piece; finite, so that 0 * it is 0


class Pieces(NamedTuple):
    """How the work is cut (static); 0 stands for all of it at once."""

    slots: int  # of time
    entries: int  # of the vocabulary
    shards: int = 1  # devices among which the vocabulary is spread: every piece takes from each


class _Running(NamedTuple):
    """Sums over the vocabulary so far, as multiples of exp(largest)."""

    largest: jax.Array
    total: jax.Array  # sum exp(l - largest)
    moment: jax.Array  # sum exp(l - largest) (l - largest)
    chosen: jax.Array  # logit of the token itself


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def logp_and_entropy(
    x_BTD: jax.Array,
    head_DV: jax.Array,
    tokens_BT: jax.Array,
    temperature: float,
    dtype: str,
    pieces: Pieces,
) -> tuple[jax.Array, jax.Array]:
    """log softmax(x head / temperature) at the tokens, and the entropy in nats, both [B, T].

    With log p = l - log Z:  H = log Z - sum p l;  d logp / dl = [v = token] - p;
    dH / dl = -p (log p + H).

    Args:
      x_BTD: final hidden states, float32; so are all sums.
      dtype: of the operands of the products.
      pieces: at most B * pieces.slots * pieces.entries logits exist at once.
    """
    return _forward(x_BTD, head_DV, tokens_BT, temperature, dtype, pieces)[0]


def _forward(x_BTD, head_DV, tokens_BT, temperature, dtype, pieces):
    head_DJUW = _by_piece(head_DV.astype(dtype), pieces)

    def of_slots(x_BCD, tokens_BC):
        def add(running, u):
            logits_BCW, entry_W = _logits(x_BCD, head_DJUW, u, temperature, dtype, head_DV.shape[1])
            return _grown(running, logits_BCW, entry_W, tokens_BC), None

        nothing_BC = jnp.zeros(tokens_BC.shape)
        start = _Running(nothing_BC + _NEVER, nothing_BC, nothing_BC, nothing_BC)
        return _each(add, start, head_DJUW.shape[2])[0]

    x_BTD = constrain(x_BTD, ROWS)
    parts = _in_time(x_BTD, pieces.slots), _in_time(tokens_BT, pieces.slots)
    _, sums = _over_time(lambda _, part: (None, of_slots(*part)), None, parts)
    running = jax.tree.map(lambda s_nBC: _together(s_nBC, tokens_BT.shape[1]), sums)
    log_total_BT = jnp.log(running.total)
    entropy_BT = log_total_BT - running.moment / running.total
    log_z_BT = running.largest + log_total_BT
    saved = (x_BTD, head_DV, tokens_BT, log_z_BT, entropy_BT)
    return (running.chosen - log_z_BT, entropy_BT), saved


def _grown(running: _Running, logits_BCW, entry_W, tokens_BC) -> _Running:
    """The sums with one more piece of the vocabulary."""
    largest_BC = jnp.maximum(running.largest, logits_BCW.max(axis=-1))
    shifted_BCW = logits_BCW - largest_BC[..., None]
    exp_BCW = jnp.exp(shifted_BCW)
    drop_BC = running.largest - largest_BC
    scale_BC = jnp.exp(drop_BC)
    hit_BCW = entry_W == tokens_BC[..., None]
    return _Running(
        largest_BC,
        running.total * scale_BC + exp_BCW.sum(axis=-1),
        (running.moment + running.total * drop_BC) * scale_BC
        + (exp_BCW * shifted_BCW).sum(axis=-1),
        running.chosen + jnp.where(hit_BCW, logits_BCW, 0.0).sum(axis=-1),
    )


def _backward(temperature, dtype, pieces, saved, cotangents):
    x_BTD, head_DV, tokens_BT, log_z_BT, entropy_BT = saved
    T, (D, V) = tokens_BT.shape[1], head_DV.shape
    head_DJUW = _by_piece(head_DV.astype(dtype), pieces)
    per_slot = (tokens_BT, log_z_BT, entropy_BT, *cotangents)
    parts = tuple(_in_time(x, pieces.slots) for x in (x_BTD, *per_slot))

    def of_entries(carry, u):
        dx_nBCD, dhead_DJUW = carry

        def of_slots(dpiece_DJW, part):
            x_BCD, tokens_BC, log_z_BC, entropy_BC, dlogp_BC, dentropy_BC = part
            logits_BCW, entry_W = _logits(x_BCD, head_DJUW, u, temperature, dtype, V)
            logp_BCW = logits_BCW - log_z_BC[..., None]
            hit_BCW = entry_W == tokens_BC[..., None]
            pull_BCW = dlogp_BC[..., None] + dentropy_BC[..., None] * (
                logp_BCW + entropy_BC[..., None]
            )
            dlogits_BCW = (
                jnp.where(hit_BCW, dlogp_BC[..., None], 0.0) - jnp.exp(logp_BCW) * pull_BCW
            )
            dlogits_BCW = dlogits_BCW / temperature
            dx_BCD = einsum("bcw,dw->bcd", dlogits_BCW, _piece(head_DJUW, u), dtype)
            dw_DJW = einsum("bcd,bcw->dw", x_BCD, dlogits_BCW, dtype).reshape(dpiece_DJW.shape)
            # First summed, then cut, as in `products.matmul`.
            dw_DJW = constrain(constrain(dw_DJW, None, "tensor"), "fsdp", "tensor")
            return dpiece_DJW + dw_DJW, constrain(dx_BCD, ROWS)

        dpiece_DJW = jnp.zeros_like(dhead_DJUW[:, :, 0])
        dpiece_DJW, more_nBCD = _over_time(of_slots, dpiece_DJW, parts)
        return (dx_nBCD + more_nBCD, dhead_DJUW.at[:, :, u].set(dpiece_DJW)), None

    start = (jnp.zeros(parts[0].shape), jnp.zeros(head_DJUW.shape))
    (dx_nBCD, dhead_DJUW), _ = _each(of_entries, start, head_DJUW.shape[2])
    dhead_DV = dhead_DJUW.reshape(D, -1)[:, :V].astype(head_DV.dtype)
    return _together(dx_nBCD, T), dhead_DV, None


logp_and_entropy.defvjp(_forward, _backward)


def _logits(x_BCD, head_DJUW, u, temperature, dtype, V):
    """Logits of piece `u` of the vocabulary, and which entries these are: [B, C, J W], [J W]."""
    _, J, U, W = head_DJUW.shape
    logits_BCW = einsum("bcd,dw->bcw", x_BCD, _piece(head_DJUW, u), dtype) / temperature
    logits_BCW = constrain(logits_BCW, ROWS, None, "tensor")
    entry_JW = (jnp.arange(J)[:, None] * U + u) * W + jnp.arange(W)[None, :]
    entry_1W = entry_JW.reshape(1, 1, -1)
    return jnp.where(entry_1W < V, logits_BCW, _NEVER), entry_1W


def _piece(head_DJUW, u):
    """Piece `u` [D, J W]: on a mesh gathered for this use, each device keeping its entries."""
    piece_DJW = lax.dynamic_index_in_dim(head_DJUW, u, axis=2, keepdims=False)
    return constrain(piece_DJW, None, "tensor").reshape(head_DJUW.shape[0], -1)


def _by_piece(head_DV, pieces: Pieces):
    """[D, V] -> [D, J, U, W], with columns of zeros up to whole pieces.

    A piece is `[:, :, u]`: a run of W entries from every device's own share, so that a vocabulary
    which is spread over devices is not moved between them.
    """
    D, V = head_DV.shape
    share = -(-V // pieces.shards)
    count = -(-share * pieces.shards // pieces.entries) if pieces.entries else 1
    width = -(-share // count)
    padding = pieces.shards * count * width - V
    if padding:
        head_DV = jnp.pad(head_DV, ((0, 0), (0, padding)))
    head_DJUW = head_DV.reshape(D, pieces.shards, count, width)
    return constrain(head_DJUW, "fsdp", "tensor")


def _each(body, carry, count: int):
    """A scan over 0 .. count - 1, without a loop where there is one."""
    return body(carry, 0) if count == 1 else lax.scan(body, carry, jnp.arange(count))


def _over_time(body, carry, parts):
    """A scan over the pieces of time, without a loop where there is one."""
    if jax.tree.leaves(parts)[0].shape[0] > 1:
        return lax.scan(body, carry, parts)
    carry, out = body(carry, jax.tree.map(lambda x: x[0], parts))
    return carry, jax.tree.map(lambda x: x[None], out)


def _in_time(x, slots: int):
    """[B, T, ...] -> [n, B, C, ...], zeros behind the last slot."""
    T = x.shape[1]
    C = min(slots, T) if slots else T
    n = -(-T // C)
    x = jnp.pad(x, [(0, 0), (0, n * C - T)] + [(0, 0)] * (x.ndim - 2))
    return jnp.moveaxis(x.reshape(x.shape[0], n, C, *x.shape[2:]), 1, 0)


def _together(x_nBC, T: int):
    """The inverse of `_in_time`."""
    x_BnC = jnp.moveaxis(x_nBC, 0, 1)
    return x_BnC.reshape(x_BnC.shape[0], -1, *x_BnC.shape[3:])[:, :T]
