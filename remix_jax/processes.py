"""Several processes that train as one, each with its own devices (JAX's multi-controller runtime).

All of them run the same program on the same numbers: what a process does alone it does for all (its
part of the rows to grade), or it is the first process and does it for people (files, console).
"""

import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax._src import distributed  # its barrier has no public name
from jax.experimental import multihost_utils

from remix_jax.errors import InputError

_PATIENCE = 3_600_000  # milliseconds


def is_first() -> bool:
    """Whether this process writes files and speaks to people."""
    return jax.process_index() == 0


def wait_for_all(moment: str) -> None:
    """Returns when all processes are at this moment; each moment comes once.

    Between processes on CPUs the first collective must find all of them within 30 seconds, which
    compilation on a busy machine does not keep; this waits longer.
    """
    if (client := distributed.global_state.client) is not None:
        client.wait_at_barrier(moment, timeout_in_ms=_PATIENCE)


def divided(n: int, work: Callable[[slice], list[Any]]) -> list[Any]:
    """work(part), one result an item, of every process's part of n items, in order, on all of them.

    Of several processes results go through JSON.
    """
    index, count = jax.process_index(), jax.process_count()
    own = work(slice(index * n // count, (index + 1) * n // count))
    return own if count == 1 else [result for part in _exchanged(own) for result in part]


def first_does(work: Callable[[], Any]) -> Any:
    """What `work` gives on the first process, on all of them; goes through JSON.

    Raises:
      InputError: on all processes, if the first one's work raised it.
    """
    value, refusal = None, None
    if is_first():
        try:
            value = work()
        except InputError as error:
            refusal = str(error)
    value, refusal = from_first([value, refusal])
    if refusal is not None:
        raise InputError(refusal)
    return value


def from_first(value: Any) -> Any:
    """What the first process has, on all of them; goes through JSON."""
    return value if jax.process_count() == 1 else _exchanged(value)[0]


def _exchanged(own: Any) -> list[Any]:
    """What every process gives, in order of processes."""
    text = json.dumps(own).encode()
    sizes = multihost_utils.process_allgather(np.array(len(text), np.int32))
    # Bytes are padded to a power of 2, so that few shapes are compiled.
    padded = np.zeros(max(1024, 1 << int(sizes.max() - 1).bit_length()), np.uint8)
    padded[: len(text)] = np.frombuffer(text, np.uint8)
    everything = multihost_utils.process_allgather(padded)
    rows = zip(np.asarray(everything), sizes.tolist(), strict=True)
    return [json.loads(bytes(row[:size])) for row, size in rows]
