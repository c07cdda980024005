"""Progress of work in batches of minutes: a line after each, with the time that is left."""

import time
from collections.abc import Callable

from remix_jax.sinks.console import Console
from remix_jax.text import count, duration


class Progress:
    """Counts batches, responses and tokens from its making on.

    Args:
      batches, responses: in all.
      console: takes the lines.
      clock: seconds as a float; tests hand in their own.
    """

    def __init__(
        self,
        batches: int,
        responses: int,
        console: Console,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._batches, self._responses = batches, responses
        self._console, self._clock = console, clock
        self._start = clock()
        self._done_batches = self._done = self._tokens = 0
        console.event(f"{count(responses)} responses to generate in {count(batches)} batches")

    def advance(self, responses: int, tokens: int) -> None:
        """Says that one more batch, of so many responses and tokens, is done."""
        self._done_batches += 1
        self._done += responses
        self._tokens += tokens
        spent = max(self._clock() - self._start, 1e-9)
        left = spent / self._done * (self._responses - self._done)
        self._console.print(
            f"batch {count(self._done_batches)}/{count(self._batches)} | responses "
            f"{count(self._done)}/{count(self._responses)} | {count(self._tokens / spent)} tokens/s"
            f" | {duration(spent)}, left {duration(left)}"
        )
