"""The states of a run on disk or in a bucket, by orbax: whole or absent, checked when read.

checkpoints/50/state/ holds every array of the TrainState, checkpoints/50/host/ JSON: counters, the
config, a sum of every array. Orbax renames a checkpoint when all of it is there (in a bucket a
marker is written last): a number names a whole one wherever the process was killed. What happens
to the files later, the sums show, which are computed when a state is saved and when it is restored.
"""

import contextlib
import hashlib
import json
import math
import pathlib
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from remix_jax import files, processes
from remix_jax.errors import InputError
from remix_jax.learner.state import TrainState, copy
from remix_jax.sharding import path_text
from remix_jax.text import one_line, size_text

WRITING = "*.orbax-checkpoint-tmp*"  # what is being written, or was when the process was killed
_CHUNK = 1 << 20  # elements that are summed at once on the host
_OVERHEAD = 1 << 20  # bytes of a checkpoint that are no array, at most

Restored = tuple[TrainState, dict[str, Any]]


class SaveError(RuntimeError):
    """The last state of a run could not be written."""


class Checkpoints(contextlib.AbstractContextManager):
    """The states of a run in `directory`; a context manager, which waits for what is being written.

    Files are written by threads while training goes on; `save` itself takes as long as a copy. A
    state that cannot be written (a full disk) leaves nothing behind, and `error` says why. On
    several processes all call all methods; the directory is one that all of them see.

    Args:
      keep: the newest so many stay.
      keep_every: those of steps that this divides stay too; 0: none.
    """

    def __init__(self, directory: files.Path, keep: int, keep_every: int = 0) -> None:
        self._directory = directory.absolute() if isinstance(directory, pathlib.Path) else directory
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            keep_period=keep_every or None,
            cleanup_tmp_directories=True,
            save_root_metadata=False,
        )
        parts = {"state": ocp.StandardCheckpointHandler(), "host": ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(self._directory, options=options, item_handlers=parts)
        self.error: str | None = None  # why the last save failed, None if it did not

    def __exit__(self, *exception: object) -> None:
        self.wait()
        self._manager.close()

    def save(self, step: int, state: TrainState, host: dict[str, Any]) -> None:
        """Returns when `state` may be donated. A step that is there already is left as it is."""
        self.wait()
        if step in self._manager.all_steps():
            return
        self.error = None
        # On a CPU orbax writes from the very buffers that the next step is going to reuse.
        own = copy(state) if jax.default_backend() == "cpu" else state
        text = json.dumps({"sums": sums(state), "host": host})
        written = ocp.args.JsonSave({"text": text, "digest": digest(text)})
        args = ocp.args.Composite(state=ocp.args.StandardSave(own), host=written)
        try:
            self._manager.save(step, args=args, force=True)
        except Exception as error:  # of file system, network or tensorstore
            self.refuse(step, error)

    def refuse(self, step: int, error: Exception) -> None:
        """Says that the checkpoint of a step cannot be made; what is there of it is removed."""
        self._manager.reload()  # which may finish writing in part, so what is left goes after it
        if processes.is_first() and isinstance(self._directory, pathlib.Path):
            for _ in range(100):  # other threads of the failed save may be writing still
                if not (rest := list(self._directory.glob(f"{step}{WRITING[1:]}"))):
                    break
                for left in rest:
                    shutil.rmtree(left, ignore_errors=True)
                time.sleep(0.05)
        good = self.newest_step()
        kept = f"the last good one is of step {good}" if good else "there is none yet"
        failed = f"the checkpoint of step {step} could not be written ({one_line(error)})"
        self.error = f"{failed}: {kept}"

    def wait(self) -> None:
        """Returns when nothing is being written."""
        step = max(self._manager.all_steps(), default=0)
        try:
            self._manager.wait_until_finished()
        except Exception as error:  # as in `save`
            self.refuse(step, error)

    def newest_step(self) -> int:
        """Of the checkpoints that are there, damaged or not; 0 if there is none."""
        return self._manager.latest_step() or 0

    def restore(
        self,
        like: TrainState,
        check: Callable[[int, dict[str, Any]], None],
        log: Callable[[str], None],
    ) -> Restored:
        """State and host part of the newest checkpoint that is whole.

        A damaged one is logged, with the reason, and set aside as refused-N.

        Args:
          like: shapes with shardings: where the arrays will lie.
          check: of step and host part, before arrays are read; raises InputError to end it all.

        Raises:
          InputError: all of them are damaged, or the newest whole one holds other arrays.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            found = self._restore(step, like, check)
            if not isinstance(found, str):
                return found
            log(f"the checkpoint of step {step} is refused: {found}")
            if processes.is_first():
                aside = self._directory / f"refused-{step}"
                if aside.exists():
                    shutil.rmtree(aside) if isinstance(aside, pathlib.Path) else aside.rmtree()
                (self._directory / str(step)).rename(aside)
            processes.from_first(None)
            self._manager.reload()
        raise InputError(
            f"{self._directory}: all checkpoints are damaged ({len(steps)} refused): put a good "
            "one there, or remove the run's directory to begin anew"
        )

    def _restore(self, step: int, like: TrainState, check) -> Restored | str:
        """A checkpoint, or what is wrong with it."""
        try:
            content = self._host(step)
        except Exception as error:  # damage takes many forms
            return f"host cannot be read ({one_line(error)})"
        check(step, content["host"])
        wanted = {path: [shape] for path, shape, _ in _leaves(like)}
        for path in sorted(wanted.keys() | content["sums"].keys()):
            now, was = (each.get(path, ["absent"])[0] for each in (wanted, content["sums"]))
            if was != now:
                raise InputError(
                    f"{self._directory / str(step)} does not fit this run's state "
                    f"({path}: {was}, now {now})"
                )
        try:
            part = ocp.args.Composite(state=ocp.args.StandardRestore(like))
            state = self._manager.restore(step, args=part)["state"]
        except Exception as error:  # as above
            return f"state cannot be read ({one_line(error)})"
        for path, found in sums(state).items():
            if found != content["sums"][path]:
                return f"state: {path} has other content than was written"
        return state, content["host"]

    def _host(self, step: int) -> dict[str, Any]:
        part = ocp.args.Composite(host=ocp.args.JsonRestore())
        written = self._manager.restore(step, args=part)["host"]
        if written["digest"] != digest(written["text"]):
            raise ValueError("it has other content than was written")
        return json.loads(written["text"])


def digest(text: str) -> str:
    """Of a text, in hexadecimal digits."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def sums(state: TrainState) -> dict[str, list]:
    """Of every array, by path: its dtype and shape, and two sums that any change of it changes."""
    found = {}
    for path, shape, x in _leaves(state):
        if jax.default_backend() == "cpu" and x.is_fully_addressable:
            two = host_sums(np.asarray(x))  # where the arrays are: nothing to compile
        else:  # waited for: on CPU devices, collectives of two programs can wait for each other
            two = np.asarray(device_sums(x)).tolist()
        found[path] = [shape, *two]
    return found


def device_sums(x: jax.Array) -> jax.Array:
    """Two sums modulo 2^32 over the mixed bits of each element and its index, on every process.

    Sums of whole numbers do not depend on their order, so neither on how x is divided over devices.
    """
    if x.sharding.memory_kind == "pinned_host":  # an anchor
        x = jax.device_put(x, x.sharding.with_memory_kind("device"))
    lies = x.sharding
    everywhere = NamedSharding(lies.mesh, P()) if isinstance(lies, NamedSharding) else None
    return jax.jit(_two_sums, out_shardings=everywhere)(x)


def _two_sums(x: jax.Array) -> jax.Array:
    bits = x.astype(jnp.uint8) if x.dtype == bool else x
    bits = jax.lax.bitcast_convert_type(bits, f"uint{8 * bits.dtype.itemsize}")
    index = jnp.zeros(x.shape, jnp.uint32)
    for axis in range(x.ndim):
        stride = jnp.uint32(math.prod(x.shape[axis + 1 :]) % 2**32)
        index += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * stride
    mixed = _mixed(bits.astype(jnp.uint32), index, jnp.uint32)
    return jnp.stack([jnp.sum(each, dtype=jnp.uint32) for each in mixed])


def host_sums(x: np.ndarray) -> list[int]:
    """`device_sums` by NumPy."""
    bits = np.ascontiguousarray(x).reshape(-1).view(f"u{x.dtype.itemsize}")
    total = np.zeros(2, np.uint32)
    for begin in range(0, bits.size, _CHUNK):
        part = bits[begin : begin + _CHUNK].astype(np.uint32)
        index = np.arange(begin, begin + part.size).astype(np.uint32)
        total += np.array([m.sum(dtype=np.uint32) for m in _mixed(part, index, np.uint32)])
    return total.tolist()


def _mixed(bits: Any, index: Any, u32: Any) -> tuple[Any, Any]:
    """Two hashes of each (bits, index): the multipliers are those of Murmur's and xxHash's ends."""
    mixed = (bits ^ (index * u32(0x9E3779B1))) * u32(0x85EBCA6B)
    mixed = (mixed ^ (mixed >> u32(15))) * u32(0xC2B2AE35)
    other = (mixed ^ (mixed >> u32(13))) * u32(0x27D4EB2F)
    return mixed, other ^ (other >> u32(16))


def _leaves(state: TrainState) -> Iterator[tuple[str, str, Any]]:
    """(path, dtype and shape, array or what stands for it), in order; a key as its data."""
    for path, x in jax.tree_util.tree_leaves_with_path(state):
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            data = jax.random.key_data
            x = data(x) if isinstance(x, jax.Array) else jax.eval_shape(data, x)
        yield path_text(path), f"{x.dtype}{list(x.shape)}", x


def check_room(directory: files.Path, state_bytes: int, other_bytes: int, keep: int) -> None:
    """Whether the checkpoints of a run can be written, before it trains.

    Args:
      state_bytes: of one checkpoint.
      other_bytes: of what the run leaves beside them.
      keep: checkpoints that stay; one more is there while it is written.

    Raises:
      InputError: the directory takes no file, or has too little room.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / ".probe").write_text("")
        (directory / ".probe").unlink()
        if not isinstance(directory, pathlib.Path):
            return
        there = sum(path.name.isdecimal() for path in directory.iterdir())
        free = shutil.disk_usage(directory).free
    except Exception as error:  # a bucket's client has errors of many kinds
        raise InputError(f"{directory} cannot be written ({one_line(error)})") from None
    wanted = max(keep + 1 - there, 1)
    needed = wanted * (state_bytes + _OVERHEAD) + other_bytes
    if free < needed:
        raise InputError(
            f"{directory}: {size_text(free)} are free, {size_text(needed)} are needed "
            f"({wanted} checkpoints of {size_text(state_bytes)} and the exported policy): "
            "make room, or lower config.keep_checkpoints"
        )
