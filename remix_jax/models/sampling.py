"""Sampling: one compiled prefill + decode program that ends when every row has ended."""

import dataclasses
import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from remix_jax.models import attention, prefill, slots
from remix_jax.models.decoder import Decoder, DecoderConfig
from remix_jax.models.drawing import SamplerSettings, draw
from remix_jax.sharding import by_rows, constrain, in_use, row_shards


class Sampled(NamedTuple):
    """Responses, right-padded, behind their left-padded prompts."""

    tokens_BS: jax.Array  # int32, S = P + T
    prompt_len_B: jax.Array  # int32
    response_len_B: jax.Array  # int32, the end token included
    behav_logp_BT: jax.Array  # over the full vocabulary at the temperature; 0 beyond the length
    sampled_logp_BT: jax.Array  # under the truncated distribution really drawn from
    loss_mask_BT: jax.Array  # float32: 1 at the tokens that the policy wrote, the end token too
    ended_B: jax.Array  # bool: an end token came within the limit
    steps: jax.Array  # int32: decoding steps
    slot_steps: jax.Array | int = 0  # int32: slots run in all of them; 0: not known
    drain_slot_steps: jax.Array | int = 0  # those after the last row had been given a slot


class Begun(NamedTuple):
    """Of B responses, what earlier policies wrote; what is beyond a length is ignored."""

    tokens_BT: np.ndarray | jax.Array
    behav_logp_BT: np.ndarray | jax.Array
    sampled_logp_BT: np.ndarray | jax.Array
    length_B: np.ndarray | jax.Array
    ended_B: np.ndarray | jax.Array  # bool


class Prompts(NamedTuple):
    """Q prompts, and the B rows that answer them: row b answers prompt b // group_size."""

    tokens_QP: np.ndarray | jax.Array  # int32, left-padded
    prompt_len_Q: np.ndarray | jax.Array  # int32, at least 1
    row_ids_B: np.ndarray | jax.Array  # int32: number of each row's random stream
    active_B: np.ndarray | jax.Array  # bool: False marks an empty slot: its response has length 0
    begun: Begun | None = None  # with `Task.carry`: what is gone on from
    groups: np.ndarray | jax.Array | None = None  # with it, int32 []: how many are to be finished


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
    budget: int = 0  # slots of cache that a device has for rows being decoded; 0: for all
    carry: bool = False  # ends when enough groups are finished; the others may be gone on with

    def in_slots(self, shards: int, config: DecoderConfig) -> slots.Slots:
        """On so many devices that rows are divided over, with such a model."""
        sizes = self.prompts, self.group_size, self.prompt_slots, self.response_slots
        apart = self.carry or _cache(config, self.slots)[0] != "plain"
        return slots.in_slots(*sizes, self.budget, shards, apart)

    @property
    def rows(self) -> int:  # B
        return self.prompts * self.group_size

    @property
    def slots(self) -> int:  # S
        return self.prompt_slots + self.response_slots


@functools.partial(jax.jit, static_argnames=("model", "task"))
def sample(model: Decoder, params: dict, prompts: Prompts, key: jax.Array, task: Task) -> Sampled:
    """task.group_size responses to each prompt.

    A prompt is prefilled once and its rows share the result. Row b draws token t with the key
    fold_in(fold_in(key, row_ids_B[b]), t), so that a response depends on its prompt and its id, not
    on its neighbours, the batch size or the padding. Hence rows may be decoded in any number of
    slots, as many as `task.budget` has room for, each slot taking the next row when its own has
    ended; with none left, the slots that are run are halved (`slots.in_slots`).

    With task.carry rows may have been begun, by another policy: their tokens are prefilled with the
    prompt, and they are the first that get a slot (on a device with more of them than slots the
    others begin anew). Sampling ends with the segment in which prompts.groups groups are finished;
    a response that is not has neither an end token nor T tokens.
    """
    plan = task.in_slots(row_shards(in_use()), model.config)
    local = functools.partial(slots.by_device, plan.devices)
    model, weights = prefill.for_decoding(model, params)
    run = functools.partial(model.apply, {"params": weights})

    id_R, active_R = (slots.divided(plan, x_B, plan.group_size) for x_B in prompts[2:4])
    copies = task.group_size // plan.group_size
    # "edge", the last prompt again: a row without a real token has no defined output.
    tokens_QP, prompt_len_Q = (
        slots.divided(plan, jnp.repeat(x_Q, copies, axis=0), 1, "edge") for x_Q in prompts[:2]
    )
    rows = prefill.prefilled(run, plan, tokens_QP, prompt_len_Q, id_R)
    begun = jax.tree.map(lambda x_B: slots.divided(plan, x_B, plan.group_size), prompts.begun)
    begun_R = jnp.zeros_like(active_R) if begun is None else (begun.length_B > 0) & active_R
    caches = [_cache(model.config, task.prompt_slots + loop.places) for loop in plan.loops]
    widths = [width for _, width in caches]
    state = _empty(plan, task, local(slots.queued, active_R, begun_R), rows, begun, widths[0])
    if begun is not None:
        state = _resumed(run, plan, task, local, rows, tokens_QP, begun_R, state)

    def refilled(state: _State) -> _State:
        filled = functools.partial(slots.refill, plan.group_size)
        queue, in_slots = local(filled, state.queue, rows, state.in_slots)
        return state._replace(queue=queue, in_slots=in_slots)

    if plan.together:
        state = refilled(state)
    in_place = caches[0][0] == "cudnn"
    for i, loop in enumerate(plan.loops):
        in_slots, before = state.in_slots, max(i - 1, 0)
        if loop.slots < plan.loops[before].slots:
            in_slots = local(slots.halved, in_slots)
        in_slots = in_slots._replace(old=slots.longer(in_slots.old, widths[i] - widths[before]))

        goes_on = functools.partial(_goes_on, plan, task, prompts.groups, loop)

        def segment(state: _State, loop: slots.Loop = loop) -> _State:
            if loop.slots == plan.number and not plan.together:
                state = refilled(state)
            return _segment(run, key, plan, task, local, in_place, state)

        state = jax.lax.while_loop(goes_on, segment, state._replace(in_slots=in_slots))

    return _sampled(plan, task, prompts, state)


def _cache(config: DecoderConfig, slots: int) -> tuple[str, int]:
    """What attends to a cache, and its slots."""
    return attention.for_cache(config.execution.attention, slots, config.head_dim)


class _State(NamedTuple):
    queue: slots.Queue
    in_slots: slots.InSlots
    results: slots.Results
    steps: jax.Array
    slot_steps: jax.Array
    drain_slot_steps: jax.Array


def _sampled(plan: slots.Slots, task: Task, prompts: Prompts, state: _State) -> Sampled:
    """The results of all rows in their own order."""
    results = jax.tree.map(lambda x_R: slots.together(plan, x_R, task.rows), state.results)
    T = task.response_slots
    tokens_BT, *logps_BT = (x[:, :T] for x in results.written)
    length_B = results.length_R
    members = functools.partial(jnp.repeat, repeats=task.group_size, axis=0)
    inside_BT = jnp.arange(T)[None] < length_B[:, None]
    if prompts.begun is not None:  # a row that began anew may have been longer before
        tokens_BT = jnp.where(inside_BT, tokens_BT, task.pad_id)
        logps_BT = [jnp.where(inside_BT, logp_BT, 0.0) for logp_BT in logps_BT]
    sampled = Sampled(
        tokens_BS=jnp.concatenate([members(prompts.tokens_QP), tokens_BT], axis=1),
        prompt_len_B=members(prompts.prompt_len_Q),
        response_len_B=length_B,
        behav_logp_BT=logps_BT[0],
        sampled_logp_BT=logps_BT[1],
        loss_mask_BT=inside_BT.astype(jnp.float32),
        ended_B=results.ended_R,
        steps=state.steps,
        slot_steps=state.slot_steps,
        drain_slot_steps=state.drain_slot_steps,
    )
    return jax.tree.map(constrain, sampled)  # whole on every device: the host reads all of it


def _empty(
    plan: slots.Slots,
    task: Task,
    queue: slots.Queue,
    rows: slots.Rows,
    begun: Begun | None,
    width: int,
) -> _State:
    """Before the first row has a slot."""
    N, R, T = plan.devices * plan.number, plan.devices * plan.rows, task.response_slots
    whole = T + -T % plan.segment
    if begun is not None:  # a row that goes on does not begin with a segment
        whole += plan.segment
    count_N, count_R, none_RT = (jnp.zeros(shape, jnp.int32) for shape in (N, R, (R, whole)))
    logp_RT = none_RT.astype(jnp.float32)
    written = slots.Written(none_RT + task.pad_id, logp_RT, logp_RT)
    results = slots.Results(written, count_R, count_R > 0)
    if begun is not None:
        inside_RT = jnp.arange(T)[None] < begun.length_B[:, None]
        written = slots.Written(
            *(
                none.at[:, :T].set(jnp.where(inside_RT, had, none[:, :T]))
                for none, had in zip(written, begun, strict=False)
            )
        )
        results = slots.Results(written, *map(jnp.asarray, (begun.length_B, begun.ended_B)))
    x_ND = jnp.zeros((N, rows.x_QD.shape[1]), rows.x_QD.dtype)
    # A slot without a row decodes on, and its first token sees itself.
    live = slots.InSlots(
        row_N=count_N,
        id_N=count_N,
        prompt_len_N=count_N + 1,
        drawn_N=count_N,
        live_N=count_N > 0,
        x_ND=x_ND,
        old=(),
    )
    live, results = by_rows((live, results))
    old = slots.empty_cache(rows.cache, N, width)
    zero = jnp.zeros((), jnp.int32)
    return _State(queue, live._replace(old=old), results, zero, zero, zero)


def _resumed(
    run: Callable[..., Any],
    plan: slots.Slots,
    task: Task,
    local: Callable[..., Any],
    rows: slots.Rows,
    tokens_QP: jax.Array,
    begun_R: jax.Array,
    state: _State,
) -> _State:
    """With the first rows of the queues in slots, as far as these were begun."""
    P, T, N = task.prompt_slots, task.response_slots, plan.number

    def first(queue, rows, begun_R, tokens_QP, length_R, tokens_RT):
        """Of one device: the rows, and all their tokens."""
        row_N = queue.order_R[:N]
        live_N = begun_R[row_N]
        given_D = jnp.minimum(live_N.sum(keepdims=True, dtype=jnp.int32), N)
        tokens = tokens_QP[row_N // plan.group_size], tokens_RT[row_N, :T]
        in_slots = slots.InSlots(
            row_N=row_N,
            id_N=rows.id_R[row_N],
            prompt_len_N=rows.prompt_len_R[row_N],
            drawn_N=length_R[row_N] * live_N,
            live_N=live_N,
            x_ND=rows.x_QD[:1],
            old=(),
        )
        return queue._replace(given_D=given_D), in_slots, jnp.concatenate(tokens, axis=1)

    results = state.results
    given = state.queue, rows, begun_R, tokens_QP, results.length_R, results.written.token_RT
    queue, in_slots, tokens_NS = local(first, *given)
    prompt_len_N, drawn_N = in_slots.prompt_len_N, in_slots.drawn_N
    place_1S = jnp.arange(P + T)[None]
    real_NS = (place_1S >= P - prompt_len_N[:, None]) & (place_1S < P + drawn_N[:, None])
    pieces = next(n for n in range(slots.pieces_of(N, P + T), N + 1) if N % n == 0)
    x_ND, cache = prefill.in_pieces(run, plan, pieces, tokens_NS, real_NS, P + drawn_N - 1)
    old = slots.longer(cache, state.in_slots.old[0][1].shape[2] - (P + T))
    return state._replace(queue=queue, in_slots=in_slots._replace(x_ND=x_ND, old=old))


def _goes_on(plan: slots.Slots, task: Task, groups, loop: slots.Loop, state: _State) -> jax.Array:
    """Whether a loop has another segment; `groups` of them at most are finished (None: all)."""
    live_DN = state.in_slots.live_N.reshape(plan.devices, -1)
    more = (live_DN.sum(axis=1) > loop.enough).any()
    more |= (state.queue.given_D < state.queue.wanted_D).any()
    if loop.until < task.response_slots:
        more &= state.in_slots.drawn_N.max() < loop.until
    if groups is not None:
        length_B, ended_B = (slots.together(plan, x_R, task.rows) for x_R in state.results[1:])
        finished_B = ended_B | (length_B >= task.response_slots)
        finished_Q = finished_B.reshape(-1, task.group_size).all(axis=1)
        more &= finished_Q.sum() < groups
    return more


def _segment(
    run: Callable[..., Any],
    key: jax.Array,
    plan: slots.Slots,
    task: Task,
    local: Callable[..., Any],
    in_place: bool,
    state: _State,
) -> _State:
    """Up to plan.segment tokens of every row in a slot, fewer where all of them end before."""
    begun, C = state.in_slots, plan.segment
    N = begun.row_N.shape[0]
    keys_N = jax.vmap(functools.partial(jax.random.fold_in, key))(begun.id_N)
    cache, parts = _parts(plan, task, in_place, begun)
    as_integers, as_numbers = (
        functools.partial(jax.lax.bitcast_convert_type, new_dtype=to)
        for to in (jnp.int32, jnp.float32)
    )

    def goes_on(carry) -> jax.Array:
        c, now, *_ = carry
        return (c < C) & now.live_N.any()

    def step(carry):
        """Draws a token for each live row, and caches it; the others get padding and zeros."""
        c, now, ended_N, written_NC3, cache = carry
        logits_NV = run(now.x_ND[:, None], method="project")[:, 0]
        keys_of_t_N = jax.vmap(jax.random.fold_in)(keys_N, now.drawn_N)
        token_N, *logps_N = draw(logits_NV, keys_of_t_N, task.settings)
        token_N = jnp.where(now.live_N, token_N, task.pad_id)
        logps_N = [jnp.where(now.live_N, logp_N, 0.0) for logp_N in logps_N]
        ends = [now.live_N & (token_N == eos) for eos in task.eos_ids]
        ended_N = functools.reduce(operator.or_, ends, ended_N)
        at_N = now.prompt_len_N + now.drawn_N
        x_ND, cache = run(token_N, at_N, *parts(cache, at_N, c), method="decode")
        drawn_N = now.drawn_N + now.live_N
        live_N = now.live_N & ~ended_N & (drawn_N < task.response_slots)
        # One array, and with it one operation a token.
        one_N3 = jnp.stack([token_N, *map(as_integers, logps_N)], axis=1)
        write = functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=1)
        written_NC3 = write(written_NC3, one_N3[:, None], c)
        now = now._replace(drawn_N=drawn_N, live_N=live_N, x_ND=x_ND)
        return c + 1, now, ended_N, written_NC3, cache

    nothing_NC3 = jnp.tile(jnp.asarray([task.pad_id, 0, 0], jnp.int32), (N, C, 1))
    nothing_NC3, ended_N = by_rows((nothing_NC3, jnp.zeros((N,), bool)))
    carry = (jnp.zeros((), jnp.int32), begun._replace(old=()), ended_N, nothing_NC3, cache)
    c, now, ended_N, written_NC3, cache = jax.lax.while_loop(goes_on, step, carry)
    tokens_NC, *logps_NC = jnp.moveaxis(written_NC3, 2, 0)
    written = slots.Written(tokens_NC, *map(as_numbers, logps_NC))
    if not (plan.together or in_place):
        one_segment = task.response_slots <= C
        cache = local(functools.partial(slots.moved, one_segment), begun, cache)
    now = now._replace(old=cache)
    put = functools.partial(slots.put, plan.together)
    results = local(put, state.results, begun, now, written, ended_N)
    waits = (state.queue.given_D < state.queue.wanted_D).any()
    return state._replace(
        in_slots=now,
        results=results,
        steps=state.steps + c,
        slot_steps=state.slot_steps + c * N,
        drain_slot_steps=state.drain_slot_steps + jnp.where(waits, 0, c * N),
    )


def _parts(plan: slots.Slots, task: Task, in_place: bool, begun: slots.InSlots):
    """The cache that a segment writes to; and what `Decoder.decode` takes, from `old` to `slot`.

    That is a function of the cache, the places of the rows' tokens and the token's number.
    """
    N, P, S = begun.row_N.shape[0], task.prompt_slots, begun.old[0][1].shape[2]
    if in_place:  # by a kernel that writes each row's token to a slot of its own
        # A row that has all of its tokens decodes on, to no use.
        return begun.old, lambda cache, at_N, c: (None, cache, None, None, jnp.minimum(at_N, S - 1))
    if plan.together:  # all rows are equally far
        cache, first = begun.old, P + begun.drawn_N.max()
        read: tuple[Any, Any] = (None, None)
        real_NC = jnp.arange(S)[None] >= P - begun.prompt_len_N[:, None]
    else:  # a part that all rows fill alike, beside what they have
        cache, first = slots.empty_cache(begun.old, N, plan.segment), jnp.zeros((), jnp.int32)
        read = begun.old, begun.filled_N
        real_NC = jnp.ones((1, plan.segment), bool)

    def parts(cache, at_N, c):
        seen_NC = real_NC & (jnp.arange(real_NC.shape[1])[None] <= first + c)
        return read[0], cache, read[1], seen_NC, first + c

    return cache, parts
