"""Functions in processes that may hang, crash or grow: each call has a deadline, each process can
be replaced.

The processes are started afresh, never forked, so a parent with JAX's threads is safe. They import
no JAX, hold nothing that would be missed, and end when their input does: with their parent.
"""

import atexit
import collections
import contextlib
import functools
import importlib
import json
import os
import pathlib
import resource
import select
import signal
import subprocess
import sys
import sysconfig
import threading
import time
import traceback
from collections.abc import Sequence
from concurrent import futures
from typing import Any, Literal, NamedTuple

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_SERVE = "from math_grader import pool; pool.serve()"
_WALL = 5  # a worker may wait for its processor so many times longer than it may use it
_START_SECONDS = 120.0
_MAX_WORKERS = 8
_CACHED = 1 << 15  # verdicts kept
_FAILED_STARTS = 3  # in a row


class Reply(NamedTuple):
    """What came of a request: a value, or why there is none. A line of JSON between processes.

    `failure` is "timeout" (the deadline), "memory" (its limit, or a recursion without end), "died"
    or "error" (the function raised; `line` says what and where).
    """

    value: Any = None
    failure: Literal["timeout", "memory", "died", "error"] | None = None
    line: str = ""


def serve() -> None:
    """The life of a worker: `FACTORY SECONDS BYTES [ARGUMENT ...]` on its command line.

    What the factory returns answers every line of the input, after an empty reply that says that it
    is there. What is printed is dropped, so that none of it is taken for a reply.
    """
    factory, seconds, size, *arguments = sys.argv[1:]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the run, which ends its workers
    resource.setrlimit(resource.RLIMIT_AS, (int(size), int(size)))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    requests, replies = os.fdopen(os.dup(0), "rb"), os.dup(1)
    silence = os.open(os.devnull, os.O_RDWR)
    os.dup2(silence, 0)
    os.dup2(silence, 1)

    def send(reply: Reply) -> None:
        left = json.dumps(reply).encode() + b"\n"
        while left:
            left = left[os.write(replies, left) :]

    module, _, name = factory.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)(*arguments)
    except Exception as error:
        send(Reply(failure="error", line=error_line(error)))
        raise
    send(Reply())
    for request in requests:
        # More processor time ends the process by SIGPROF: by the kernel, so also inside a
        # library's C code, and also when nobody is left to kill it.
        signal.setitimer(signal.ITIMER_PROF, float(seconds))
        try:
            reply = Reply(function(json.loads(request)))
        except (MemoryError, RecursionError):
            reply = Reply(failure="memory")
        except (Exception, SystemExit) as error:  # whatever a user's function, or sympy, raises
            reply = Reply(failure="error", line=error_line(error))
        signal.setitimer(signal.ITIMER_PROF, 0)
        send(reply)


def error_line(error: BaseException, skip: str = __file__) -> str:
    """One line of an exception: `file.py:12: NameError: name 'x' is not defined`.

    The line is the innermost one of code that is no library's, if there is one, and not of the file
    `skip`, the caller's.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}: {type(error).__name__}: {error.msg}"
    every = traceback.extract_tb(error.__traceback__)
    frames = [f for f in every if not f.filename.startswith(("<", skip))]
    libraries = tuple(sysconfig.get_paths()[kind] for kind in ("stdlib", "purelib", "platlib"))
    own = [f for f in frames if not f.filename.startswith(libraries)] or frames
    where = f"{own[-1].filename}:{own[-1].lineno}: " if own else ""
    return f"{where}{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")


class _Worker:
    """One process; one thread at a time speaks to it."""

    def __init__(self, command: Sequence[str]) -> None:
        # It finds what this process finds, in the same order.
        path = os.pathsep.join([str(_ROOT), *filter(None, sys.path)])
        self.process = subprocess.Popen(
            [sys.executable, "-c", _SERVE, *command],
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

    def ask(self, request: bytes, seconds: float) -> Reply:
        """What it says to a line, after these seconds "timeout"."""
        deadline, message = time.monotonic() + seconds, b""
        with contextlib.suppress(BrokenPipeError):  # it is dead: it says nothing
            while request:
                request = request[self._input.write(request) :]
        while not message.endswith(b"\n"):
            left = max(deadline - time.monotonic(), 0)
            if not select.select([self._output], [], [], left)[0]:
                return Reply(failure="timeout")
            part = os.read(self._output.fileno(), 1 << 16)
            if not part:
                return Reply(failure="died")
            message += part
        try:
            return Reply(*json.loads(message))
        except (ValueError, TypeError):  # a user's function wrote to its pipe
            return Reply(failure="died")

    def kill(self) -> None:
        """Kills the process and what it started: who waits for it gets "died"."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def end(self) -> int:
        """Kills and reaps the process: its return code."""
        self.kill()
        self._input.close()
        self._output.close()
        return self.process.wait()


class WorkerPool(contextlib.AbstractContextManager):
    """Calls a function in killable processes, started when first needed. Close it, or use `with`.

    Args:
      factory: `module:function`; called in each process with the texts `arguments`, it returns the
        function that takes a request. Requests and values go through JSON.
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
        self._idle: collections.deque[_Worker] = collections.deque()  # of these
        self._lock, self._owner, self._ending = threading.Lock(), os.getpid(), False

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

    def _stop(self) -> None:
        self._idle.clear()
        while self._workers:
            self._workers.pop().end()

    def start(self) -> None:
        """Waits until a first worker is ready.

        Raises:
          RuntimeError: it does not start; the message says why.
        """
        with self._lock:
            self._idle.append(self._ready())

    def map(self, requests: Sequence[Any]) -> list[Reply]:
        """The reply to each request, in order. A worker that dies takes no other request with it.

        Raises:
          RuntimeError: the workers do not start; the message says why.
        """
        if self._owner != os.getpid():  # forked: the processes are the parent's
            self._workers, self._idle = [], collections.deque()
            self._lock, self._owner = threading.Lock(), os.getpid()
        with self._lock, futures.ThreadPoolExecutor(self._limit) as threads:
            self._ending = False
            try:
                return list(threads.map(self._ask, requests))
            except BaseException:  # Ctrl-C, too: what runs is killed, what waits is not begun
                self._ending = True
                threads.shutdown(wait=False, cancel_futures=True)
                for worker in self._workers.copy():
                    worker.kill()
                threads.shutdown()
                self._stop()
                raise

    def _ask(self, request: Any) -> Reply:
        reply = Reply()
        # A second attempt is a new process's: those that are idle may be dying of the same.
        for take in (self._ready, self._started):
            worker = take()
            line = json.dumps(request, default=str).encode() + b"\n"
            reply = worker.ask(line, self._seconds * _WALL)
            if reply.failure in (None, "error"):
                self._idle.append(worker)
                break
            # Of a worker without memory what is left may be in pieces: it ends, too.
            if self._remove(worker) == -signal.SIGPROF:  # the kernel kept its deadline
                reply = Reply(failure="timeout")
            if reply.failure != "died" or self._ending:
                break
        return reply

    def _ready(self) -> _Worker:
        """A worker that is idle, or a new one."""
        with contextlib.suppress(IndexError):
            while worker := self._idle.pop():
                if worker.process.poll() is None:
                    return worker
                self._remove(worker)
        return self._started()

    def _started(self) -> _Worker:
        """A new worker.

        Raises:
          RuntimeError: three that were started in a row did not get ready.
        """
        reply = Reply()
        for _ in range(_FAILED_STARTS):
            worker = _Worker(self._command)
            self._workers.append(worker)
            reply = worker.ask(b"", _START_SECONDS)
            if not reply.failure:
                return worker
            self._remove(worker)
        why = reply.line or f"`{sys.executable} -c '{_SERVE}'` says why"
        raise RuntimeError(f"the processes of {self._command[0]} do not start: {why}")

    def _remove(self, worker: _Worker) -> int:
        self._workers.remove(worker)
        return worker.end()


class GraderPool(WorkerPool):
    """The workers that compare two answers by algebra (`equivalence`); verdicts are remembered."""

    def __init__(
        self,
        workers: int | None = None,
        seconds: float = 2.0,
        factory: str = "math_grader.equivalence:comparison",
    ) -> None:
        super().__init__(factory, workers=workers, seconds=seconds)
        self._verdicts: dict[tuple[str, str], bool | None] = {}  # the last used at the end

    def compare(self, pairs: Sequence[tuple[str, str]]) -> list[bool | None]:
        """Whether each (answer, gold) is equal; None where its worker ran out of time or memory.

        Equal pairs are compared once, and remembered, timeouts too.

        Raises:
          RuntimeError: the workers do not start.
        """
        distinct = dict.fromkeys(pairs)
        missing = [pair for pair in distinct if pair not in self._verdicts]
        replies = dict(zip(missing, self.map(missing), strict=True))
        found = {pair: self._verdicts.pop(pair) for pair in distinct if pair not in replies}
        # An error: no expression, or none that sympy knows.
        found |= {p: False if r.failure == "error" else r.value for p, r in replies.items()}
        # A process that died did so perhaps by no fault of the pair: that is not remembered.
        died = {pair for pair, reply in replies.items() if reply.failure == "died"}
        self._verdicts |= {pair: equal for pair, equal in found.items() if pair not in died}
        while len(self._verdicts) > _CACHED:
            del self._verdicts[next(iter(self._verdicts))]
        return [found[pair] for pair in pairs]


@functools.cache
def process_pool() -> GraderPool:
    """The pool of this process: shared by its runs, ended with it."""
    pool = GraderPool()
    atexit.register(pool.close)
    return pool
