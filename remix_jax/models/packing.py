"""Rows without their padding: several in one buffer of slots, where each sees itself alone.

    slots of a buffer: | prompts, from the left ->  ..  <- responses, from the right |

A buffer has S = P + T - 1 slots, those of a row but for the last, which predicts nothing. A row of
p prompt and r response tokens takes p - 1 of them from the left and r, which predict its response
and begin with the prompt's last token, from the right. A buffer takes at most T of the latter: what
is asked of a model lies in the last T slots, a static slice, and a row always fits. A token sees
the earlier slots of its own segment; its position is that in its row. Letters as in
`remix_jax.types`, and N buffers; a pass is some of them, which go through a model at once.
"""

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array, lax

from remix_jax.sharding import ROWS, by_rows, constrain
from remix_jax.types import FreshRows


class Packing(flax.struct.PyTreeNode):
    """Where every row lies, and what lies in every slot; -1: nowhere, nothing."""

    source_NS: Array  # int32, index of the token among the first S of each row, [B * S]
    target_BT: Array  # int32, index of the slot that predicts the token among the last T, [N * T]
    buffer_B: Array  # int32
    used: Array  # int32, buffers with a row; they come first
    tokens: Array  # int32, in the rows' prompts and responses but for the last of each

    def passes(self, n: int) -> Array:
        """Passes of `n` buffers that hold all rows."""
        return -(-self.used // n)


class Pass(flax.struct.PyTreeNode):
    """N buffers as a model reads them, and the way between their last T slots and rows."""

    tokens_NS: Array
    positions_NS: Array
    segments_NS: Array  # 1 + number of the row, 0 in empty slots
    next_NT: Array  # the tokens that the last T slots predict
    source_NT: Array  # index of that token among the rows' [B * T], -1: none
    target_BT: Array  # index among [N * T], -1: the row is in another pass
    here_B: Array  # bool, the row is in this pass


def pack(rows: FreshRows, n: int) -> Packing:
    """Places the rows that count, for passes of `n` buffers: by first fit, the longest first.

    Rows that one pass holds anyway get a buffer each. Buffers are as many as rows, in whole passes.
    """
    B, T = rows.loss_mask_BT.shape
    S = rows.tokens_BS.shape[1] - 1
    N = B + -B % n
    counted_B = rows.mask_BT.any(axis=1)
    prompt_B = jnp.where(counted_B, rows.prompt_len_B - 1, 0)
    response_B = jnp.where(counted_B, rows.response_len_B, 0)
    places = jnp.arange(B), jnp.zeros_like(prompt_B), response_B
    if n < N:
        places = _first_fit(prompt_B, response_B, S, T)
    buffer_B, left_B, right_B = (constrain(x_B[:, None]) for x_B in places)

    slot_BS = jnp.arange(S)[None] - (S - T - prompt_B[:, None])  # 0 at the prompt's first token
    asked_BS = slot_BS - prompt_B[:, None]
    put_BS = jnp.where(asked_BS < 0, left_B + slot_BS, S - right_B + asked_BS)
    real_BS = (slot_BS >= 0) & (asked_BS < response_B[:, None])
    put_BS = jnp.where(real_BS, buffer_B * S + put_BS, N * S)
    source = jnp.full(N * S, -1).at[put_BS.reshape(-1)].set(jnp.arange(B * S), mode="drop")
    target_BT = buffer_B * T + T - right_B + jnp.arange(T)[None]
    return Packing(
        source_NS=constrain(source.reshape(N, S)),
        target_BT=jnp.where(real_BS[:, S - T :], target_BT, -1),
        buffer_B=jnp.where(counted_B, buffer_B[:, 0], -1),
        used=jnp.where(counted_B, buffer_B[:, 0] + 1, 0).max(),
        tokens=(prompt_B + response_B).sum(),
    )


def _first_fit(prompt_B, response_B, S: int, T: int):
    """Number of the buffer of each row, slots taken in it on the left before it, on the right with.

    The longest rows first, each where it fits first.
    """
    order_B = jnp.argsort(-(prompt_B + response_B))
    number_N = jnp.arange(prompt_B.shape[0])

    def place(taken, row):
        (left_N, right_N), (prompt, response) = taken, row
        more_N = right_N + response
        buffer = jnp.argmax((more_N <= T) & (left_N + prompt + more_N <= S))
        hit_N = number_N == buffer
        found = (buffer, left_N[buffer], more_N[buffer])
        return (left_N + hit_N * prompt, right_N + hit_N * response), found

    nothing_N = jnp.zeros_like(prompt_B)
    given = prompt_B[order_B], response_B[order_B]

    def shortest_two(x_B):
        return jnp.sort(jnp.where(response_B > 0, x_B, T + S))[:2].sum()

    found = lax.cond(
        (shortest_two(prompt_B + response_B) <= S) & (shortest_two(response_B) <= T),
        lambda: lax.scan(place, (nothing_N, nothing_N), given)[1],
        lambda: (number_N, nothing_N, given[1]),  # no two rows fit into one buffer
    )
    back_B = jnp.argsort(order_B)
    return tuple(x_B[back_B] for x_B in found)


def take(packing: Packing, rows: FreshRows, number: Array | int, n: int) -> Pass:
    """Pass `number` of passes of `n` buffers."""
    T, S = rows.response_slots, packing.source_NS.shape[1]
    source_NS = lax.dynamic_slice_in_dim(packing.source_NS, number * n, n)
    filled_NS, source_NS = source_NS >= 0, jnp.maximum(source_NS, 0)
    row_NS, slot_NS = source_NS // S, source_NS % S
    prompt_NS = rows.prompt_len_B[row_NS]
    response_NS = slot_NS - (S - T)
    source_NT = jnp.where(filled_NS & (response_NS >= 0), row_NS * T + response_NS, -1)
    target_BT = packing.target_BT - number * n * T
    inputs = by_rows((
        rows.tokens_BS[:, :-1].reshape(-1)[source_NS],
        jnp.where(filled_NS, response_NS + prompt_NS - 1, 0),
        jnp.where(filled_NS, row_NS + 1, 0),
        rows.tokens_BS[:, 1:].reshape(-1)[source_NS[:, S - T :]],
    ))  # fmt: skip
    return Pass(
        *inputs,
        source_NT=source_NT[:, S - T :],
        target_BT=jnp.where((target_BT >= 0) & (target_BT < n * T), target_BT, -1),
        here_B=packing.buffer_B // n == number,
    )


def alone(rows: FreshRows) -> Pass:
    """All rows in one pass, each in a buffer of its own."""
    return take(pack(rows, rows.valid_B.shape[0]), rows, 0, rows.valid_B.shape[0])


def to_rows(x_NT: Array, held: Pass) -> Array:
    """Numbers of a pass' last slots as those of response tokens [B, T]; 0 where it has none."""
    return _to_rows(x_NT, held.target_BT, held.source_NT)


def gather(x: Array, index: Array) -> Array:
    """x's numbers at an index into all of them, 0 where it is -1."""
    return jnp.where(index >= 0, x.reshape(-1)[jnp.maximum(index, 0)], 0.0)


# The gradient of a gather is a scatter, slow on a CPU: this one's gathers the other way.
@jax.custom_vjp
def _to_rows(x_NT, target_BT, source_NT):
    return gather(constrain(x_NT), target_BT)


def _to_rows_forward(x_NT, target_BT, source_NT):
    return _to_rows(x_NT, target_BT, source_NT), source_NT


def _to_rows_backward(source_NT, dy_BT):
    return constrain(gather(constrain(dy_BT), source_NT), ROWS), None, None


_to_rows.defvjp(_to_rows_forward, _to_rows_backward)
