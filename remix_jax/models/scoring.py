"""Teacher-forced scores: log-probs, entropies and values of given tokens."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from remix_jax import sharding
from remix_jax.models.decoder import Decoder
from remix_jax.models.head import Pieces, logp_and_entropy
from remix_jax.sharding import by_rows
from remix_jax.types import FreshRows, positions, token_mask


class TokenScores(NamedTuple):
    """Per response token."""

    logp_BT: jax.Array  # natural log, at the sampling temperature
    entropy_BT: jax.Array  # nats, of the distribution that the token was one outcome of


def token_logps(
    model: Decoder, params: dict, tokens_BT: jax.Array, mask_BT: jax.Array
) -> jax.Array:
    """log p(token t | real tokens before it), [B, T]; 0 where there is no real token before.

    Args:
      model, params: as `huggingface.load` returns them.
      tokens_BT: any padding, left or right.
      mask_BT: marks real tokens.
    """
    real_BT = mask_BT > 0
    inputs = (tokens_BT, positions(real_BT), real_BT)
    x_BTD = model.apply({"params": params}, *inputs, method="hidden")
    logp_BT = _scores(model, params, x_BTD[:, :-1], tokens_BT[:, 1:], 1.0).logp_BT
    scored_BT = real_BT[:, 1:] & real_BT[:, :-1]
    return jnp.pad(jnp.where(scored_BT, logp_BT, 0.0), ((0, 0), (1, 0)))


def score_responses(
    model: Decoder, params: dict, rows: FreshRows, temperature: float
) -> TokenScores:
    """Log-probs and entropies of the response tokens [B, T]; garbage beyond a response's length.

    The distribution is softmax(logits / temperature) over the full vocabulary, the sampler's before
    any truncation, so that a fresh row's ratio is 1.
    """
    x_BTD = _states_before_tokens(model, params, rows)
    tokens_BT = rows.tokens_BS[:, -rows.response_slots :]
    return _scores(model, params, x_BTD, tokens_BT, temperature)


def score_values(critic: Decoder, params: dict, rows: FreshRows) -> jax.Array:
    """V(s_t) [B, T]: s_t is everything before response token t; garbage beyond the length."""
    x_BTD = _states_before_tokens(critic, params, rows)
    return critic.apply({"params": params}, x_BTD, method="project")


def _states_before_tokens(model, params, rows: FreshRows):
    """Final hidden states [B, T, D] at the slots that predict the response tokens.

    Those are P - 1 .. S - 2: the last token of a row predicts nothing and is left out.
    """
    mask_BS, tokens_BS = by_rows((token_mask(rows)[:, :-1], rows.tokens_BS[:, :-1]))
    inputs = (tokens_BS, positions(mask_BS), mask_BS)
    return model.apply({"params": params}, *inputs, method="hidden", last=rows.response_slots)


def _scores(model, params, x_BTD, tokens_BT, temperature: float) -> TokenScores:
    """Of tokens, given the final hidden states that predict them: by all logits, or in pieces."""
    execution, T, V = model.config.execution, tokens_BT.shape[1], model.config.vocab_size
    cut = 0 < execution.logit_slots < T or 0 < execution.logit_entries < V
    if cut:
        head_DV = model.apply({"params": params}, method="head_weights")
        mesh = sharding.in_use()
        shards = 1 if mesh is None else mesh.shape["tensor"]
        pieces = Pieces(execution.logit_slots, execution.logit_entries, shards)
        dtype = model.config.dtype
        scores = logp_and_entropy(x_BTD, head_DV, tokens_BT, temperature, dtype, pieces)
        return TokenScores(*scores)
    logits_BTV = model.apply({"params": params}, x_BTD, method="project")
    if temperature != 1.0:
        logits_BTV = logits_BTV / temperature
    return _select(logits_BTV, tokens_BT)


def _select(logits_BTV, tokens_BT) -> TokenScores:
    """Log-softmax at the tokens, and the entropy.

    The token's logit comes by a masked sum: it fuses into the pass over the vocabulary that the
    normaliser makes anyway, shards with it, and its gradient is no scatter.
    """
    shifted = logits_BTV - jax.lax.stop_gradient(logits_BTV.max(axis=-1, keepdims=True))
    exp = jnp.exp(shifted)
    total_BT = exp.sum(axis=-1)
    log_total_BT = jnp.log(total_BT)
    vocabulary = jax.lax.broadcasted_iota(jnp.int32, logits_BTV.shape, 2)
    chosen = jnp.where(vocabulary == tokens_BT[..., None], shifted, 0.0).sum(axis=-1)
    entropy_BT = log_total_BT - (exp * shifted).sum(axis=-1) / total_BT
    return TokenScores(chosen - log_total_BT, entropy_BT)
