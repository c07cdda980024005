"""A trace of where the time of some steps goes."""

import pathlib

import jax

from remix_jax.errors import InputError

Window = tuple[int, int]  # first step of a trace, and how many


def window(text: str | None, steps: int) -> Window | None:
    """START,STEPS of a flag.

    Raises:
      InputError: it is no such pair, or lies outside of the run.
    """
    if text is None:
        return None
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
        raise InputError(f"--profile={text}: must be START,STEPS, as in --profile=5,2")
    start, count = map(int, parts)
    if start < 1 or count < 1 or start + count - 1 > steps:
        raise InputError(f"--profile={text}: must be steps within 1 to {steps}")
    return start, count


class Profiler:
    """Traces the steps of a window into a directory, for TensorBoard or Perfetto."""

    def __init__(self, traced: Window | None, directory: pathlib.Path) -> None:
        self._window, self._directory, self._running = traced, directory, False

    def before(self, step: int) -> None:
        """Starts at the first step of the window."""
        if self._window is not None and step == self._window[0]:
            jax.profiler.start_trace(self._directory)
            self._running = True

    def after(self, step: int) -> bool:
        """Stops behind the window's last step; whether it did."""
        if self._running and self._window is not None and step >= sum(self._window) - 1:
            self.close()
            return True
        return False

    def close(self) -> None:
        """Ends a trace that the run's own end cuts short."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
