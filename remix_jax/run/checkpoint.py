"""The states of a run on disk: whole or absent, checked when read. The only importer of orbax.

    checkpoints/50/state/         every array of the TrainState, by orbax
    checkpoints/50/host.json      the host's part: counters, places in files, the config
    checkpoints/50/manifest.json  length and digest of every other file, written last

A checkpoint is written as writing-50 and renamed when all of it is on the disk; an old one is
renamed to deleting-N before its files go. So a number names a whole checkpoint, wherever the
process was killed; what happens to the files later, the digests tell.
"""

import hashlib
import json
import os
import pathlib
import shutil
import threading
from collections.abc import Callable
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from remix_jax import processes
from remix_jax.errors import InputError
from remix_jax.learner.state import TrainState, copy
from remix_jax.text import one_line, size_text

MANIFEST, HOST, STATE = "manifest.json", "host.json", "state"
_WRITING, _DELETING, _REFUSED = "writing-", "deleting-", "refused-"
_FORMAT = 1
_PROBE = ".probe"
_OVERHEAD = 1 << 20  # bytes of a checkpoint that are no array, at most


class SaveError(RuntimeError):
    """The last state of a run could not be written."""


class Checkpoints:
    """The states of a run in `directory`; a context manager, which waits for what is being written.

    Files are written by a thread while training goes on; `save` itself takes as long as a copy. A
    state that cannot be written (a full disk) leaves nothing behind and is told in `trouble`. On
    several processes all call all methods; the directory is one that all of them see.

    Args:
      keep: the newest so many stay.
      keep_every: those of steps that this divides stay too; 0: none.
    """

    def __init__(self, directory: pathlib.Path, keep: int, keep_every: int = 0) -> None:
        self._directory = directory.absolute()
        self._keep, self._keep_every = keep, keep_every
        self._orbax = ocp.AsyncCheckpointer(ocp.StandardCheckpointHandler())
        self._thread: threading.Thread | None = None
        self.trouble: str | None = None  # why the last save failed, None if it did not
        if processes.is_first():
            _prepare(directory)

    def save(self, step: int, state: TrainState, host: dict[str, Any]) -> None:
        """Returns when `state` may be donated. A step that is there already is left as it is."""
        self.wait()
        if processes.from_first(step in steps(self._directory)):
            return
        self.trouble = None
        scratch = self._directory / f"{_WRITING}{step}"
        try:
            self._make(scratch)
            # On a CPU orbax writes from the very buffers that the next step is going to reuse.
            own = copy(state) if jax.default_backend() == "cpu" else state
            self._orbax.save(scratch / STATE, args=ocp.args.StandardSave(own))
        except Exception as error:  # of the file system's or tensorstore's many kinds
            self._give_up(scratch, step, error)
            return
        text = json.dumps(host)
        self._thread = threading.Thread(target=self._complete, args=(scratch, step, text))
        self._thread.start()

    def refuse(self, step: int, error: Exception) -> None:
        """Says that the checkpoint of a step cannot be made: what belongs beside it is missing."""
        self.wait()
        self._give_up(self._directory / f"{_WRITING}{step}", step, error)

    def wait(self) -> None:
        """Returns when nothing is being written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def close(self) -> None:
        """Waits, and ends orbax's threads."""
        self.wait()
        self._orbax.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def newest(self, tell: Callable[[str], None]) -> tuple[int, dict[str, Any]] | None:
        """Step and host part of the newest checkpoint that is whole; None if there is none at all.

        A damaged one is told, with the reason, and set aside as refused-N.

        Raises:
          InputError: there are some, all damaged.
        """
        step = -1
        if processes.is_first():
            step = self._newest(tell)
        if jax.process_count() > 1:
            step = int(multihost_utils.broadcast_one_to_all(step))
        if step < 0:
            return None
        return step, json.loads((self._directory / str(step) / HOST).read_text())

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The state of a step that `newest` gave, placed as `like` (shapes with shardings) is.

        Raises:
          InputError: it holds other arrays than `like`.
        """
        path = self._directory / str(step) / STATE
        try:
            return self._orbax.restore(path, args=ocp.args.StandardRestore(like))
        except (ValueError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise InputError(f"{path} does not fit this run's state ({reason})") from None

    def _newest(self, tell: Callable[[str], None]) -> int:
        refused = 0
        for step in reversed(steps(self._directory)):
            path = self._directory / str(step)
            reason = damage(path)
            if reason is None:
                return step
            tell(f"the checkpoint of step {step} is refused: {reason}")
            aside = self._directory / f"{_REFUSED}{step}"
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
            refused += 1
        if refused:
            raise InputError(
                f"{self._directory}: all checkpoints are damaged ({refused} refused): put a good "
                "one there, or remove the run's directory to begin anew"
            )
        return -1

    def _make(self, scratch: pathlib.Path) -> None:
        """A new directory; where the first process cannot make it, all raise its OSError."""
        failed = None
        if processes.is_first():
            try:
                scratch.mkdir()
            except OSError as error:
                failed = one_line(error)
        failed = processes.from_first(failed)
        if failed:
            raise OSError(failed)

    def _complete(self, scratch: pathlib.Path, step: int, host: str) -> None:
        """What follows orbax's own writing, in a thread."""
        try:
            self._orbax.wait_until_finished()
            if not processes.is_first():
                return
            (scratch / HOST).write_text(host)
            write_durably(scratch / MANIFEST, json.dumps(_manifest(scratch, step)))
            scratch.rename(self._directory / str(step))
            _sync(self._directory)
            self._delete_old()
        except Exception as error:  # as in `save`
            self._give_up(scratch, step, error)

    def _give_up(self, scratch: pathlib.Path, step: int, error: Exception) -> None:
        if processes.is_first():
            shutil.rmtree(scratch, ignore_errors=True)
        good = steps(self._directory)
        kept = f"the last good one is of step {good[-1]}" if good else "there is none yet"
        why = one_line(error)
        self.trouble = f"the checkpoint of step {step} could not be written ({why}): {kept}"

    def _delete_old(self) -> None:
        for step in steps(self._directory)[: -self._keep]:
            if self._keep_every and step % self._keep_every == 0:
                continue
            gone = (self._directory / str(step)).rename(self._directory / f"{_DELETING}{step}")
            shutil.rmtree(gone)


def steps(directory: pathlib.Path) -> list[int]:
    """Of the checkpoints in a directory, in order."""
    if not directory.is_dir():
        return []
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdecimal())


def damage(path: pathlib.Path) -> str | None:
    """What is wrong with a checkpoint, None if nothing is: every byte is read and compared."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        known = manifest["format"] == _FORMAT
        entries = manifest["files"].items()
        files = {name: (int(entry["bytes"]), str(entry["digest"])) for name, entry in entries}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"its {MANIFEST} cannot be read ({one_line(error)})"
    if not known or HOST not in files:
        return f"its {MANIFEST} is of another format"
    for name, (size, digest) in files.items():
        try:
            found = (path / name).stat().st_size
            if found != size:
                return f"{name} has {found:,} bytes, not {size:,}"
            if _digest(path / name) != digest:
                return f"{name} has other content than was written"
        except OSError as error:
            return f"{name} cannot be read ({one_line(error)})"
    return None


def check_room(directory: pathlib.Path, state_bytes: int, other_bytes: int, keep: int) -> None:
    """Whether the checkpoints of a run can be written, before it trains.

    Args:
      state_bytes: of one checkpoint.
      other_bytes: of what the run leaves beside them.
      keep: checkpoints that stay; one more is there while it is written.

    Raises:
      InputError: the directory takes no file, or has too little room.
    """
    try:
        _prepare(directory)
        for folder in (directory.parent, directory):
            write_durably(folder / _PROBE, "")
            (folder / _PROBE).unlink()
        free = shutil.disk_usage(directory).free
    except OSError as error:
        raise InputError(f"{directory} cannot be written ({one_line(error)})") from None
    wanted = max(keep + 1 - len(steps(directory)), 1)
    needed = wanted * (state_bytes + _OVERHEAD) + other_bytes
    if free < needed:
        raise InputError(
            f"{directory}: {size_text(free)} are free, {size_text(needed)} are needed "
            f"({wanted} checkpoints of {size_text(state_bytes)} and the exported policy): "
            "make room, or lower config.keep_checkpoints"
        )


def _prepare(directory: pathlib.Path) -> None:
    """Makes the directory, without what a killed process left half written or half deleted."""
    directory.mkdir(parents=True, exist_ok=True)
    for left in (_WRITING, _DELETING):
        for path in directory.glob(f"{left}*"):
            shutil.rmtree(path)


def write_durably(path: pathlib.Path, text: str) -> None:
    """Writes a small file whole or not at all, also through a loss of power."""
    spare = path.with_name(path.name + ".tmp")
    with spare.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    spare.replace(path)
    _sync(path.parent)


def _manifest(folder: pathlib.Path, step: int) -> dict[str, Any]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "digest": _digest(path)}
        for path in paths
    }
    return {"format": _FORMAT, "step": step, "files": files}


def _digest(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "blake2b").hexdigest()[:32]


def _sync(directory: pathlib.Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
