"""Metrics and samples of the newest step, written while the device works on the next one."""

from typing import Any

import jax

from remix_jax.sinks.metrics import METRICS_FILE, SAMPLES_FILE, MetricsWriter, SamplesWriter

FILES = (METRICS_FILE, SAMPLES_FILE)


class Nowhere:
    """The writer of a process that leaves writing to the first one."""

    trouble: str | None = None

    def write(self, _item: Any) -> None:
        """Nothing."""

    def sync(self) -> int:
        """No place in a file."""
        return 0


class Record:
    """One step's figures, from when they exist to when they are on the disk."""

    def __init__(self, metrics: MetricsWriter | Nowhere, samples: SamplesWriter | Nowhere) -> None:
        self._metrics, self._samples = metrics, samples
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
        host, fetched = held["host"], jax.device_get(held["device"])
        ratios = fetched.pop("row_ratio_B", ())
        for sample, ratio in zip(held["samples"], ratios, strict=False):
            self._samples.write({"step": host["step"]} | sample | {"mean_ratio": float(ratio)})
        figures = {name: float(value) for name, value in fetched.items()}
        if figures.get("kl_weight") == 1:  # the precedent has no weight and was not scored
            figures.pop("kl_prev", None)
        absent = {f"/age{n[8:]}" for n in figures if n.startswith("rows/age") and not figures[n]}
        kept = {n: v for n, v in figures.items() if not any(n.endswith(a) for a in absent)}
        self._metrics.write(host | kept)

    def sync(self) -> dict[str, int]:
        """Brings everything to the disk; the places in the files to continue from.

        Raises:
          OSError: the file system does not take it.
        """
        self.flush()
        return dict(zip(FILES, (self._metrics.sync(), self._samples.sync()), strict=True))

    def troubles(self) -> list[str]:
        """What the file system does not take."""
        return [t for t in (self._metrics.trouble, self._samples.trouble) if t]
