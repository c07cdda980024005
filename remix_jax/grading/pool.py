"""Comparisons in processes that may hang, crash or grow: each has a deadline, each can be replaced.

The processes are started afresh, never forked, so a parent with JAX's threads is safe; they start
when the first comparison needs one. A process whose parent dies sees its input end and ends too.
"""

import collections
import contextlib
import hashlib
import json
import os
import pathlib
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Literal

from remix_jax.grading import worker as grader_worker

Pair = tuple[str, str]  # (answer, gold)

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_WALL = 5  # a worker may wait for its processor so many times longer than it may use it
_START_SECONDS = 120.0
_MAX_WORKERS = 8
_ATTEMPTS = 2  # a pair whose worker died of something else than its deadline is asked once more
_CACHED = 1 << 17  # verdicts kept, 16 bytes of key each
_FAILED_STARTS = 3  # in a row

Outcome = Literal["same", "different", "timeout", "died"]
_VERDICTS: dict[Outcome, bool | None] = {"same": True, "different": False, "timeout": None}
_REPLIES: dict[bytes | None, Outcome] = {
    grader_worker.SAME: "same",
    grader_worker.DIFFERENT: "different",
    grader_worker.GAVE_UP: "timeout",
}


class _Worker:
    """One process and what it is doing."""

    def __init__(self, module: str, seconds: float) -> None:
        path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, str(seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env=os.environ | {"PYTHONPATH": path},
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._input, self._output = self.process.stdin, self.process.stdout
        self.pipe = self._output.fileno()
        self.ready = False
        self.pair: Pair | None = None
        self.deadline = time.monotonic() + _START_SECONDS

    def send(self, pair: Pair, seconds: float) -> None:
        """Gives it a comparison. A dead process is noticed when its reply is read."""
        self.pair, self.deadline = pair, time.monotonic() + seconds
        with contextlib.suppress(BrokenPipeError):
            self._input.write(json.dumps(pair).encode() + b"\n")

    def read(self) -> bytes:
        """One byte; empty if the process has ended."""
        return os.read(self.pipe, 1)

    def end(self) -> int:
        """Kills and reaps the process: its return code."""
        self.process.kill()
        self._input.close()
        self._output.close()
        return self.process.wait()


class GraderPool:
    """Compares answers in killable processes, started when first needed. Close it, or use `with`.

    Args:
      workers: processes at most; by default one a core, at most 8.
      seconds: processor time for one comparison. Wall-clock time is limited too, at five times
        that, so that a busy machine does not turn right answers into timeouts.
      module: what the processes run (for tests).
    """

    def __init__(
        self,
        workers: int | None = None,
        seconds: float = 2.0,
        module: str = grader_worker.__name__,
    ) -> None:
        self._limit = workers or min(os.cpu_count() or 1, _MAX_WORKERS)
        self._seconds, self._module = seconds, module
        self._workers: list[_Worker] = []
        self._failed_starts = 0
        self._verdicts: collections.OrderedDict[bytes, bool | None] = collections.OrderedDict()
        self._lock, self._owner = threading.Lock(), os.getpid()

    def __enter__(self) -> "GraderPool":
        return self

    def __exit__(self, *_exc) -> None:
        self.close()

    @property
    def pids(self) -> list[int]:
        """Process ids of the living workers."""
        return [worker.process.pid for worker in self._workers]

    def close(self) -> None:
        """Ends and reaps all processes. The pool may be used again: it starts others."""
        if self._owner == os.getpid():
            with self._lock:
                self._stop()

    def compare(self, pairs: Sequence[Pair]) -> list[bool | None]:
        """Whether each answer equals its gold; None where its worker ran out of time or memory.

        Equal pairs are compared once, and remembered, timeouts too. A worker that dies takes no
        other pair with it.

        Raises:
          RuntimeError: the workers do not start.
        """
        if self._owner != os.getpid():  # forked: the processes are the parent's
            self._workers, self._lock, self._owner = [], threading.Lock(), os.getpid()
        with self._lock:
            keys = {pair: _key(pair) for pair in pairs}
            known = {pair: self._verdicts[k] for pair, k in keys.items() if k in self._verdicts}
            missing = [pair for pair in keys if pair not in known]
            for pair in known:
                self._verdicts.move_to_end(keys[pair])
            if missing:
                try:
                    known |= self._compute(missing)
                except BaseException:  # Ctrl-C: a worker in the middle of a pair would reply late
                    self._stop()
                    raise
            return [known[pair] for pair in pairs]

    def _compute(self, pairs: Sequence[Pair]) -> dict[Pair, bool | None]:
        waiting = collections.deque(pairs)
        verdicts: dict[Pair, bool | None] = {}
        lost: collections.Counter[Pair] = collections.Counter()
        while len(verdicts) < len(pairs):
            self._staff(len(pairs) - len(verdicts))
            for worker in self._workers:
                if worker.ready and worker.pair is None and waiting:
                    worker.send(waiting.popleft(), self._seconds * _WALL)
            for pair, verdict in self._listen():
                if verdict != "died":
                    self._remember(pair, _VERDICTS[verdict])
                    verdicts[pair] = _VERDICTS[verdict]
                elif (lost := lost + collections.Counter([pair]))[pair] >= _ATTEMPTS:
                    verdicts[pair] = None  # perhaps not its fault: not remembered
                else:
                    waiting.appendleft(pair)
        return verdicts

    def _staff(self, wanted: int) -> None:
        """Starts workers up to the limit, but no more than there are comparisons."""
        if self._failed_starts >= _FAILED_STARTS:
            self._failed_starts = 0
            raise RuntimeError(
                f"grading processes do not start: `{sys.executable} -m {self._module} 1` says why"
            )
        while len(self._workers) < min(self._limit, wanted):
            self._workers.append(_Worker(self._module, self._seconds))

    def _listen(self) -> list[tuple[Pair, Outcome]]:
        """Waits for news: the comparisons that ended, and how. The dead are buried."""
        by_pipe = {worker.pipe: worker for worker in self._workers}
        soonest = min(w.deadline for w in self._workers if w.pair is not None or not w.ready)
        heard, _, _ = select.select(list(by_pipe), [], [], max(soonest - time.monotonic(), 0))
        ended: list[tuple[Pair, Outcome]] = []
        for pipe, worker in by_pipe.items():
            busy = worker.pair is not None or not worker.ready
            reply = worker.read() if pipe in heard else None
            if reply == grader_worker.READY:
                worker.ready = True
                self._failed_starts = 0
            elif reply in _REPLIES and worker.pair is not None:
                ended.append((worker.pair, _REPLIES[reply]))
                worker.pair = None
                if reply == grader_worker.GAVE_UP:  # its memory may be in pieces
                    self._bury(worker)
            elif reply is not None or (busy and time.monotonic() >= worker.deadline):
                late = self._bury(worker) == -signal.SIGPROF or reply is None
                if worker.pair is not None:
                    ended.append((worker.pair, "timeout" if late else "died"))
        return ended

    def _bury(self, worker: _Worker) -> int:
        self._workers.remove(worker)
        self._failed_starts += not worker.ready
        return worker.end()

    def _remember(self, pair: Pair, verdict: bool | None) -> None:
        self._verdicts[_key(pair)] = verdict
        if len(self._verdicts) > _CACHED:
            self._verdicts.popitem(last=False)

    def _stop(self) -> None:
        while self._workers:
            self._workers.pop().end()


def _key(pair: Pair) -> bytes:
    """What a verdict is kept under: a digest of both texts."""
    return hashlib.blake2b(json.dumps(pair).encode(), digest_size=16).digest()
