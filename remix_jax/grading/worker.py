"""A process that compares answers for a GraderPool: a line in, a byte out, until its input ends.

Started as `python -m remix_jax.grading.worker SECONDS`. It imports no JAX and holds nothing
that would be missed: the pool may kill it at any moment.
"""

import json
import os
import resource
import signal
import sys
from collections.abc import Callable

READY, SAME, DIFFERENT, GAVE_UP = b"!", b"1", b"0", b"?"
_MEMORY = 1 << 30  # bytes of address space; math-verify itself takes a tenth


def serve(compare: Callable[[str, str], bool], seconds: float) -> None:
    """Answers pairs with one byte each.

    A comparison that takes more than `seconds` of processor time ends the process by SIGPROF: by
    the kernel, so also inside a library's C code, and also when nobody is left to kill it. A
    comparison that fails says DIFFERENT; one that meets the memory limit says GAVE_UP.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the run, which ends its workers
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    replies = os.dup(1)
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)  # no library's print may be taken for a reply
    os.write(replies, READY)
    for line in sys.stdin.buffer:
        answer, gold = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, seconds)
        reply = _reply(compare, answer, gold)
        signal.setitimer(signal.ITIMER_PROF, 0)
        os.write(replies, reply)


def _reply(compare: Callable[[str, str], bool], answer: str, gold: str) -> bytes:
    try:
        return SAME if compare(answer, gold) else DIFFERENT
    except (MemoryError, RecursionError):
        return GAVE_UP
    except Exception:  # no expression, or none that math-verify knows: it may raise anything
        return DIFFERENT


def main() -> None:
    """Serves `equivalence.equivalent`, with everything that executes text shut off."""
    from remix_jax.grading import equivalence

    equivalence.equivalent(r"\frac{(x+1)^2}{\sqrt{3}}", r"\frac{1+2x+x^2}{\sqrt{3}}")  # warms up
    equivalence.forbid_evaluation()
    serve(equivalence.equivalent, float(sys.argv[1]))


if __name__ == "__main__":
    main()
