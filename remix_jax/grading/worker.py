"""A process that answers the requests of a `WorkerPool`: a JSON line in, a JSON line out.

Started as `python -m remix_jax.grading.worker FACTORY SECONDS BYTES [ARGUMENT ...]`. It imports no
JAX and holds nothing that would be missed: the pool may kill it at any moment.
"""

import importlib
import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any

from remix_jax import plugins


def main() -> None:
    """Serves the function that `FACTORY(ARGUMENT, ...)` returns, until its input ends.

    FACTORY is `module:function`. What it or the function prints is dropped, so that none of it is
    taken for a reply; standard input is empty for them.
    """
    factory, seconds, size, *arguments = sys.argv[1:]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the run, which ends its workers
    resource.setrlimit(resource.RLIMIT_AS, (int(size), int(size)))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    requests, replies = os.fdopen(os.dup(0), "rb"), os.dup(1)
    silence = os.open(os.devnull, os.O_RDWR)
    os.dup2(silence, 0)
    os.dup2(silence, 1)
    module, _, name = factory.partition(":")
    try:
        handle = getattr(importlib.import_module(module), name)(*arguments)
    except Exception as error:
        _send(replies, {"error": plugins.error_line(error)})
        raise
    _send(replies, {"ready": True})
    for line in requests:
        # More processor time ends the process by SIGPROF: by the kernel, so also inside a
        # library's C code, and also when nobody is left to kill it.
        signal.setitimer(signal.ITIMER_PROF, float(seconds))
        reply = _reply(handle, json.loads(line))
        signal.setitimer(signal.ITIMER_PROF, 0)
        _send(replies, reply)


def _reply(handle: Callable[[Any], Any], request: Any) -> dict[str, Any]:
    try:
        return {"value": handle(request)}
    except (MemoryError, RecursionError):
        return {"gave_up": True}
    except (Exception, SystemExit) as error:  # whatever a user's function, or sympy, raises
        return {"error": plugins.error_line(error)}


def _send(pipe: int, message: dict[str, Any]) -> None:
    left = json.dumps(message).encode() + b"\n"
    while left:
        left = left[os.write(pipe, left) :]


if __name__ == "__main__":
    main()
