"""Teacher-forced scores: log-probs, entropies and values of given tokens.

Shape letters beside those of `remix_jax.types`: C slots of a piece of time, n pieces of time,
W entries of a piece of the vocabulary, U pieces of the vocabulary, J devices that share it.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from remix_jax.models.decoder import Decoder
from remix_jax.models.lora import by_layer
from remix_jax.models.packing import Pass
from remix_jax.models.products import einsum
from remix_jax.sharding import ROWS, constrain, in_use
from remix_jax.types import positions

_NEVER = -1e30  # logit of an entry that only fills up a piece; finite, so that 0 * it is 0


class TokenScores(NamedTuple):
    """Per slot that predicts a token."""

    logp_BT: jax.Array  # natural log, at the sampling temperature
    entropy_BT: jax.Array  # nats, of the distribution that the token was one outcome of


def token_logps(
    model: Decoder, params: dict, tokens_BT: jax.Array, mask_BT: jax.Array
) -> jax.Array:
    """log p(token t | real tokens before it), [B, T]; 0 where there is no real token before.

    `mask_BT` marks the real tokens; padding may be left or right.
    """
    real_BT = mask_BT > 0
    inputs = (tokens_BT, positions(real_BT), real_BT)
    x_BTD = model.apply({"params": params}, *inputs, method="hidden")
    logp_BT = _scores(model, params, x_BTD[:, :-1], tokens_BT[:, 1:], 1.0).logp_BT
    scored_BT = real_BT[:, 1:] & real_BT[:, :-1]
    return jnp.pad(jnp.where(scored_BT, logp_BT, 0.0), ((0, 0), (1, 0)))


# Jitted, as several models score rows in one program: traced once for all.
@partial(jax.jit, static_argnums=(0, 3))
def score_responses(model: Decoder, params: dict, held: Pass, temperature: float) -> TokenScores:
    """Log-probs and entropies of the response tokens, at the slots of buffers that predict them.

    [N, T] for `packing.to_rows`; garbage at slots that predict none.

    The distribution is softmax(logits / temperature) over the full vocabulary, the sampler's before
    any truncation, so that a fresh row's ratio is 1.
    """
    x_NTD = _states_before_tokens(model, params, held)
    return _scores(model, params, x_NTD, held.next_NT, temperature)


@partial(jax.jit, static_argnums=0)
def score_values(critic: Decoder, params: dict, held: Pass) -> jax.Array:
    """V(s_t), likewise: s_t is everything before response token t."""
    x_NTD = _states_before_tokens(critic, params, held)
    return critic.apply({"params": params}, x_NTD, method="project")


def _states_before_tokens(model, params, held: Pass):
    """Final hidden states [N, T, D] at the last T slots."""
    params = by_layer(params)
    inputs = (held.tokens_NS, held.positions_NS, held.segments_NS)
    return model.apply({"params": params}, *inputs, method="hidden", last=held.next_NT.shape[1])


def _scores(model, params, x_BTD, tokens_BT, temperature: float) -> TokenScores:
    """Of tokens, given the final hidden states that predict them: by all logits, or in pieces."""
    execution, T, V = model.config.execution, tokens_BT.shape[1], model.config.vocab_size
    if 0 < execution.logit_slots < T or 0 < execution.logit_entries < V:
        head_DV = model.apply({"params": params}, method="head_weights")
        mesh = in_use()
        shards = 1 if mesh is None else mesh.shape["tensor"]
        pieces = (execution.logit_slots, execution.logit_entries, shards)
        dtype = model.config.dtype
        return TokenScores(*logp_and_entropy(x_BTD, head_DV, tokens_BT, temperature, dtype, pieces))
    logits_BTV = model.apply({"params": params}, x_BTD, method="project")
    if temperature != 1.0:
        logits_BTV = logits_BTV / temperature
    shifted_BTV = logits_BTV - lax.stop_gradient(logits_BTV.max(axis=-1, keepdims=True))
    exp_BTV = jnp.exp(shifted_BTV)
    total_BT = exp_BTV.sum(axis=-1)
    log_total_BT = jnp.log(total_BT)
    # The token's logit comes by a masked sum: it fuses into the pass over the vocabulary that the
    # normaliser makes anyway, shards with it, and its gradient is no scatter.
    hit_BTV = lax.broadcasted_iota(jnp.int32, logits_BTV.shape, 2) == tokens_BT[..., None]
    chosen_BT = jnp.where(hit_BTV, shifted_BTV, 0.0).sum(axis=-1)
    entropy_BT = log_total_BT - (exp_BTV * shifted_BTV).sum(axis=-1) / total_BT
    return TokenScores(chosen_BT - log_total_BT, entropy_BT)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def logp_and_entropy(
    x_BTD: jax.Array,
    head_DV: jax.Array,
    tokens_BT: jax.Array,
    temperature: float,
    dtype: str,
    pieces: tuple[int, int, int],
) -> tuple[jax.Array, jax.Array]:
    """log softmax(x head / temperature) at the tokens, and the entropy in nats, both [B, T].

    With log p = l - log Z:  H = log Z - sum p l;  d logp / dl = [v = token] - p;
    dH / dl = -p (log p + H). There is nowhere, forward or backward, an array of all tokens by all
    of the vocabulary: logits of a piece are summed up and dropped, and made again for the gradient.

    Args:
      x_BTD: final hidden states, float32; so are all sums.
      dtype: of the operands of the products.
      pieces: slots of time and entries of the vocabulary, as many logits of each row exist at
        once (0: all of them); and devices that share the vocabulary, each piece taking from each.
    """
    return _forward(x_BTD, head_DV, tokens_BT, temperature, dtype, pieces)[0]


def _forward(x_BTD, head_DV, tokens_BT, temperature, dtype, pieces):
    T, V = tokens_BT.shape[1], head_DV.shape[1]
    head_DJUW = _by_piece(head_DV.astype(dtype), pieces)
    U = head_DJUW.shape[2]

    def of_slots(_, part):
        x_BCD, tokens_BC = part

        def add(sums, u):
            """Sums over the vocabulary so far, with one more piece; `largest` is taken out."""
            largest_BC, total_BC, moment_BC, chosen_BC = sums
            logits_BCW, entry_W = _logits(x_BCD, head_DJUW, u, temperature, dtype, V)
            new_BC = jnp.maximum(largest_BC, logits_BCW.max(axis=-1))
            shifted_BCW = logits_BCW - new_BC[..., None]
            exp_BCW = jnp.exp(shifted_BCW)
            drop_BC = largest_BC - new_BC
            scale_BC = jnp.exp(drop_BC)
            moment_BC = (moment_BC + total_BC * drop_BC) * scale_BC
            hit_BCW = entry_W == tokens_BC[..., None]
            return (
                new_BC,
                total_BC * scale_BC + exp_BCW.sum(axis=-1),  # sum exp(l - largest)
                moment_BC + (exp_BCW * shifted_BCW).sum(axis=-1),  # the same times l - largest
                chosen_BC + jnp.where(hit_BCW, logits_BCW, 0.0).sum(axis=-1),
            ), None

        nothing_BC = jnp.zeros(tokens_BC.shape)
        start = (nothing_BC + _NEVER, nothing_BC, nothing_BC, nothing_BC)
        return None, _scan(add, start, jnp.arange(U))[0]

    x_BTD = constrain(x_BTD, ROWS)
    parts = _in_time(x_BTD, pieces[0]), _in_time(tokens_BT, pieces[0])
    sums = (_together(s_nBC, T) for s_nBC in _scan(of_slots, None, parts)[1])
    largest_BT, total_BT, moment_BT, chosen_BT = sums
    log_total_BT = jnp.log(total_BT)
    entropy_BT = log_total_BT - moment_BT / total_BT
    log_z_BT = largest_BT + log_total_BT
    saved = (x_BTD, head_DV, tokens_BT, log_z_BT, entropy_BT)
    return (chosen_BT - log_z_BT, entropy_BT), saved


def _backward(temperature, dtype, pieces, saved, cotangents):
    x_BTD, head_DV, tokens_BT, log_z_BT, entropy_BT = saved
    T, (D, V) = tokens_BT.shape[1], head_DV.shape
    head_DJUW = _by_piece(head_DV.astype(dtype), pieces)
    per_slot = (x_BTD, tokens_BT, log_z_BT, entropy_BT, *cotangents)
    parts = tuple(_in_time(x, pieces[0]) for x in per_slot)

    def of_entries(carry, u):
        dx_nBCD, dhead_DJUW = carry

        def of_slots(dpiece_DJW, part):
            x_BCD, tokens_BC, log_z_BC, entropy_BC, dlogp_BC, dentropy_BC = part
            logits_BCW, entry_W = _logits(x_BCD, head_DJUW, u, temperature, dtype, V)
            logp_BCW = logits_BCW - log_z_BC[..., None]
            hit_BCW = entry_W == tokens_BC[..., None]
            excess_BCW = logp_BCW + entropy_BC[..., None]
            pull_BCW = dlogp_BC[..., None] + dentropy_BC[..., None] * excess_BCW
            push_BCW = jnp.where(hit_BCW, dlogp_BC[..., None], 0.0)
            dlogits_BCW = (push_BCW - jnp.exp(logp_BCW) * pull_BCW) / temperature
            dx_BCD = einsum("bcw,dw->bcd", dlogits_BCW, _piece(head_DJUW, u), dtype)
            dw_DX = einsum("bcd,bcw->dw", x_BCD, dlogits_BCW, dtype)  # X = J W
            # First summed, then cut, as in `products.matmul`; of three dimensions the TPU's
            # compiler would make no reduce-scatter.
            dw_DX = constrain(constrain(dw_DX, None, "tensor"), "fsdp", "tensor")
            return dpiece_DJW + dw_DX.reshape(dpiece_DJW.shape), constrain(dx_BCD, ROWS)

        dpiece_DJW, more_nBCD = _scan(of_slots, jnp.zeros_like(dhead_DJUW[:, :, 0]), parts)
        return (dx_nBCD + more_nBCD, dhead_DJUW.at[:, :, u].set(dpiece_DJW)), None

    start = (jnp.zeros(parts[0].shape), jnp.zeros(head_DJUW.shape))
    (dx_nBCD, dhead_DJUW), _ = _scan(of_entries, start, jnp.arange(head_DJUW.shape[2]))
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


def _by_piece(head_DV, pieces: tuple[int, int, int]):
    """[D, V] -> [D, J, U, W], with columns of zeros up to whole pieces.

    A piece `[:, :, u]` has W entries of every device's share: none are moved between devices.
    """
    (D, V), (_, entries, shards) = head_DV.shape, pieces
    share = -(-V // shards)
    count = -(-share * shards // entries) if entries else 1
    width = -(-share // count)
    head_DV = jnp.pad(head_DV, ((0, 0), (0, shards * count * width - V)))
    return constrain(head_DV.reshape(D, shards, count, width), "fsdp", "tensor")


def _scan(body, carry, parts):
    """lax.scan, without a loop where there is one part."""
    return lax.scan(body, carry, parts, unroll=jax.tree.leaves(parts)[0].shape[0] == 1)


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
