"""TensorBoard's view of metrics.jsonl: made from it when a run continues, appended to as it goes.

Written in the caller's thread: a writer thread that dies of a full disk would block the run.
"""

import math
import pathlib
import shutil
import time
from collections.abc import Iterable, Mapping
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2, summary_pb2

FOLDER = "tensorboard"
_FLUSH_SECONDS = 30.0
# Also drawn against fresh rollouts, where steps of two methods cost differently.
BY_ROLLOUTS = ("reward", "accuracy", "eval/mean")


class Board:
    """Scalars in `workdir`/tensorboard: names without a folder under train/; a few, a second time,
    under by_rollouts/ with fresh rollouts as their axis.

    What was there is replaced by `records`: no step is missing or doubled after a killed attempt.
    An error of the file system ends the view, not the run; `trouble` then says why.
    """

    def __init__(self, workdir: pathlib.Path, records: Iterable[Mapping[str, object]] = ()) -> None:
        self._folder = workdir / FOLDER
        self._writer: EventsWriter | None = None
        self._flushed = -math.inf
        self.trouble: str | None = None
        records = list(records)
        now = time.time()
        last = _seconds(records[-1]) if records else 0.0
        with _Caught(self):
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder.mkdir(parents=True)
            self._writer = EventsWriter(str(self._folder / "events"))
        for record in records:  # at the moments of a run without pauses
            self.write(record, now - last + _seconds(record))

    def write(self, record: Mapping[str, object], at: float | None = None) -> None:
        """The numbers of one step, at a moment (now)."""
        by_step, by_rollouts = {}, {}
        for name, value in record.items():
            if isinstance(value, int | float) and name != "step" and math.isfinite(value):
                by_step[name if "/" in name else f"train/{name}"] = value
                if name in BY_ROLLOUTS and "rollouts" in record:
                    by_rollouts[f"by_rollouts/{name.replace('/', '_')}"] = value
        moment = time.time() if at is None else at
        with _Caught(self):
            self._add(by_step, record["step"], moment)
            if by_rollouts:
                self._add(by_rollouts, record["rollouts"], moment)
            if self._writer is not None and time.monotonic() - self._flushed > _FLUSH_SECONDS:
                self._writer.flush()
                self._flushed = time.monotonic()

    def close(self) -> None:
        """Writes what is buffered and closes the file. Harmless when repeated."""
        with _Caught(self):
            if self._writer is not None:
                self._writer.close()
        self._writer = None

    def _add(self, scalars: dict[str, float], axis: Any, moment: float) -> None:
        if self._writer is None:
            return
        values = [
            summary_pb2.Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()
        ]
        summary = summary_pb2.Summary(value=values)
        event = event_pb2.Event(wall_time=moment, step=int(axis), summary=summary)
        self._writer.write_event(event)


class _Caught:
    """Turns an error of the file system into the board's `trouble`, and the board off."""

    def __init__(self, board: Board) -> None:
        self._board = board

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind, error, _trace) -> bool:
        if not isinstance(error, OSError):
            return False
        self._board.trouble = (
            f"{FOLDER}: {error.strerror or error}; made anew when the run continues"
        )
        self._board._writer = None
        return True


def _seconds(record: Mapping[str, object]) -> float:
    seconds = record.get("seconds", 0.0)
    return seconds if isinstance(seconds, float) and math.isfinite(seconds) else 0.0
