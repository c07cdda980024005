"""Functions in processes that may hang, crash or grow: each call has a deadline, each process can
be replaced.

The processes are started afresh, never forked, so a parent with JAX's threads is safe; they start
when the first request needs one. A process whose parent dies sees its input end and ends too.
"""

import atexit
import collections
import contextlib
import functools
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
from typing import Any, Literal, NamedTuple

Pair = tuple[str, str]  # (answer, gold)

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_WALL = 5  # a worker may wait for its processor so many times longer than it may use it
_START_SECONDS = 120.0
_MAX_WORKERS = 8
_ATTEMPTS = 2  # a request whose worker died of something else than its deadline is made once more
_CACHED = 1 << 17  # verdicts kept, 16 bytes of key each
_FAILED_STARTS = 3  # in a row


class Reply(NamedTuple):
    """What came of a request: a value, or why there is none.

    `failure` is "timeout" (the deadline), "memory" (its limit, or a recursion without end), "died"
    or "error" (the function raised; `line` says what and where).
    """

    value: Any = None
    failure: Literal["timeout", "memory", "died", "error"] | None = None
    line: str = ""


class _Worker:
    """One process and what it is doing."""

    def __init__(self, command: Sequence[str]) -> None:
        # It finds what this process finds, in the same order.
        path = os.pathsep.join([str(_ROOT), *filter(None, sys.path)])
        self.process = subprocess.Popen(
            [sys.executable, "-m", "remix_jax.grading.worker", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env=os.environ | {"PYTHONPATH": path},
            process_group=0,  # so that what a user's function started ends with it
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._input, self._output = self.process.stdin, self.process.stdout
        self.pipe = self._output.fileno()
        self._read = b""
        self.ready = False
        self.request: int | None = None  # index of the one at work
        self.deadline = time.monotonic() + _START_SECONDS

    def send(self, index: int, request: Any, seconds: float) -> None:
        """Gives it a request. A dead process is noticed when its reply is read."""
        self.request, self.deadline = index, time.monotonic() + seconds
        with contextlib.suppress(BrokenPipeError):
            left = memoryview(json.dumps(request, default=str).encode() + b"\n")
            while left:
                left = left[self._input.write(left) :]

    def read(self) -> dict[str, Any] | None:
        """The message that has come; None while a part of it is missing; {} if there is none."""
        part = os.read(self.pipe, 1 << 16)
        self._read += part
        if part and not self._read.endswith(b"\n"):
            return None
        message, self._read = self._read, b""
        try:
            return json.loads(message)
        except ValueError:  # it has ended, or a user's function wrote to its pipe
            return {}

    def end(self) -> int:
        """Kills the process and what it started, and reaps it: its return code."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self._input.close()
        self._output.close()
        return self.process.wait()


class WorkerPool:
    """Calls a function in killable processes, started when first needed. Close it, or use `with`.

    Args:
      factory: `module:function`; called in each process with `arguments`, it returns the function
        that takes a request. Requests and values go through JSON.
      arguments: texts.
      workers: processes at most; by default one a core, at most 8.
      seconds: processor time of one request. Wall-clock time is limited too, at five times that,
        so that a busy machine does not turn right answers into timeouts.
      memory: bytes of address space of one process.
    """

    def __init__(
        self,
        factory: str,
        *arguments: str,
        workers: int | None = None,
        seconds: float = 2.0,
        memory: int = 1 << 30,
    ) -> None:
        self._command = [factory, str(seconds), str(memory), *arguments]
        self._limit = workers or min(os.cpu_count() or 1, _MAX_WORKERS)
        self._seconds = seconds
        self._workers: list[_Worker] = []
        self._failed_starts, self._why = 0, ""
        self._lock, self._owner = threading.Lock(), os.getpid()

    def __enter__(self):
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

    def start(self) -> None:
        """Waits until a first worker is ready.

        Raises:
          RuntimeError: it does not start; the message says why.
        """
        with self._lock:
            self._staff(1)
            while not any(worker.ready for worker in self._workers):
                self._listen()
                self._staff(1)

    def map(self, requests: Sequence[Any]) -> list[Reply]:
        """The reply to each request, in order. A worker that dies takes no other request with it.

        Raises:
          RuntimeError: the workers do not start; the message says why.
        """
        if self._owner != os.getpid():  # forked: the processes are the parent's
            self._workers, self._lock, self._owner = [], threading.Lock(), os.getpid()
        with self._lock:
            try:
                return self._map(requests)
            except BaseException:  # Ctrl-C: a worker in the middle of a request would reply late
                self._stop()
                raise

    def _map(self, requests: Sequence[Any]) -> list[Reply]:
        waiting = collections.deque(range(len(requests)))
        replies: dict[int, Reply] = {}
        deaths: collections.Counter[int] = collections.Counter()
        while len(replies) < len(requests):
            self._staff(len(requests) - len(replies))
            for worker in self._workers:
                if worker.ready and worker.request is None and waiting:
                    index = waiting.popleft()
                    worker.send(index, requests[index], self._seconds * _WALL)
            for index, reply in self._listen():
                deaths[index] += reply.failure == "died"
                if reply.failure == "died" and deaths[index] < _ATTEMPTS:
                    waiting.appendleft(index)
                else:
                    replies[index] = reply
        return [replies[i] for i in range(len(requests))]

    def _staff(self, wanted: int) -> None:
        """Starts workers up to the limit, but no more than there are requests."""
        if self._failed_starts >= _FAILED_STARTS:
            self._failed_starts = 0
            raise RuntimeError(f"the processes of {self._command[0]} do not start: {self._why}")
        while len(self._workers) < min(self._limit, wanted):
            self._workers.append(_Worker(self._command))

    def _listen(self) -> list[tuple[int, Reply]]:
        """Waits for messages: the requests that ended, and how. Dead workers are removed."""
        by_pipe = {worker.pipe: worker for worker in self._workers}
        soonest = min(w.deadline for w in self._workers if w.request is not None or not w.ready)
        heard, _, _ = select.select(list(by_pipe), [], [], max(soonest - time.monotonic(), 0))
        ended: list[tuple[int, Reply]] = []
        for pipe, worker in by_pipe.items():
            message = worker.read() if pipe in heard else None
            if message is not None and "ready" in message:
                worker.ready, self._failed_starts = True, 0
                continue
            reply = None if message is None else _reply(message)
            late = time.monotonic() >= worker.deadline
            if reply is None and late and (worker.request is not None or not worker.ready):
                reply = Reply(failure="timeout")
            if reply is None:
                continue
            # Of a worker without memory what is left may be in pieces.
            if reply.failure in ("timeout", "died", "memory") or not worker.ready:
                reply = self._remove(worker, reply)
            if worker.request is not None:
                ended.append((worker.request, reply))
                worker.request = None
        return ended

    def _remove(self, worker: _Worker, reply: Reply) -> Reply:
        """Ends a worker; the reply in its place, for the kernel may have ended it before."""
        self._workers.remove(worker)
        if not worker.ready:
            self._failed_starts += 1
            self._why = reply.line or f"`{sys.executable} -m remix_jax.grading.worker` says why"
        code = worker.end()
        return Reply(failure="timeout") if code == -signal.SIGPROF else reply

    def _stop(self) -> None:
        while self._workers:
            self._workers.pop().end()


def _reply(message: dict[str, Any]) -> Reply:
    if "error" in message:
        return Reply(failure="error", line=message["error"])
    if "gave_up" in message:
        return Reply(failure="memory")
    return Reply(message["value"]) if "value" in message else Reply(failure="died")


class GraderPool(WorkerPool):
    """The workers that compare two answers by algebra (`equivalence`); verdicts are remembered.

    Args:
      workers, seconds: see `WorkerPool`.
      factory: makes the comparison (for tests).
    """

    def __init__(
        self,
        workers: int | None = None,
        seconds: float = 2.0,
        factory: str = "remix_jax.grading.equivalence:comparison",
    ) -> None:
        super().__init__(factory, workers=workers, seconds=seconds)
        self._verdicts: collections.OrderedDict[bytes, bool | None] = collections.OrderedDict()

    def compare(self, pairs: Sequence[Pair]) -> list[bool | None]:
        """Whether each answer equals its gold; None where its worker ran out of time or memory.

        Equal pairs are compared once, and remembered, timeouts too. A pair that the comparison
        fails on is different.

        Raises:
          RuntimeError: the workers do not start.
        """
        keys = {
            pair: hashlib.blake2b(json.dumps(pair).encode(), digest_size=16).digest()
            for pair in pairs
        }
        known = {pair: self._verdicts[key] for pair, key in keys.items() if key in self._verdicts}
        for pair in known:
            self._verdicts.move_to_end(keys[pair])
        missing = [pair for pair in keys if pair not in known]
        for pair, reply in zip(missing, self.map(missing) if missing else [], strict=True):
            known[pair] = None if reply.failure else reply.value
            if reply.failure == "error":  # no expression, or none that sympy knows
                known[pair] = False
            if reply.failure != "died":  # perhaps not its fault: not remembered
                self._verdicts[keys[pair]] = known[pair]
        while len(self._verdicts) > _CACHED:
            self._verdicts.popitem(last=False)
        return [known[pair] for pair in pairs]


@functools.cache
def process_pool() -> GraderPool:
    """The pool of this process: shared by its runs, ended with it."""
    pool = GraderPool()
    atexit.register(pool.close)
    return pool
