"""Sampling: one compiled prefill + decode program that ends when every row has ended."""

import dataclasses
import functools
import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from remix_jax.models.decoder import Cache, Decoder
from remix_jax.sharding import ROWS, by_rows, constrain, in_use, places, row_shards
from remix_jax.types import positions

# The cache grows this many times at most, each time by a multiple of the unit: more segments attend
# to fewer empty slots but are compiled one by one. Beyond 4 the gain is under 2 %.
_SEGMENTS = 4
_SEGMENT_UNIT = 8


@dataclasses.dataclass(frozen=True)
class SamplerSettings:
    """softmax(logits / temperature), cut by top-k, then top-p, then min-p, and renormalised.

    Each cut works on what the one before left, renormalised; the most probable token always stays,
    and equals of the last one kept stay with it. temperature 0 is greedy: no cut applies, and
    log-probs are those of temperature 1.
    """

    temperature: float = 1.0
    top_k: int = 0  # keep the k most probable tokens; 0: off
    top_p: float = 1.0  # keep the fewest most probable tokens whose probabilities reach p; 1: off
    min_p: float = 0.0  # keep tokens of at least min_p times the largest probability; 0: off

    @property
    def truncates(self) -> bool:
        """Whether any cut is on."""
        return self.temperature > 0 and (self.top_k > 0 or self.top_p < 1 or self.min_p > 0)


class Sampled(NamedTuple):
    """Responses, right-padded, behind their left-padded prompts."""

    tokens_BS: jax.Array  # int32, S = P + T
    prompt_len_B: jax.Array  # int32
    response_len_B: jax.Array  # int32, the end token included
    behav_logp_BT: jax.Array  # over the full vocabulary at the temperature; 0 beyond the length
    sampled_logp_BT: jax.Array  # under the truncated distribution really drawn from
    loss_mask_BT: jax.Array  # float32: 1 at the tokens that the policy wrote, the end token too
    ended_B: jax.Array  # bool: an end token came within the limit
    steps: jax.Array  # int32: response slots run before every row had ended, of all waves


class Prompts(NamedTuple):
    """Q prompts, and the B rows that answer them: row b answers prompt b // group_size."""

    tokens_QP: np.ndarray | jax.Array  # int32, left-padded
    prompt_len_Q: np.ndarray | jax.Array  # int32, at least 1
    row_ids_B: np.ndarray | jax.Array  # int32: number of each row's random stream
    active_B: np.ndarray | jax.Array  # bool: False marks an empty slot: its response has length 0


@dataclasses.dataclass(frozen=True)
class Task:
    """What a sampler is made for."""

    prompts: int  # Q
    prompt_slots: int  # P
    group_size: int  # rows a prompt: B = Q * group_size
    response_slots: int  # T, the longest response, end token included
    settings: SamplerSettings
    eos_ids: tuple[int, ...]  # a response ends with the first of these, which belongs to it
    pad_id: int  # fills what is beyond a response's length; may be one of `eos_ids`

    @property
    def rows(self) -> int:  # B
        return self.prompts * self.group_size

    @property
    def slots(self) -> int:  # S
        return self.prompt_slots + self.response_slots


class Waves(NamedTuple):
    """`number` waves, one after the other, of `groups` groups each; the last may not be full."""

    number: int
    groups: int
    group_size: int  # rows that share a prefill: a group, or a part of one that has no room

    @property
    def rows(self) -> int:  # of a wave, empty slots included
        return self.groups * self.group_size


def in_waves(groups: int, group_size: int, slots: int, budget: int, shards: int = 1) -> Waves:
    """The fewest waves that a budget of cache allows, as equal as can be.

    Rows of a wave divide evenly over the devices, else what is drawn for them would move between
    devices at every token; so do prompts where there are enough, else their cache would.

    Args:
      groups, group_size: rows to each of so many prompts.
      slots: of a row's cache, prompt and response.
      budget: slots that one device holds, ValueError if it has no room for a row; 0: of all rows.
      shards: devices that rows are divided over.
    """

    def unit(groups: int, part: int) -> int:
        """What the groups of a wave are a multiple of."""
        return shards if groups >= shards else shards // math.gcd(shards, part)

    rows = groups * group_size
    on_device = budget // slots if budget else rows
    if on_device == 0:
        raise ValueError(f"{budget} slots have no room for a row of {slots}")
    # Spread over the devices, a part of n rows puts n / gcd(n, shards) rows on each at least.
    divisors = (n for n in range(group_size, 0, -1) if group_size % n == 0)
    part = next(n for n in divisors if n // math.gcd(n, shards) <= on_device)
    most = on_device * shards // part
    most -= most % unit(most, part)
    parts = rows // part
    number = -(-parts // most)
    each = -(-parts // number)
    return Waves(number, each + -each % unit(each, part), part)


@functools.partial(jax.jit, static_argnames=("model", "task"))
def sample(model: Decoder, params: dict, prompts: Prompts, key: jax.Array, task: Task) -> Sampled:
    """task.group_size responses to each prompt.

    A prompt is prefilled once and its rows share the result. Row b draws token t with the key
    fold_in(fold_in(key, row_ids_B[b]), t), so that a response depends on its prompt and its id, not
    on its neighbours, the batch size or the padding. Hence rows may be decoded in waves, one after
    the other within the program, as many at once as `execution.decode_tokens` has room for.
    """
    run = functools.partial(model.apply, {"params": _for_decoding(model, params)})
    budget, shards = model.config.execution.decode_tokens, row_shards(in_use())
    waves = in_waves(task.prompts, task.group_size, task.slots, budget, shards)
    wave = functools.partial(_wave, run, key, waves.group_size, task)
    filled = _filled(prompts, task.group_size, waves)
    if waves.number == 1:
        *padded, steps = wave(filled)
    else:
        parts = jax.tree.map(lambda x: x.reshape(waves.number, -1, *x.shape[1:]), filled)
        *of_waves, steps_W = jax.lax.map(wave, parts)
        padded, steps = [x.reshape(-1, *x.shape[2:]) for x in of_waves], steps_W.sum()
    return Sampled._make([*(x[: task.rows] for x in padded), steps])


def _for_decoding(model: Decoder, params: dict) -> dict:
    """Matrices in the dtype of their products, gathered over fsdp: once and not at every token."""

    def prepared(path, x):
        if path[-1].key != "kernel":  # an embedding's rows are looked up in its own dtype
            return x
        where, rounded = places([key.key for key in path], x.shape), x.astype(model.config.dtype)
        return rounded if where is None else constrain(rounded, *where.used)

    return jax.tree_util.tree_map_with_path(prepared, params)


def _filled(prompts: Prompts, group_size: int, waves: Waves) -> Prompts:
    """Prompts as often as they are prefilled, and empty slots up to whole waves."""
    prefills = group_size // waves.group_size

    def filled(x_N, copies: int, of_a_wave: int, mode: str):
        x_N = jnp.repeat(x_N, copies, axis=0) if copies > 1 else x_N
        missing = waves.number * of_a_wave - x_N.shape[0]
        # "edge", the last prompt again: a row without a real token has no defined output.
        behind = ((0, missing),) + ((0, 0),) * (x_N.ndim - 1)
        return constrain(jnp.pad(x_N, behind, mode=mode)) if missing else x_N  # whole, as it came

    asked = [filled(x_Q, prefills, waves.groups, "edge") for x_Q in prompts[:2]]
    return Prompts(*asked, *(filled(x_B, 1, waves.rows, "constant") for x_B in prompts[2:]))


def _wave(
    run: Callable[..., Any], key: jax.Array, group_size: int, task: Task, prompts: Prompts
) -> Sampled:
    """`sample` for rows that are decoded together, group_size of them to a prefilled prompt."""
    members = functools.partial(jnp.repeat, repeats=group_size, axis=0)
    P, T = task.prompt_slots, task.response_slots
    prompts_QP, prompt_len_Q, row_ids_B, active_B = by_rows(prompts)
    mask_QP = jnp.arange(P)[None] >= P - prompt_len_Q[:, None]
    x_QD, cache = run(prompts_QP, positions(mask_QP), mask_QP, method="prefill")
    prompt_mask_BP, prompt_len_B = members(mask_QP), members(prompt_len_Q)
    keys_B = jax.vmap(functools.partial(jax.random.fold_in, key))(row_ids_B)

    def drawn(sampled: Sampled, logits_BV) -> Sampled:
        """With token t = `steps` of the live rows; the others keep their padding and zeros."""
        t, live_B = sampled.steps, ~sampled.ended_B
        keys_of_t_B = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys_B, t)
        token_B, logp_B, sampled_logp_B = draw(logits_BV, keys_of_t_B, task.settings)
        token_B = jnp.where(live_B, token_B, task.pad_id)
        ends = [live_B & (token_B == eos) for eos in task.eos_ids]

        def write(x_BT, x_B, slot=t):
            return jax.lax.dynamic_update_slice_in_dim(x_BT, x_B[:, None], slot, axis=1)

        return sampled._replace(
            tokens_BS=write(sampled.tokens_BS, token_B, P + t),
            response_len_B=sampled.response_len_B + live_B,
            behav_logp_BT=write(sampled.behav_logp_BT, jnp.where(live_B, logp_B, 0.0)),
            sampled_logp_BT=write(sampled.sampled_logp_BT, jnp.where(live_B, sampled_logp_B, 0.0)),
            loss_mask_BT=write(sampled.loss_mask_BT, live_B.astype(jnp.float32)),
            ended_B=functools.reduce(operator.or_, ends, sampled.ended_B),
            steps=t + 1,
        )

    def decoded(carry: tuple[Sampled, Cache]) -> tuple[Sampled, Cache]:
        """Caches each row's last token and draws the next."""
        sampled, cache = carry
        slot, width = P + sampled.steps - 1, cache[0][1].shape[2]
        last_B = jax.lax.dynamic_index_in_dim(sampled.tokens_BS, slot, axis=1, keepdims=False)
        written = (jnp.arange(width) >= P) & (jnp.arange(width) <= slot)
        seen_BS = jnp.pad(prompt_mask_BP, ((0, 0), (0, width - P))) | written[None]
        at_B = prompt_len_B + sampled.steps - 1
        x_BD, cache = run(last_B, at_B, cache, seen_BS, slot, method="decode")
        return drawn(sampled, run(x_BD[:, None], method="project")[:, 0]), cache

    nothing_BT = jnp.zeros((active_B.shape[0], T))
    empty = Sampled(
        tokens_BS=jnp.pad(members(prompts_QP), ((0, 0), (0, T)), constant_values=task.pad_id),
        prompt_len_B=prompt_len_B,
        response_len_B=jnp.zeros_like(prompt_len_B),
        behav_logp_BT=nothing_BT,
        sampled_logp_BT=nothing_BT,
        loss_mask_BT=nothing_BT,
        ended_B=~active_B,
        steps=jnp.zeros((), jnp.int32),
    )
    logits_QV = run(x_QD[:, None], method="project")[:, 0]
    cache = jax.tree.map(lambda x: constrain(members(x), ROWS, "tensor"), cache)
    sampled = drawn(empty, members(logits_QV))
    # A segment's cache is just long enough for it: no step pays for slots that only later segments
    # fill, and none slices (which copies) a longer cache.
    for begin, end in _segments(T):

        def unfinished(carry: tuple[Sampled, Cache], end: int = end) -> jax.Array:
            return (carry[0].steps < end) & ~carry[0].ended_B.all()

        carry = sampled, _grow(cache, end - begin)
        sampled, cache = jax.lax.while_loop(unfinished, decoded, carry)
    sampled = sampled._replace(ended_B=sampled.ended_B & active_B)
    return jax.tree.map(constrain, sampled)  # whole on every device: the host reads all of it


def _segments(T: int) -> list[tuple[int, int]]:
    """Response slots [begin, end) that each growth of the cache adds."""
    width = -(-T // (_SEGMENTS * _SEGMENT_UNIT)) * _SEGMENT_UNIT
    return [(begin, min(begin + width, T)) for begin in range(0, T, width)]


def _grow(cache: Cache, by: int) -> Cache:
    none, slots = (0, 0), (0, by)
    return tuple(
        (jnp.pad(k_BKES, (none, none, none, slots)), jnp.pad(v_BKSE, (none, none, slots, none)))
        for k_BKES, v_BKSE in cache
    )


def draw(
    logits_BV: jax.Array, keys_B: jax.Array, settings: SamplerSettings
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One token a row [B] int32, its log-prob over the full vocabulary, and as really drawn.

    `logits_BV` are the model's, before the temperature; `keys_B` is not used when greedy.
    """
    if settings.temperature not in (0.0, 1.0):
        logits_BV = logits_BV / settings.temperature
    kept_BV = logits_BV
    if settings.truncates:
        kept_BV = jnp.where(logits_BV >= cut(logits_BV, settings), logits_BV, -jnp.inf)
    score_BV = kept_BV
    if settings.temperature > 0:
        # Gumbel-max, not a search in cumulative sums: a token that is cut away (-inf) can never
        # win, no sum over the vocabulary rounds away the tail, and a vocabulary spread over devices
        # needs no scan. The noise costs a CPU about a tenth of a step of a tiny model.
        noise = functools.partial(jax.random.gumbel, shape=logits_BV.shape[1:])
        score_BV = kept_BV + jax.vmap(noise)(keys_B)
    vocabulary_1V = jnp.arange(logits_BV.shape[1], dtype=jnp.int32)[None]
    # The first of the largest; argmax says the same, but on a CPU not in vector instructions.
    best_BV = score_BV == score_BV.max(axis=-1, keepdims=True)
    token_B = jnp.where(best_BV, vocabulary_1V, logits_BV.shape[1] - 1).min(axis=-1)
    logit_B = jnp.where(vocabulary_1V == token_B[:, None], logits_BV, 0.0).sum(axis=-1)
    logp_B = logit_B - jax.nn.logsumexp(logits_BV, axis=-1)
    if not settings.truncates:
        return token_B, logp_B, logp_B
    return token_B, logp_B, logit_B - jax.nn.logsumexp(kept_BV, axis=-1)


def cut(logits_BV: jax.Array, settings: SamplerSettings) -> jax.Array:
    """The least logit [B, 1] that top-k, then top-p, then min-p keep (temperature applied)."""
    least_B1 = jnp.full_like(logits_BV[:, :1], -jnp.inf)
    ranked_BW = logits_BV
    if settings.top_k > 0:
        ranked_BW = jax.lax.top_k(logits_BV, min(settings.top_k, logits_BV.shape[1]))[0]
        least_B1 = ranked_BW[:, -1:]
    elif settings.top_p < 1:
        ranked_BW = jnp.sort(logits_BV, axis=-1, descending=True)
    if settings.top_p < 1:
        probability_BW = jax.nn.softmax(ranked_BW, axis=-1)
        before_BW = jnp.cumsum(probability_BW, axis=-1) - probability_BW
        before_BW = before_BW.at[:, 0].set(0.0)
        kept_BW = jnp.where(before_BW < settings.top_p, ranked_BW, jnp.inf)
        least_B1 = kept_BW.min(axis=-1, keepdims=True)
    if settings.min_p > 0:
        best_B1 = logits_BV.max(axis=-1, keepdims=True)
        least_B1 = jnp.maximum(least_B1, best_B1 + jnp.log(settings.min_p))
    return least_B1
