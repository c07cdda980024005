"""The record of a run, its .jsonl files: written as it goes, cut, and read back."""

import contextlib
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from remix_jax.errors import InputError
from remix_jax.files import JsonLines, json_lines

METRICS_FILE, SAMPLES_FILE, WARNINGS_FILE = FILES = (
    *("metrics.jsonl", "samples.jsonl", "warnings.jsonl"),
)
NOT_FINITE = ("NaN", "Infinity", "-Infinity")  # strings there: JSON has no word for these numbers

Metrics = dict[str, Any]


class Record(contextlib.ExitStack):
    """The sink of these files. Lines that a full disk refuses wait in memory: see `JsonLines`."""

    def __init__(self, workdir: pathlib.Path) -> None:
        super().__init__()
        self._files = [JsonLines(workdir / name) for name in FILES]
        self._metrics, self._samples, self._warnings = self._files
        for file in self._files:
            self.callback(file.close)

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """A line of metrics.jsonl."""
        self._metrics.write({"step": step} | dict(metrics))

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """A line of samples.jsonl each."""
        for row in rows:
            self._samples.write({"step": step} | dict(row))

    def warning(self, step: int, rule: str, text: str) -> None:
        """A line of warnings.jsonl."""
        self._warnings.write({"step": step, "rule": rule, "text": text})

    def sync(self) -> None:
        """Brings all to the disk. Raises OSError if the file system does not take it."""
        for file in self._files:
            file.sync()

    @property
    def errors(self) -> list[str]:
        """What the file system does not take now."""
        return [file.error for file in self._files if file.error]


def cut(workdir: pathlib.Path, step: int) -> str | None:
    """Drops from the files what a broken attempt wrote of the steps after this one.

    Returns:
      What is wrong where metrics.jsonl does not reach to it.

    Raises:
      InputError: a damaged line before the last.
    """
    last = {}
    for path in (workdir / name for name in FILES if (workdir / name).exists()):
        end, last[path.name] = 0, -1
        for number, (line, record) in enumerate(json_lines(path), start=1):
            if (at := _step(path, number, record)) > step:
                break
            end, last[path.name] = end + len(line), at
        os.truncate(path, end)
    if step < 0 or last.get(METRICS_FILE) == step:
        return None
    return f"{workdir / METRICS_FILE} has no line of step {step}: what is missing stays missing"


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
    for number, (_, line) in enumerate(json_lines(path), start=1):
        step = _step(path, number, line)
        record = {k: float(v) if v in NOT_FINITE else v for k, v in line.items()}
        while records and records[-1]["step"] > step:
            records.pop()
        same = records.pop() if records and records[-1]["step"] == step else {}
        records.append(same | record)
    return records
