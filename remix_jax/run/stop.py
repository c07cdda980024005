"""How a run is asked to end: Ctrl-C after the step, SIGTERM as soon as a state can be saved."""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

SAID: dict[signal.Signals, str] = {
    signal.SIGINT: "stopping after this step (Ctrl-C again stops at once)",
    signal.SIGTERM: "SIGTERM: saving and ending",
}


class Preempted(Exception):
    """The run is to end while nothing has changed since its last state."""


class Stop:
    """What was asked for.

    On several processes a signal counts from the next `agree` on, which all of them call after the
    same step: so all end there, whichever of them was signalled.

    Attributes:
      agreed: of SIGINT (Ctrl-C) and SIGTERM (the process will be killed soon) those that count.
    """

    def __init__(self, log: Callable[[str], None]) -> None:
        self._log, self._alone, self._raises = log, jax.process_count() == 1, False
        self._asked: set[signal.Signals] = set()
        self.agreed = self._asked if self._alone else set()

    def agree(self) -> None:
        """Makes what any process was asked for the answer of all."""
        if not self._alone:
            asked = np.array([signum in self._asked for signum in SAID])
            anywhere = multihost_utils.process_allgather(asked).any(axis=0)
            self.agreed = {signum for signum, told in zip(SAID, anywhere, strict=True) if told}

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Within it a signal raises Preempted: for work that changes no state.

        Python sees a signal when XLA has returned: while a program is compiled, after it.
        """
        self._raises = self._alone
        try:
            if self.agreed and self._raises:
                raise Preempted
            yield
        finally:
            self._raises = False

    def watched(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Runs a compiled program and blocks on its result, but returns early on SIGTERM.

        Raises (when called):
          Preempted: on one process; several go on to the end of the step.
        """

        def waiting(*args):
            result, begin = call(*args), time.perf_counter()
            while self._alone and signal.SIGTERM not in self._asked and not _ready(result):
                # A fiftieth of the time waited so far: as good as no delay, and no busy loop.
                time.sleep(min(max(0.02 * (time.perf_counter() - begin), 1e-4), 0.01))
            if self._alone and signal.SIGTERM in self._asked:
                raise Preempted
            return jax.block_until_ready(result)

        return waiting

    def _handle(self, number: int, _frame: object) -> None:
        signum = signal.Signals(number)
        if signum in self._asked and signum == signal.SIGINT:
            raise KeyboardInterrupt
        if signum not in self._asked:
            self._asked.add(signum)
            self._log(SAID[signum] + ": ending before the first step" * self._raises)
        if self._raises:
            raise Preempted


@contextlib.contextmanager
def watch(log: Callable[[str], None]) -> Iterator[Stop]:
    """Handles Ctrl-C and SIGTERM; a second Ctrl-C interrupts at once.

    Outside of the main thread nothing is handled: whoever runs us there handles signals.
    """
    stop = Stop(log)
    with contextlib.ExitStack() as restore:
        for signum in SAID:
            with contextlib.suppress(ValueError):  # not the main thread
                restore.callback(signal.signal, signum, signal.signal(signum, stop._handle))
        yield stop


def _ready(tree) -> bool:
    return all(x.is_ready() for x in jax.tree.leaves(tree) if hasattr(x, "is_ready"))
