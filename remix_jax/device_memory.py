"""Memory of a device: what there is of it, and what to do where it does not suffice."""

import contextlib
import os
from collections.abc import Iterator

import jax

from remix_jax.text import one_line, size_text

# phase -> config fields that need less in it
REMEDIES = {
    "loading": "mesh.fsdp (more devices), model.dtype, a smaller model",
    "learning": "memory.micro_batch_tokens, memory.remat, memory.logit_entries, "
    "memory.scan_layers, memory.anchors_on_host, optimizer.first_moment_dtype, optimizer.name, "
    "mesh.fsdp",
    "sampling": "memory.decode_tokens, memory.anchors_on_host, model.compute_dtype, mesh.fsdp",
    "evaluation": "evaluation.batch_size, memory.decode_tokens, memory.anchors_on_host",
}


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
      name: "learning", "compiling for sampling and evaluation", ...
      remedies: a key of REMEDIES; `name` by default.

    Raises:
      OutOfMemoryError: instead of XLA's error or a MemoryError.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        said, most = one_line(error).removeprefix("RESOURCE_EXHAUSTED: "), limit()
        if most is not None:
            said += f", a device has {size_text(most)}"
        used = (jax.local_devices()[0].memory_stats() or {}).get("bytes_in_use")
        if used is not None:
            said += f" ({size_text(used)} in use)"
        raise OutOfMemoryError(
            f"out of memory in {name}: {said}; what needs less: {REMEDIES[remedies or name]} "
            "(docs/scaling.md)"
        ) from None
