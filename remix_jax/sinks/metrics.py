"""The record of a run: metrics.jsonl, samples.jsonl and TensorBoard, written as the run goes.

Every line is strict JSON, and on the disk as a whole or not at all, also where the disk is full:
what could not be written is kept and written before the next line. JSON has no word for numbers
that are not finite: they are written as the strings "NaN", "Infinity" and "-Infinity", so that an
infinite ratio stays distinct from a missing one; `read_metrics` turns them back into floats
(and pandas reads such a column as floats too).
"""

import contextlib
import json
import math
import os
import pathlib
import warnings
from collections.abc import Mapping
from typing import Any, Protocol

from remix_jax.errors import InputError
from remix_jax.sinks.tensorboard import Board

METRICS_FILE = "metrics.jsonl"
SAMPLES_FILE = "samples.jsonl"
NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}

Metrics = dict[str, Any]


class Display(Protocol):
    """What MetricsWriter asks of a console."""

    def update(self, metrics: Mapping[str, float | str]) -> None: ...

    def close(self) -> None: ...


def _plain(value: Any) -> Any:
    """A value that strict JSON can hold: NumPy and JAX scalars unwrapped, NaN and inf named."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if not isinstance(value, str | int | float | None):
        return _plain(value.item() if getattr(value, "ndim", 0) == 0 else value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


class JsonLines:
    """Appends objects to a file, one a line; a context manager that may close twice.

    A half-written last line (the process was killed within a write) is cut off on opening, so
    that a resumed run never glues its first line to it. Where the file system takes no more,
    `trouble` says why, lines wait in memory, and each later write tries them all again.
    """

    def __init__(self, path: pathlib.Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        _mend(path)
        self._file = path.open("ab", buffering=0)
        self._size = self._file.seek(0, os.SEEK_END)
        self._waiting = b""
        self.trouble: str | None = None

    def write(self, item: Mapping[str, Any]) -> None:
        """Appends one object."""
        text = json.dumps(_plain(item), ensure_ascii=False, allow_nan=False) + "\n"
        # A lone surrogate in a sampled text becomes \udcxx, which is JSON's own escape for it.
        self._waiting += text.encode("utf-8", "backslashreplace")
        try:
            self._drain()
            self.trouble = None
        except OSError as error:
            self.trouble = f"{self._file.name}: {error.strerror or error}"

    def sync(self) -> int:
        """Brings all lines to the disk; the length of the file, a place to continue from.

        Raises:
          OSError: the file system does not take them.
        """
        self._drain()
        os.fsync(self._file.fileno())
        return self._size

    def close(self) -> None:
        """Closes the file. Harmless when repeated. Raises OSError if lines are lost by it."""
        if self._file.closed:
            return
        try:
            self._drain()
        except OSError as error:
            raise OSError(error.errno, error.strerror, self._file.name) from None
        finally:
            self._file.close()

    def __enter__(self):
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _drain(self) -> None:
        """Writes what waits. On an error the file ends where it ended before."""
        if not self._waiting:
            return
        try:
            rest = memoryview(self._waiting)
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            self._file.truncate(self._size)
            raise
        self._size += len(self._waiting)
        self._waiting = b""


def _mend(path: pathlib.Path) -> None:
    """Makes the file end at the end of a line."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        size = end = file.seek(0, 2)
        tail = b""
        while end and b"\n" not in tail:  # from the end: samples can be gigabytes
            start = max(0, end - 65536)
            file.seek(start)
            tail = file.read(end - start) + tail
            end = start
        tail = tail[tail.rfind(b"\n") + 1 :]
        if not tail:
            return
        try:
            json.loads(tail)
        except ValueError:
            warnings.warn(f"{path}: cut off a half-written last line", stacklevel=2)
            file.truncate(size - len(tail))
        else:
            file.seek(0, 2)
            file.write(b"\n")


class SamplesWriter(JsonLines):
    """Writes samples.jsonl in `workdir`: one response a line (step, prompt, reward, ...)."""

    def __init__(self, workdir: str | pathlib.Path) -> None:
        super().__init__(pathlib.Path(workdir) / SAMPLES_FILE)


class MetricsWriter:
    """Writes the figures of each step to metrics.jsonl, TensorBoard and a console.

    A context manager; leaving it, by an exception or Ctrl-C too, writes everything and takes the
    console's panel down. A run that continues appends to the file that is there.

    Args:
      workdir: directory of the run; made if it is not there.
      console: a `remix_jax.sinks.console.Console`, or None for silence.
    """

    def __init__(self, workdir: str | pathlib.Path, console: Display | None = None) -> None:
        workdir = pathlib.Path(workdir)
        self._console = console
        self._lines = JsonLines(workdir / METRICS_FILE)
        self._board = Board(workdir, read_metrics(workdir))
        self._closing = contextlib.ExitStack()
        # Run in reverse order, each even if another fails: first give the screen back.
        self._closing.callback(self._lines.close)
        self._closing.callback(self._board.close)
        if console is not None:
            self._closing.callback(console.close)

    @property
    def trouble(self) -> str | None:
        """What the file system does not take, None if it takes all."""
        return self._lines.trouble or self._board.trouble

    def write(self, metrics: Mapping[str, Any]) -> None:
        """Records one step: numbers (or scalar arrays) and strings by name.

        Raises:
          KeyError: without "step".
        """
        record = {key: _unwrap(value) for key, value in metrics.items()}
        record["step"] = int(record["step"])
        self._lines.write(record)
        self._board.write(record)
        if self._console is not None:
            self._console.update(record)

    def sync(self) -> int:
        """As `JsonLines.sync`."""
        return self._lines.sync()

    def close(self) -> None:
        """Closes files and console. Harmless when repeated."""
        self._closing.close()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _unwrap(value: Any) -> float | str:
    return value if isinstance(value, str | int | float) else value.item()


def cut(workdir: str | pathlib.Path, places: Mapping[str, int], step: int) -> list[str]:
    """Drops what a broken attempt wrote beyond a checkpoint from metrics.jsonl and samples.jsonl.

    Args:
      places: lengths in bytes by file name, as `sync` gave them when the checkpoint was made.
      step: of the checkpoint.

    Returns:
      What is wrong with a file that does not reach to its place; it is cut by its steps instead.

    Raises:
      InputError: a damaged line before the last in such a file.
    """
    notes = []
    for name, place in places.items():
        path = pathlib.Path(workdir) / name
        size = path.stat().st_size if path.exists() else 0
        if _ends_line(path, place):
            if size > place:
                os.truncate(path, place)
            continue
        notes.append(
            f"{path} was changed since the checkpoint of step {step} ({size:,} bytes, {place:,} "
            "belong to it): what it holds of later steps is dropped, what is missing stays missing"
        )
        _cut_by_steps(path, step)
    return notes


def _ends_line(path: pathlib.Path, place: int) -> bool:
    """Whether a line of the file ends there."""
    if place == 0:
        return True
    if not path.exists():
        return False
    with path.open("rb") as file:
        file.seek(place - 1)
        return file.read(1) == b"\n"


def _cut_by_steps(path: pathlib.Path, step: int) -> None:
    """Drops the lines of later steps, and a half-written last line."""
    if not path.exists():
        return
    _mend(path)
    with path.open("rb") as lines:  # line by line: samples can be gigabytes
        steps = [_parse(path, i, line)["step"] for i, line in enumerate(lines, start=1)]
    if max(steps, default=0) <= step:
        return
    spare = path.with_suffix(".tmp")
    with path.open("rb") as lines, spare.open("wb") as kept:
        kept.writelines(line for line, at in zip(lines, steps, strict=True) if at <= step)
    spare.replace(path)


def _parse(path: pathlib.Path, number: int, line: bytes) -> Metrics:
    """One line as a dict with a step; InputError names the line otherwise."""
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    if not isinstance(record, dict) or not isinstance(record.get("step"), int):
        raise InputError(f"{path}, line {number}: expected a JSON object with a step")
    return record


def read_metrics(workdir: str | pathlib.Path) -> list[Metrics]:
    """The record of a run, one dict a step, in order of steps.

    A half-written last line is left out with a warning. Where a run was resumed, what the broken
    attempt wrote beyond the point of resumption is left out; two lines of one step become one, the
    later value of a name winning.

    Args:
      workdir: directory of the run, or the path of a metrics.jsonl.
    Raises:
      InputError: no such file, or a damaged line before the last.
    """
    path = pathlib.Path(workdir)
    path = path / METRICS_FILE if path.is_dir() else path
    if not path.is_file():
        raise InputError(
            f"{path}: no metrics here; expected a run's directory or its {METRICS_FILE}"
        )
    lines = path.read_bytes().split(b"\n")
    records: list[Metrics] = []
    for index, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            record = _parse(path, index + 1, line)
        except InputError:
            if index < len(lines) - 1:
                raise
            warnings.warn(f"{path}: left out a half-written last line", stacklevel=2)
            continue
        record = {
            key: NOT_FINITE.get(value, value) if isinstance(value, str) else value
            for key, value in record.items()
        }
        while records and records[-1]["step"] > record["step"]:
            records.pop()
        if records and records[-1]["step"] == record["step"]:
            records[-1].update(record)
        else:
            records.append(record)
    return records
