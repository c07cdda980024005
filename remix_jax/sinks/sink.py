"""The interface of what takes the figures of a run, and the list of those that a run writes to."""

import functools
import importlib
import json
import pathlib
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from remix_jax import plugins
from remix_jax.errors import InputError
from remix_jax.files import write_durably
from remix_jax.text import one_line

Metrics = Mapping[str, Any]  # by name: numbers (NaN and inf too) and texts
Rows = Sequence[Mapping[str, Any]]  # of samples.jsonl

# name -> (the sink, the package it needs)
TRACKERS = {
    "tensorboard": ("remix_jax.sinks.builtins:TensorBoard", "tensorboardX"),
    "wandb": ("remix_jax.sinks.builtins:WandB", "wandb"),
    "trackio": ("remix_jax.sinks.builtins:Trackio", "trackio"),
    "mlflow": ("remix_jax.sinks.builtins:MLflow", "mlflow"),
}
DEFAULT = "tensorboard"
IDS = "trackers.json"  # in the run's directory: what a tracker knows the run by
_CAPACITY, _PATIENCE = 1000, 60.0  # calls that wait for a tracker; seconds for it to end


class Sink(Protocol):
    """Takes the figures of a run. An exception ends the sink, not the run."""

    def write(self, step: int, metrics: Metrics) -> None:
        """The figures of a step."""

    def samples(self, step: int, rows: Rows) -> None:
        """Responses of a step, as in samples.jsonl."""

    def close(self) -> None:
        """The run has ended; called once."""


class Run(NamedTuple):
    """What a tracker is made from: `Tracker(run) -> Sink`."""

    workdir: pathlib.Path  # where files of the tracker's own may lie
    name: str
    config: dict[str, Any]  # plain data
    history: Sequence[Metrics]  # of a run that continues: what was written so far, with "step"

    def known_as(self, tracker: str) -> str | None:
        """What the tracker called this run when it began; None at the beginning."""
        path = self.workdir / IDS
        return json.loads(path.read_text()).get(tracker) if path.exists() else None

    def remember(self, tracker: str, name: str) -> None:
        """Keeps what the tracker calls this run, for `known_as`."""
        path = self.workdir / IDS
        known = json.loads(path.read_text()) if path.exists() else {}
        write_durably(path, json.dumps(known | {tracker: name}) + "\n")


Tracker = Callable[[Run], Sink]


def trackers(names: Sequence[str | Tracker]) -> dict[str, Tracker]:
    """The trackers of `--trackers`: keys of TRACKERS, `file.py:function`, or functions themselves.

    Raises:
      InputError: an unknown name, a file without that function, or a package that is missing.
    """
    found: dict[str, Tracker] = {}
    for name in names:
        if not isinstance(name, str):
            found[getattr(name, "__name__", repr(name))] = name
            continue
        spec, package = TRACKERS.get(name, (name, ""))
        if ":" not in spec:
            known = ", ".join(TRACKERS)
            raise InputError(f"--trackers={name}: must be {known}, or a file.py:function")
        try:
            if package:
                importlib.import_module(package)
        except Exception as error:  # a package may raise anything
            needs = f"needs the package {package} ({one_line(error)}): pip install {package}"
            raise InputError(f"--trackers={name} {needs}") from None
        found[name] = plugins.load(spec, "--trackers")
    return found


class Sinks:
    """Several sinks as one that never fails: a broken one is named in `errors` and written no more.

    Trackers are called from threads of their own: neither a slow nor a stuck one holds up a step.
    """

    def __init__(self, direct: Mapping[str, Sink], made_from: Mapping[str, Tracker], run: Run):
        self.errors: list[str] = []
        self._sinks: dict[str, Any] = dict(direct)
        for name, make in made_from.items():
            try:
                self._sinks[name] = _Background(make(run))
            except Exception as error:  # a tracker may raise anything
                self._drop(name, error)

    def _each(self, method: str, *arguments: Any) -> None:
        for name, sink in list(self._sinks.items()):
            try:
                getattr(sink, method)(*arguments)
            except Exception as error:  # a sink may raise anything
                self._drop(name, error)

    write = functools.partialmethod(_each, "write")
    samples = functools.partialmethod(_each, "samples")

    def close(self) -> None:
        """Each, also if another fails. Harmless when repeated."""
        self._each("close")
        self._sinks = {}

    def _drop(self, name: str, error: Exception) -> None:
        self._sinks.pop(name, None)
        self.errors.append(f"{name}: {one_line(error)}; it gets no more of this run")


class _Background:
    """A sink behind a thread; what it raised there is raised by the next call."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._error: Exception | None = None
        self._calls: queue.Queue[tuple] = queue.Queue(_CAPACITY)
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _put(self, method: str, *arguments: Any) -> None:
        if self._error is not None:
            raise self._error
        try:
            self._calls.put_nowait((method, *arguments))
        except queue.Full:
            raise TimeoutError(f"{_CAPACITY} calls behind") from None

    write = functools.partialmethod(_put, "write")
    samples = functools.partialmethod(_put, "samples")

    def close(self) -> None:
        self._put("close")
        self._thread.join(_PATIENCE)
        if self._thread.is_alive():
            raise TimeoutError(f"not done {_PATIENCE:.0f} s after the run")
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        method = ""
        while method != "close":
            method, *arguments = self._calls.get()
            try:
                getattr(self._sink, method)(*arguments)
            except Exception as error:  # a sink may raise anything
                self._error = error
                return
