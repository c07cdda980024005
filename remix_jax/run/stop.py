"""How a run is asked to end: Ctrl-C after the step, SIGTERM as soon as a state can be saved."""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


class Preempted(Exception):
    """The run is to end while nothing has changed since its last state."""


class Stop:
    """What was asked for. Called, it says whether to end before the next step.

    On several processes a signal counts from the next `agree` on, which all of them call after the
    same step: so all end there, whichever of them was signalled.
    """

    def __init__(self) -> None:
        self._asked = np.zeros(2, bool)  # by Ctrl-C, by SIGTERM
        self._agreed = self._asked if jax.process_count() == 1 else self._asked.copy()
        self._raises = False

    def __call__(self) -> bool:
        return bool(self._agreed.any())

    @property
    def interrupted(self) -> bool:
        """By Ctrl-C."""
        return bool(self._agreed[0])

    @property
    def preempted(self) -> bool:
        """By SIGTERM: the process will be killed soon."""
        return bool(self._agreed[1])

    def agree(self) -> None:
        """Makes what any process was asked for the answer of all."""
        if jax.process_count() > 1:
            self._agreed = multihost_utils.process_allgather(self._asked).any(axis=0)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Within it a signal raises Preempted: for work that changes no state.

        Python sees a signal when XLA has returned: while a program is compiled, after it.
        """
        self._raises = jax.process_count() == 1
        try:
            if self() and self._raises:
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
            result = call(*args)
            begin = time.perf_counter()
            while jax.process_count() == 1 and not _ready(result):
                if self.preempted:
                    raise Preempted
                # A fiftieth of the time waited so far: as good as no delay, and no busy loop.
                time.sleep(min(max(0.02 * (time.perf_counter() - begin), 1e-4), 0.01))
            if jax.process_count() == 1 and self.preempted:
                raise Preempted
            return jax.block_until_ready(result)

        return waiting

    def _signalled(self, which: int, log: Callable[[str], None], message: str) -> None:
        if not self._asked[which]:
            self._asked[which] = True
            log(f"{message}: ending before the first step" if self._raises else message)
        if self._raises:
            raise Preempted


@contextlib.contextmanager
def watch(log: Callable[[str], None]) -> Iterator[Stop]:
    """Handles Ctrl-C and SIGTERM; a second Ctrl-C interrupts at once.

    Outside of the main thread nothing is handled: whoever runs us there handles signals.
    """
    stop = Stop()

    def interrupt(_signum, _frame):
        if stop._asked[0]:
            raise KeyboardInterrupt
        stop._signalled(0, log, "stopping after this step (Ctrl-C again stops at once)")

    def terminate(_signum, _frame):
        stop._signalled(1, log, "SIGTERM: saving and ending")

    handlers = {signal.SIGINT: interrupt, signal.SIGTERM: terminate}
    with contextlib.ExitStack() as restore:
        for signum, handler in handlers.items():
            with contextlib.suppress(ValueError):  # not the main thread
                restore.callback(signal.signal, signum, signal.signal(signum, handler))
        yield stop


def _ready(tree) -> bool:
    return all(x.is_ready() for x in jax.tree.leaves(tree) if hasattr(x, "is_ready"))
