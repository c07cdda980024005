"""Sampling: one compiled prefill + decode program that ends when every row has ended."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from remix_jax.models.decoder import Decoder
from remix_jax.types import positions

_SEGMENTS = 8
_SEGMENT_UNIT = 8


@dataclasses.dataclass(frozen=True)
class SamplerSettings:
    """softmax(logits / temperature), cut by top-k, then top-p, then min-p, renormalised.

    Each cut works on what the one before left, and always leaves the most probable token.
    temperature 0 is greedy; its log-probs are those of temperature 1.
    """

    temperature: float = 1.0
    top_k: int = 0  # keep the k most probable tokens (and ties of the last); 0: off
    top_p: float = 1.0  # keep the fewest tokens whose probabilities reach p; 1: off
    min_p: float = 0.0  # keep tokens of at least min_p times the largest probability; 0: off

    @property
    def truncates(self) -> bool:
        """Whether any cut is on."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0


class Sampled(NamedTuple):
    """Responses, right-padded, behind their left-padded prompts."""

    tokens_BS: jax.Array  # int32, S = P + T
    prompt_len_B: jax.Array  # int32
    response_len_B: jax.Array  # int32, the end token included
    logp_BT: jax.Array  # over the full vocabulary at the temperature; 0 beyond the length
    sampled_logp_BT: jax.Array  # under the truncated distribution really drawn from
    ended_B: jax.Array  # bool: an end token came within the limit
    steps: jax.Array  # int32, decode steps run


class _Loop(NamedTuple):
    """The carry of the decode loop at response slot t: token t is about to be drawn."""

    t: jax.Array
    x_BD: jax.Array  # final hidden state that predicts token t
    cache: tuple
    tokens_BT: jax.Array
    logp_BT: jax.Array
    sampled_logp_BT: jax.Array
    length_B: jax.Array
    live_B: jax.Array


@functools.partial(
    jax.jit,
    static_argnames=("model", "group_size", "max_new_tokens", "settings", "eos_ids", "pad_id"),
)
def sample(
    model: Decoder,
    params: dict,
    prompts_QP: jax.Array,
    prompt_len_Q: jax.Array,
    row_ids_B: jax.Array,
    active_B: jax.Array,
    key: jax.Array,
    *,
    group_size: int,
    max_new_tokens: int,
    settings: SamplerSettings,
    eos_ids: tuple[int, ...],
    pad_id: int,
) -> Sampled:
    """group_size responses to each prompt, B = Q * group_size; row b answers prompt b // group_size.

    A prompt is prefilled once; its rows share the result. Row b draws token t with the key
    fold_in(fold_in(key, row_ids[b]), t), so a response depends on its prompt and its id, not on its
    neighbours, the batch size or padding.

    Args:
      prompts_QP: left-padded token ids.
      prompt_len_Q: real tokens of each prompt.
      row_ids_B: stream number of each row.
      active_B: False: the row is an empty slot and gets no response.
      key: of this batch.
      group_size, max_new_tokens, settings, eos_ids, pad_id: static.
    """
    P = prompts_QP.shape[1]
    mask_QP = jnp.arange(P)[None, :] >= P - prompt_len_Q[:, None]
    x_QD, cache = model.apply(
        {"params": params}, prompts_QP, positions(mask_QP), mask_QP, method="prefill"
    )

    def members(x):
        return jnp.repeat(x, group_size, axis=0)

    prompt_mask_BP, prompt_len_B = members(mask_QP), members(prompt_len_Q)
    keys_B = jax.vmap(lambda row: jax.random.fold_in(key, row))(row_ids_B)
    B, T = row_ids_B.shape[0], max_new_tokens
    loop = _Loop(
        t=jnp.zeros((), jnp.int32),
        x_BD=members(x_QD),
        cache=jax.tree.map(members, cache),
        tokens_BT=jnp.full((B, T), pad_id, jnp.int32),
        logp_BT=jnp.zeros((B, T)),
        sampled_logp_BT=jnp.zeros((B, T)),
        length_B=jnp.zeros((B,), jnp.int32),
        live_B=active_B,
    )

    def body(loop: _Loop) -> _Loop:
        token_B, logp_B, sampled_logp_B = _draw(model, params, loop, keys_B, settings)
        token_B = jnp.where(loop.live_B, token_B, pad_id)

        def write(x_BT, x_B):
            x_B = jnp.where(loop.live_B, x_B, jnp.zeros_like(x_B))
            return jax.lax.dynamic_update_slice_in_dim(x_BT, x_B[:, None], loop.t, axis=1)

        seen_BS = _seen(prompt_mask_BP, loop)
        inputs = (token_B, prompt_len_B + loop.t, loop.cache, seen_BS, P + loop.t)
        x_BD, cache = model.apply({"params": params}, *inputs, method="decode")
        tokens_BT = jax.lax.dynamic_update_slice_in_dim(
            loop.tokens_BT, token_B[:, None], loop.t, axis=1
        )
        return _Loop(
            t=loop.t + 1,
            x_BD=x_BD,
            cache=cache,
            tokens_BT=tokens_BT,
            logp_BT=write(loop.logp_BT, logp_B),
            sampled_logp_BT=write(loop.sampled_logp_BT, sampled_logp_B),
            length_B=loop.length_B + loop.live_B,
            live_B=loop.live_B & ~_is_end(token_B, eos_ids),
        )

    # Each segment attends to a cache that is just long enough for it: no step pays for slots that
    # only later ones fill, and no step slices (copies) a longer cache.
    for end in _segment_ends(T):
        grown = P + end - loop.cache[0][0].shape[2]
        loop = loop._replace(cache=jax.tree.map(functools.partial(_grow, by=grown), loop.cache))
        loop = jax.lax.while_loop(lambda c, end=end: (c.t < end) & c.live_B.any(), body, loop)
    return Sampled(
        tokens_BS=jnp.concatenate([members(prompts_QP), loop.tokens_BT], axis=1),
        prompt_len_B=prompt_len_B,
        response_len_B=loop.length_B,
        logp_BT=loop.logp_BT,
        sampled_logp_BT=loop.sampled_logp_BT,
        ended_B=active_B & ~loop.live_B,
        steps=loop.t,
    )


def truncate(logits_BV: jax.Array, settings: SamplerSettings) -> jax.Array:
    """Logits with -inf at the tokens that `settings` cuts away (temperature already applied)."""
    if settings.top_k > 0:
        k = min(settings.top_k, logits_BV.shape[-1])
        least_B1 = jax.lax.top_k(logits_BV, k)[0][:, -1:]
        logits_BV = jnp.where(logits_BV >= least_B1, logits_BV, -jnp.inf)
    if settings.top_p < 1:
        ranked_BV = jnp.sort(logits_BV, axis=-1, descending=True)
        probability_BV = jax.nn.softmax(ranked_BV, axis=-1)
        before_BV = jnp.cumsum(probability_BV, axis=-1) - probability_BV
        kept_BV = before_BV < settings.top_p
        least_B1 = jnp.where(kept_BV, ranked_BV, jnp.inf).min(axis=-1, keepdims=True)
        logits_BV = jnp.where(logits_BV >= least_B1, logits_BV, -jnp.inf)
    if settings.min_p > 0:
        least_B1 = logits_BV.max(axis=-1, keepdims=True) + jnp.log(settings.min_p)
        logits_BV = jnp.where(logits_BV >= least_B1, logits_BV, -jnp.inf)
    return logits_BV


def _draw(model, params, loop: _Loop, keys_B, settings: SamplerSettings):
    """Token t of every row, with its log-prob in full and under the truncated distribution."""
    logits_BV = model.apply({"params": params}, loop.x_BD[:, None], method="project")[:, 0]
    if settings.temperature not in (0.0, 1.0):
        logits_BV = logits_BV / settings.temperature
    logp_BV = jax.nn.log_softmax(logits_BV, axis=-1)
    cut_BV = truncate(logp_BV, settings) if settings.truncates else logp_BV
    if settings.temperature == 0.0:
        token_B = cut_BV.argmax(axis=-1)
    else:
        # Gumbel-max: exact in the tails, where the cumulative sum of an inverse CDF is rounded.
        def noise(key):
            return jax.random.gumbel(jax.random.fold_in(key, loop.t), cut_BV.shape[1:])

        token_B = (cut_BV + jax.vmap(noise)(keys_B)).argmax(axis=-1)
    chosen_BV = jnp.arange(logp_BV.shape[-1])[None, :] == token_B[:, None]

    def pick(x_BV):
        return jnp.where(chosen_BV, x_BV, 0.0).sum(axis=-1)

    full_B = pick(logp_BV)
    if not settings.truncates:
        return token_B.astype(jnp.int32), full_B, full_B
    kept_B = jax.nn.logsumexp(cut_BV, axis=-1)
    return token_B.astype(jnp.int32), full_B, full_B - kept_B


def _seen(prompt_mask_BP, loop: _Loop):
    """Cache slots that the token at response slot t sees: the prompt, the responses up to it."""
    P, S = prompt_mask_BP.shape[1], loop.cache[0][0].shape[2]
    response_S = (jnp.arange(S) >= P) & (jnp.arange(S) <= P + loop.t)
    prompt_BS = jnp.pad(prompt_mask_BP, ((0, 0), (0, S - P)))
    return prompt_BS | response_S[None, :]


def _is_end(token_B, eos_ids):
    return functools.reduce(jnp.logical_or, [token_B == eos for eos in eos_ids])


def _segment_ends(T: int) -> list[int]:
    """Response slots at which the cache grows: at most _SEGMENTS, multiples of _SEGMENT_UNIT."""
    width = -(-T // (_SEGMENTS * _SEGMENT_UNIT)) * _SEGMENT_UNIT
    return [min(end, T) for end in range(width, T + width, width)]


def _grow(x_BKSE, by: int):
    return jnp.pad(x_BKSE, ((0, 0), (0, 0), (0, by), (0, 0)))
