"""The record of a run: metrics.jsonl, samples.jsonl and TensorBoard, written as the run goes.

Every line is strict JSON, complete when its `write` returns. JSON has no word for numbers that
are not finite: they are written as the strings "NaN", "Infinity" and "-Infinity", so that an
infinite ratio stays distinct from a missing one; `read_metrics` turns them back into floats
(and pandas reads such a column as floats too).
"""

import contextlib
import json
import math
import pathlib
import warnings
from collections.abc import Mapping
from typing import Any, Protocol

from tensorboardX import SummaryWriter

from remix_jax.errors import InputError

METRICS_FILE = "metrics.jsonl"
SAMPLES_FILE = "samples.jsonl"
NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
# Also drawn against fresh rollouts in TensorBoard, where steps of two methods cost differently.
BY_ROLLOUTS = ("reward", "accuracy", "eval/mean")

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
    """Appends objects to a file, one a line, flushed; a context manager that may close twice.

    A half-written last line (the process was killed within a write) is cut off on opening, so
    that a resumed run never glues its first line to it.
    """

    def __init__(self, path: pathlib.Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        _mend(path)
        # A lone surrogate in a sampled text becomes \udcxx, which is JSON's own escape for it.
        self._file = path.open("a", encoding="utf-8", errors="backslashreplace", newline="\n")

    def write(self, item: Mapping[str, Any]) -> None:
        """Appends one object."""
        self._file.write(json.dumps(_plain(item), ensure_ascii=False, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file. Harmless when repeated."""
        self._file.close()

    def __enter__(self):
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


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
      workdir: directory of the run; made if it is not there. TensorBoard reads
        `workdir`/tensorboard: names without a folder under train/, and reward, accuracy and
        eval/mean a second time under by_rollouts/, with fresh rollouts as their axis.
      console: a `remix_jax.reporting.console.Console`, or None for silence.
    """

    def __init__(self, workdir: str | pathlib.Path, console: Display | None = None) -> None:
        workdir = pathlib.Path(workdir)
        self._console = console
        self._lines = JsonLines(workdir / METRICS_FILE)
        self._board = SummaryWriter(logdir=str(workdir / "tensorboard"))
        self._closing = contextlib.ExitStack()
        # Run in reverse order, each even if another fails: first give the screen back.
        self._closing.callback(self._lines.close)
        self._closing.callback(self._board.close)
        if console is not None:
            self._closing.callback(console.close)

    def write(self, metrics: Mapping[str, Any]) -> None:
        """Records one step: numbers (or scalar arrays) and strings by name.

        Raises:
          KeyError: without "step".
        """
        record = {key: _unwrap(value) for key, value in metrics.items()}
        step = int(record["step"])
        self._lines.write(record)
        for key, value in record.items():
            if isinstance(value, str) or key == "step" or not math.isfinite(value):
                continue
            self._board.add_scalar(key if "/" in key else f"train/{key}", value, step)
            if key in BY_ROLLOUTS and "rollouts" in record:
                name = f"by_rollouts/{key.replace('/', '_')}"
                self._board.add_scalar(name, value, int(record["rollouts"]))
        if self._console is not None:
            self._console.update(record)

    def close(self) -> None:
        """Closes files and console. Harmless when repeated."""
        self._closing.close()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _unwrap(value: Any) -> float | str:
    return value if isinstance(value, str | int | float) else value.item()


def truncate_after(workdir: str | pathlib.Path, step: int) -> None:
    """Drops what a broken attempt wrote beyond `step` from metrics.jsonl and samples.jsonl.

    Called before a run continues from a checkpoint of that step, so that no step is there twice.
    A half-written last line goes too. Files without such lines are left untouched.

    Raises:
      InputError: a damaged line before the last.
    """
    for name in (METRICS_FILE, SAMPLES_FILE):
        path = pathlib.Path(workdir) / name
        if not path.exists():
            continue
        _mend(path)
        with path.open("rb") as lines:  # line by line: samples can be gigabytes
            steps = [_parse(path, i, line)["step"] for i, line in enumerate(lines, start=1)]
        if max(steps, default=0) <= step:
            continue
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
