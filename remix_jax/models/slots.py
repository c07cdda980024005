"""Slots: as many rows as are decoded at once, taken from a queue and filled again as rows end.

Everything that moves rows between queue, slots and results is here; `sampling` draws their tokens.
Each device of a mesh has a queue and slots of its own, so no row ever leaves its device: arrays
have the rows of all devices on the first axis, and `by_device` runs a function on each one's part.

Shape letters beside those of `remix_jax.types`: N slots, C tokens of a segment, S the places of the
cache that earlier segments filled, a row's from 0 on; R are the rows of the queue here.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from remix_jax.models.decoder import Cache
from remix_jax.sharding import ROWS, constrain

_SEGMENTS = 64  # of the longest response; a row that ends within one idles for half of one
_PREFILL = 16_384  # prompt slots of a device that are prefilled at once
_HALVINGS = 3  # each is one more loop to compile; with them about a tenth of the drain is idle


class Slots(NamedTuple):
    """Where the rows of a task lie, and how they are decoded; numbers are those of one device."""

    devices: int
    prompts: int  # prefilled, empty ones included
    pieces: int  # that they are prefilled in, one after the other
    group_size: int  # rows that share a prefill: a group, or a part of one
    number: int  # rows decoded at once
    segment: int  # tokens drawn before free slots are filled again
    halvings: int  # how often the slots are halved once the queue is empty

    @property
    def rows(self) -> int:
        return self.prompts * self.group_size


def in_slots(
    groups: int,
    group_size: int,
    prompt_slots: int,
    response_slots: int,
    budget: int = 0,
    shards: int = 1,
) -> Slots:
    """Slots for a task.

    Args:
      groups, group_size: rows to each of so many prompts.
      prompt_slots, response_slots: P and T of a row.
      budget: slots of cache that a device has for the rows that it decodes, ValueError if it has no
        room for one; 0: for all. The prompts' own cache comes to it.
      shards: devices that rows are divided over. Groups are, too, unless there are too few.
    """
    parts = (n for n in range(1, group_size + 1) if group_size % n == 0)
    copies = next((n for n in parts if groups * n >= shards), group_size)
    prompts = -(-groups * copies // shards)
    number = rows = prompts * group_size // copies
    if budget:
        number = min(rows, budget // (prompt_slots + response_slots))
    if number == 0:
        row = prompt_slots + response_slots
        raise ValueError(f"{budget} slots have no room for a row of {row}")
    pieces = max(pieces_of(prompts, prompt_slots), -(-prompts // number))
    segment = max(-(-response_slots // _SEGMENTS), 4)
    segment = min(segment + -segment % 4, response_slots)
    halvings = min(_HALVINGS, number.bit_length() - 1, (response_slots // 8).bit_length() - 1)
    each = -(-prompts // pieces)
    sizes = group_size // copies, number, segment, max(halvings, 0)
    return Slots(shards, each * pieces, pieces, *sizes)


def pieces_of(rows: int, slots: int) -> int:
    """In which so many rows of a device are prefilled."""
    return -(-rows // max(_PREFILL // slots, 1))


class Queue(NamedTuple):
    """Rows in the order in which they are given a slot; D numbers, one a device."""

    order_R: jax.Array  # those that are wanted first
    wanted_D: jax.Array  # int32, how many that are
    given_D: jax.Array  # int32, how many have had a slot


class Rows(NamedTuple):
    """What is known of the rows of a queue; prompt r // group_size is row r's."""

    id_R: jax.Array  # int32, of the random stream
    prompt_len_R: jax.Array
    x_QD: jax.Array  # final hidden state of each prompt
    cache: Cache  # of the prompts, each from place 0 on


class InSlots(NamedTuple):
    """The rows that are being decoded."""

    row_N: jax.Array  # of the queue
    id_N: jax.Array
    prompt_len_N: jax.Array
    drawn_N: jax.Array  # int32, tokens of the response so far
    live_N: jax.Array  # bool; a row that has ended keeps its slot up to the segment's end
    x_ND: jax.Array  # final hidden state that the next token is drawn from
    old: Cache  # keys and values of the prompt and of the segments before

    @property
    def filled_N(self) -> jax.Array:
        """Places of `old` that a segment reads, as seen from its beginning."""
        return jnp.where(self.live_N, self.prompt_len_N + self.drawn_N, 1)


class Written(NamedTuple):
    """Tokens, of the rows of a queue (all of them) or of the slots (those of a segment)."""

    token_RT: jax.Array
    logp_RT: jax.Array
    sampled_logp_RT: jax.Array


class Results(NamedTuple):
    """Of the rows of a queue; T in whole segments, and one more where rows may begin anywhere."""

    written: Written
    length_R: jax.Array
    ended_R: jax.Array  # bool, by an end token


def by_device(devices: int, function: Callable[..., Any], *trees: Any) -> Any:
    """function(*trees) on each device's part of the first axis of every array."""
    if devices == 1:
        return function(*trees)
    parts = jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), trees)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), jax.vmap(function)(*parts))


def divided(plan: Slots, x: Any, rows: int, mode: str = "constant") -> jax.Array:
    """Rows, or prompts, as they lie on the devices: dealt out, with empty ones at the end.

    Args:
      x: [B or Q, ...].
      rows: of x to each prompt that is prefilled: plan.group_size, or 1 where x are these prompts.
      mode: of `jnp.pad`, what an empty one holds.
    """
    dealt = x.reshape(-1, rows, *x.shape[1:])
    missing = plan.devices * plan.prompts - dealt.shape[0]
    dealt = jnp.pad(dealt, ((0, missing),) + ((0, 0),) * x.ndim, mode=mode)
    dealt = dealt.reshape(plan.prompts, plan.devices, *dealt.shape[1:])
    return constrain(dealt.swapaxes(0, 1).reshape(-1, *x.shape[1:]), ROWS)


def together(plan: Slots, x: jax.Array, count: int) -> jax.Array:
    """The inverse of `divided`, for `count` rows."""
    dealt = x.reshape(plan.devices, plan.prompts, plan.group_size, *x.shape[1:])
    return dealt.swapaxes(0, 1).reshape(-1, *x.shape[1:])[:count]


def empty_cache(like: Cache, rows: int, slots: int) -> Cache:
    """For so many rows and slots."""

    def zeros(keys_or_values, axis):
        shape = list(keys_or_values.shape)
        shape[0], shape[axis] = rows, slots
        return constrain(jnp.zeros(shape, keys_or_values.dtype), ROWS, "tensor")

    return tuple((zeros(keys, 3), zeros(values, 2)) for keys, values in like)


def from_first(cache: Cache, padding_N: jax.Array) -> Cache:
    """Left-padded rows moved to where they begin at place 0; what is behind them means nothing."""

    def moved(x, axis):
        return jax.vmap(functools.partial(jnp.roll, axis=axis))(x, -padding_N)

    return tuple((moved(keys, 2), moved(values, 1)) for keys, values in cache)


def queued(active_R: jax.Array, begun_R: jax.Array) -> Queue:
    """The active rows of a device in their order, those that an earlier policy began first."""
    order_R = jnp.argsort(jnp.where(active_R, jnp.where(begun_R, 0, 1), 2), stable=True)
    wanted_D = active_R.sum(keepdims=True, dtype=jnp.int32)
    return Queue(order_R.astype(jnp.int32), wanted_D, jnp.zeros_like(wanted_D))


def refill(group_size: int, queue: Queue, rows: Rows, slots: InSlots) -> tuple[Queue, InSlots]:
    """Gives free slots the next rows of the queue, on one device."""
    free_N = ~slots.live_N
    place_N = queue.given_D + jnp.cumsum(free_N) - 1
    taken_N = free_N & (place_N < queue.wanted_D)
    row_N = queue.order_R[jnp.minimum(place_N, queue.order_R.shape[0] - 1)]
    row_N = jnp.where(taken_N, row_N, slots.row_N)
    prompt_N = row_N // group_size

    def begun(new, old):
        return jnp.where(taken_N.reshape(-1, *[1] * (old.ndim - 1)), new, old)

    def copied(axis, of_prompts, old):
        """The prompt's part of a cache, which is the first along that axis."""
        there = jax.lax.slice_in_dim(old, 0, of_prompts.shape[axis], axis=axis)
        new = begun(of_prompts[prompt_N], there)
        return jax.lax.dynamic_update_slice_in_dim(old, new, 0, axis=axis)

    cache = tuple(
        (copied(3, keys, old_keys), copied(2, values, old_values))
        for (keys, values), (old_keys, old_values) in zip(rows.cache, slots.old, strict=True)
    )
    return queue._replace(given_D=queue.given_D + taken_N.sum()), InSlots(
        row_N=row_N,
        id_N=rows.id_R[row_N],
        prompt_len_N=rows.prompt_len_R[row_N],
        drawn_N=begun(0, slots.drawn_N),
        live_N=slots.live_N | taken_N,
        x_ND=begun(rows.x_QD[prompt_N], slots.x_ND),
        old=cache,
    )


def harvest(
    results: Results, begun: InSlots, now: InSlots, segment: Written, new: Cache, ended_N
) -> tuple[Results, InSlots]:
    """After a segment, on one device: tokens go to their rows, the cache behind each slot's own.

    `begun` are the slots as they were before it. A row that has ended needs its cache no more, and
    what is written in its place is garbage.
    """
    rows = results.length_R.shape[0]
    row_N = jnp.where(begun.live_N, now.row_N, rows)  # beyond the last: dropped

    windows = jax.lax.ScatterDimensionNumbers((1,), (0,), (0, 1))  # a row's C tokens at once
    place_N2 = jnp.stack([row_N, begun.drawn_N], axis=1)

    def put(all_RT, of_segment_NC):
        mode = jax.lax.GatherScatterMode.FILL_OR_DROP
        return jax.lax.scatter(all_RT, place_N2, of_segment_NC, windows, mode=mode)

    def moved(axis, old, new):
        if results.written.token_RT.shape[1] == new.shape[axis + 1]:  # one segment is all
            return old
        # There is room for all but the last segment, after which no row goes on.
        write = functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=axis)
        return jax.vmap(write)(old, new, begun.filled_N)

    cache = tuple(
        (moved(2, old_keys, keys), moved(1, old_values, values))
        for (old_keys, old_values), (keys, values) in zip(now.old, new, strict=True)
    )
    return Results(
        written=jax.tree.map(put, results.written, segment),
        length_R=results.length_R.at[row_N].set(now.drawn_N, mode="drop"),
        ended_R=results.ended_R.at[row_N].set(ended_N, mode="drop"),
    ), now._replace(old=cache)


def halved(slots: InSlots) -> InSlots:
    """The live rows of a device, at most half of its slots, in half as many."""
    kept = jnp.argsort(~slots.live_N, stable=True)[: slots.live_N.shape[0] // 2]
    return jax.tree.map(lambda x: x[kept], slots)
