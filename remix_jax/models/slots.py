"""Slots: as many rows as are decoded at once, taken from a queue and filled again as rows end.

Everything that moves rows between queue, slots and results is here; `sampling` draws their tokens.
Each device of a mesh has a queue and slots of its own, so no row ever leaves its device: arrays
have the rows of all devices on the first axis, and `by_device` runs a function on each one's part.

Shape letters beside those of `remix_jax.types`: N slots, C tokens of a segment, S the places of the
cache that earlier segments filled; R are the rows of the queue here.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from remix_jax.models.decoder import Cache
from remix_jax.sharding import ROWS, constrain

_PREFILL = 16_384  # prompt slots of a device that are prefilled at once


class Loop(NamedTuple):
    """One of the loops that rows are decoded in, one after the other; numbers of one device."""

    slots: int
    places: int  # of the cache behind the prompt
    until: int  # tokens of the longest row
    enough: int  # it ends with so many live rows and none that waits


class Slots(NamedTuple):
    """Where the rows of a task lie, and how they are decoded; numbers are those of one device."""

    devices: int
    prompts: int  # prefilled, empty ones included
    pieces: int  # that they are prefilled in, one after the other
    group_size: int  # rows that share a prefill: a group, or a part of one
    segment: int  # tokens drawn before free slots are filled again
    together: bool  # every row has a slot of its own, and all begin at once
    loops: tuple[Loop, ...]

    @property
    def rows(self) -> int:
        return self.prompts * self.group_size

    @property
    def number(self) -> int:
        """Rows decoded at once."""
        return self.loops[0].slots


def in_slots(
    groups: int,
    group_size: int,
    prompt_slots: int,
    response_slots: int,
    budget: int = 0,
    shards: int = 1,
    apart: bool = False,
) -> Slots:
    """Slots for a task.

    Once the queue is empty the slots are halved, again and again; every loop is compiled. Rows that
    begin together have as long a cache at any time: first they attend to a half of it.

    Args:
      groups, group_size: rows to each of so many prompts.
      prompt_slots, response_slots: P and T of a row.
      budget: slots of cache that a device has for the rows that it decodes, ValueError if it has no
        room for one; 0: for all. The prompts' own cache comes to it.
      shards: devices that rows are divided over. Groups are, too, unless there are too few.
      apart: rows never begin together: some have begun before, or a kernel reads their caches.
    """
    parts = (n for n in range(1, group_size + 1) if group_size % n == 0)
    copies = next((n for n in parts if groups * n >= shards), group_size)
    size, asked = group_size // copies, -(-groups * copies // shards)
    row = prompt_slots + response_slots
    number = min(asked * size, budget // row if budget else asked * size)
    if number == 0:
        raise ValueError(f"{budget} slots have no room for a row of {row}")
    together = number == asked * size and not apart
    pieces = max(pieces_of(asked, prompt_slots), -(-asked // number))
    prompts = pieces * -(-asked // pieces)
    number = prompts * size if together else number
    # A row that ends within a segment idles for half of one, but each segment costs copies.
    segment = max(-(-response_slots // (32 if together else 64)), 8 if together else 4)
    segment = min(segment + -segment % 4, response_slots)
    places = -(-response_slots // segment) * segment
    places -= 0 if together or apart else segment  # nothing is read behind the last segment
    deepest = min(3, response_slots.bit_length() - 4) - together
    deepest = min(deepest, number.bit_length() - 1)
    numbers = [number >> i for i in range(max(deepest, 0) + 1)]
    loops = [
        Loop(slots, places, response_slots, enough)
        for slots, enough in zip(numbers, [*numbers[1:], 0], strict=True)
    ]
    half = places // segment // 2 * segment
    if together and half >= 16:  # short of that a second loop takes longer to compile than it saves
        loops.insert(0, loops[0]._replace(places=half, until=half))
    return Slots(shards, prompts, pieces, size, segment, together, tuple(loops))


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
    cache: Cache  # of the prompts, each from place 0 on unless all rows begin together


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


def put(
    together: bool,
    results: Results,
    begun: InSlots,
    now: InSlots,
    segment: Written,
    ended_N: jax.Array,
) -> Results:
    """Brings the tokens of a segment to their rows, on one device.

    Args:
      together: all rows are equally far.
      begun, now: the slots before and after it.
    """
    rows = results.length_R.shape[0]
    row_N, place = jnp.where(begun.live_N, now.row_N, rows), begun.drawn_N.max()  # rows: of none
    windows = jax.lax.ScatterDimensionNumbers((1,), (0,), (0, 1))  # a row's C tokens at once
    place_N2 = jnp.stack([row_N, begun.drawn_N], axis=1)
    of_slot_RN = row_N[None] == jnp.arange(rows)[:, None]
    has_slot_R, slot_R = of_slot_RN.any(axis=1), of_slot_RN.argmax(axis=1)

    def written(all_RT, of_segment_NC):
        if together:
            width = of_segment_NC.shape[1]
            here_RC = jax.lax.dynamic_slice_in_dim(all_RT, place, width, axis=1)
            new_RC = jnp.where(has_slot_R[:, None], of_segment_NC[slot_R], here_RC)
            return jax.lax.dynamic_update_slice_in_dim(all_RT, new_RC, place, axis=1)
        mode = jax.lax.GatherScatterMode.FILL_OR_DROP
        return jax.lax.scatter(all_RT, place_N2, of_segment_NC, windows, mode=mode)

    return Results(
        written=jax.tree.map(written, results.written, segment),
        length_R=jnp.where(has_slot_R, now.drawn_N[slot_R], results.length_R),
        ended_R=jnp.where(has_slot_R, ended_N[slot_R], results.ended_R),
    )


def moved(one_segment: bool, begun: InSlots, new: Cache) -> Cache:
    """The cache with a segment's part behind each slot's own, on one device.

    A row that has ended needs it no more, and what is written in its place is garbage.
    """

    def write(axis, old, new):
        if one_segment:
            return old
        # There is room for all but the last segment, after which no row goes on.
        one = functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=axis)
        return jax.vmap(one)(old, new, begun.filled_N)

    return tuple(
        (write(2, old_keys, keys), write(1, old_values, values))
        for (old_keys, old_values), (keys, values) in zip(begun.old, new, strict=True)
    )


def longer(cache: Cache, by: int) -> Cache:
    """With so many empty slots behind."""
    none, behind = (0, 0), (0, by)
    return tuple(
        (jnp.pad(keys, (none, none, none, behind)), jnp.pad(values, (none, none, behind, none)))
        for keys, values in cache
    )


def halved(slots: InSlots) -> InSlots:
    """The live rows of a device, at most half of its slots, in half as many."""
    kept = jnp.argsort(~slots.live_N, stable=True)[: slots.live_N.shape[0] // 2]
    return jax.tree.map(lambda x: x[kept], slots)
