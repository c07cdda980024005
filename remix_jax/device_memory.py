"""Memory of a device: what there is of it, and what to do where it does not suffice."""

import contextlib
import os
import re
from collections.abc import Iterator

import jax

from remix_jax.text import one_line, size_text

# phase -> config fields that need less in it
REMEDIES = {
    "loading": "mesh.fsdp (more devices), model.dtype, a smaller model",
    "learning": "memory.micro_batch_tokens, memory.remat, memory.logit_entries, "
    "memory.scan_layers, memory.anchors_on_host, optimizer.first_moment_dtype, mesh.fsdp",
    "sampling": "memory.decode_tokens, memory.anchors_on_host, model.compute_dtype, mesh.fsdp",
    "evaluation": "evaluation.batch_size, memory.decode_tokens, memory.anchors_on_host",
}
_BYTES = re.compile(r"alloc\w*(?: of size)? ([\d.]+) ?(bytes|[KMGT]i?B)", re.IGNORECASE)


class OutOfMemoryError(RuntimeError):
    """A device (or a CPU's host) has too little memory for a phase of a run."""


def limit() -> int | None:
    """Bytes that programs may use on the first device; None where the backend does not say."""
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // jax.local_device_count()
    return (device.memory_stats() or {}).get("bytes_limit")


@contextlib.contextmanager
def phase(name: str, remedies: str | None = None) -> Iterator[None]:
    """Turns running out of memory in a phase into one line: what was asked, what helps.

    Args:
      name: "learning", "compiling: sampling, mix stage", ...
      remedies: a key of REMEDIES; by default the one that `name` ends or begins with.

    Raises:
      OutOfMemoryError: instead of XLA's error or a MemoryError.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise OutOfMemoryError(_message(name, remedies, error)) from None


def _message(name: str, remedies: str | None, error: BaseException) -> str:
    found = _BYTES.search(str(error))
    asked = f"{_size(*found.groups())} more were asked for" if found else one_line(error)
    stats = jax.local_devices()[0].memory_stats() or {}
    most = limit()
    if "bytes_in_use" in stats and most is not None:
        free = size_text(max(most - stats["bytes_in_use"], 0))
        asked += f", {free} of {size_text(most)} are free on a device"
    elif most is not None:
        asked += f", a device has {size_text(most)}"
    key = remedies or next((key for key in REMEDIES if key in name), "learning")
    return f"out of memory in {name}: {asked}; what needs less: {REMEDIES[key]} (docs/scaling.md)"


def _size(number: str, unit: str) -> str:
    power = {"B": 0, "K": 1, "M": 2, "G": 3, "T": 4}[unit[0].upper()]
    return size_text(float(number) * 1024**power)
