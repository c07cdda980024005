"""What a chip can do at most, by its makers' tables: for rooflines and utilisation.

TPUs: the tables "System architecture" of cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}; interconnect
is the sum of a chip's links in one direction. GPUs: NVIDIA's data sheets, dense bfloat16, SXM.
"""

from typing import NamedTuple

import jax


class Chip(NamedTuple):
    """Peaks of one chip."""

    flops: float  # bfloat16 products with float32 sums, a second
    memory_bytes: float
    memory_rate: float  # bytes a second
    link_rate: float  # bytes a second from all its neighbours; 0: not listed


_GB = 1e9
_GIB = 2.0**30
# First part of `device_kind` -> peaks; the first that matches.
KINDS: tuple[tuple[str, Chip], ...] = (
    ("TPU v6 lite", Chip(918e12, 32 * _GIB, 1600 * _GB, 400 * _GB)),
    ("TPU v5 lite", Chip(197e12, 16 * _GIB, 819 * _GB, 200 * _GB)),
    ("TPU v5", Chip(459e12, 95 * _GIB, 2765 * _GB, 600 * _GB)),
    ("TPU v4", Chip(275e12, 32 * _GIB, 1228 * _GB, 300 * _GB)),
    ("NVIDIA H200", Chip(989e12, 141 * _GB, 4800 * _GB, 0.0)),
    ("NVIDIA H100 80GB HBM3", Chip(989e12, 80 * _GB, 3350 * _GB, 0.0)),
    ("NVIDIA A100-SXM4-80GB", Chip(312e12, 80 * _GB, 2039 * _GB, 0.0)),
    ("NVIDIA A100-SXM4-40GB", Chip(312e12, 40 * _GB, 1555 * _GB, 0.0)),
)


def of_kind(device_kind: str) -> Chip | None:
    """The peaks of a device, None where no table has it (a CPU)."""
    return next((chip for name, chip in KINDS if device_kind.startswith(name)), None)


def here() -> Chip | None:
    """The peaks of the default device."""
    return of_kind(jax.devices()[0].device_kind)
