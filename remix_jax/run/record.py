"""Figures and samples of the newest step, written while the device works on the next one."""

from typing import Any

import jax

from remix_jax.sinks.metrics import Record
from remix_jax.sinks.sink import Sinks


class StepLog:
    """One step's figures, from when they exist to when they are on the disk.

    Args:
      record: the files; None on processes other than the first.
      sinks: everything else that takes figures.
    """

    def __init__(self, record: Record | None, sinks: Sinks) -> None:
        self._record, self._sinks = record, sinks
        self._held: dict[str, Any] | None = None

    def hold(self, host: dict, device: dict[str, Any], samples: list[dict]) -> None:
        """Keeps a step's figures until `flush`."""
        self._held = {"host": host, "device": device, "samples": samples}

    def add(self, figures: dict[str, float]) -> None:
        """More figures of the step that is held."""
        assert self._held is not None
        self._held["host"] = self._held["host"] | figures

    def take(self) -> dict[str, Any] | None:
        """What is held, as plain data for `hold`; it is held no more."""
        held, self._held = self._held, None
        if held is not None:
            device = jax.device_get(held["device"])
            held["device"] = {name: value.tolist() for name, value in device.items()}
        return held

    def flush(self) -> None:
        """Fetches and writes what is held."""
        if self._held is None:
            return
        held, self._held = self._held, None
        host, device = dict(held["host"]), jax.device_get(held["device"])
        step, ratios = host.pop("step"), device.pop("row_ratio_B", ())
        rows = [
            row | {"mean_ratio": float(ratio)}
            for row, ratio in zip(held["samples"], ratios, strict=False)
        ]
        figures = host | _present({name: float(value) for name, value in device.items()})
        for sink in (self._record, self._sinks):
            if sink is not None:
                sink.samples(step, rows)
                sink.write(step, figures)

    def sync(self) -> None:
        """Brings everything to the disk. Raises OSError if the file system does not take it."""
        self.flush()
        if self._record is not None:
            self._record.sync()

    def errors(self) -> list[str]:
        """What the file system does not take, and trackers that failed."""
        return (self._record.errors if self._record else []) + self._sinks.errors

    def close(self) -> None:
        """Closes files and sinks. Raises OSError if lines are lost by it."""
        try:
            if self._record is not None:
                self._record.close()
        finally:
            self._sinks.close()


def _present(figures: dict[str, float]) -> dict[str, float]:
    """Without what was not measured: the precedent without weight, ages without rows."""
    if figures.get("kl_weight") == 1:
        figures.pop("kl_prev", None)
    absent = {f"/age{n[8:]}" for n in figures if n.startswith("rows/age") and not figures[n]}
    return {n: v for n, v in figures.items() if not any(n.endswith(a) for a in absent)}
