"""The record of a run, metrics.jsonl and samples.jsonl: written as it goes, cut, and read back.

Every line is strict JSON, and on the disk as a whole or not at all. JSON has no word for numbers
that are not finite: they are the strings "NaN", "Infinity" and "-Infinity", which `read_metrics`
and pandas turn back into floats.
"""

import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from remix_jax.errors import InputError
from remix_jax.files import JsonLines, mend, parse_line, read_json_lines

METRICS_FILE, SAMPLES_FILE = "metrics.jsonl", "samples.jsonl"
FILES = (METRICS_FILE, SAMPLES_FILE)
NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}

Metrics = dict[str, Any]


class Record:
    """The sink of both files. Lines that a full disk refuses wait in memory: see `JsonLines`."""

    def __init__(self, workdir: pathlib.Path) -> None:
        self._files = {name: JsonLines(workdir / name) for name in FILES}

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """A line of metrics.jsonl."""
        self._files[METRICS_FILE].write({"step": step} | dict(metrics))

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """A line of samples.jsonl each."""
        for row in rows:
            self._files[SAMPLES_FILE].write({"step": step} | dict(row))

    def sync(self) -> dict[str, int]:
        """Brings all to the disk; the length of each file, offsets to continue from.

        Raises:
          OSError: the file system does not take it.
        """
        return {name: file.sync() for name, file in self._files.items()}

    @property
    def errors(self) -> list[str]:
        """What the file system does not take now."""
        return [file.error for file in self._files.values() if file.error]

    def close(self) -> None:
        """Closes the files. Raises OSError if lines are lost by it."""
        try:
            self._files[METRICS_FILE].close()
        finally:
            self._files[SAMPLES_FILE].close()


def cut(workdir: pathlib.Path, offsets: Mapping[str, int], step: int) -> list[str]:
    """Drops what a broken attempt wrote to the files beyond a checkpoint.

    Args:
      offsets: lengths in bytes by file name, as `sync` gave them when the checkpoint was made.
      step: of the checkpoint.

    Returns:
      What is wrong with a file that does not reach to its offset; it is cut by its steps instead.

    Raises:
      InputError: a damaged line before the last in such a file.
    """
    notes = []
    for name, offset in offsets.items():
        path = workdir / name
        size = path.stat().st_size if path.exists() else 0
        if _ends_line(path, offset):
            if size > offset:
                os.truncate(path, offset)
            continue
        notes.append(
            f"{path} was changed since the checkpoint of step {step} ({size:,} bytes, {offset:,} "
            "belong to it): what it holds of later steps is dropped, what is missing stays missing"
        )
        _cut_by_steps(path, step)
    return notes


def _ends_line(path: pathlib.Path, offset: int) -> bool:
    """Whether a line of the file ends there."""
    if offset == 0:
        return True
    if not path.exists():
        return False
    with path.open("rb") as file:
        file.seek(offset - 1)
        return file.read(1) == b"\n"


def _cut_by_steps(path: pathlib.Path, step: int) -> None:
    """Drops the lines of later steps, and a half-written last line."""
    if not path.exists():
        return
    mend(path)
    with path.open("rb") as lines:  # line by line: samples can be gigabytes
        steps = [_step(path, i, parse_line(path, i, line)) for i, line in enumerate(lines, start=1)]
    spare = path.with_suffix(".tmp")
    with path.open("rb") as lines, spare.open("wb") as kept:
        kept.writelines(line for line, at in zip(lines, steps, strict=True) if at <= step)
    spare.replace(path)


def _step(path: pathlib.Path, number: int, record: Metrics) -> int:
    if not isinstance(record.get("step"), int):
        raise InputError(f"{path}, line {number}: expected a JSON object with a step")
    return record["step"]


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
    records: list[Metrics] = []
    for number, line in enumerate(read_json_lines(path), start=1):
        step = _step(path, number, line)
        record = {
            key: NOT_FINITE.get(value, value) if isinstance(value, str) else value
            for key, value in line.items()
        }
        while records and records[-1]["step"] > step:
            records.pop()
        if records and records[-1]["step"] == step:
            records[-1].update(record)
        else:
            records.append(record)
    return records
