"""NVIDIA cards as XLA's GPU compiler is told of them, and where that compiler is."""

import importlib.util
import pathlib
from typing import NamedTuple

import jax

from remix_jax import cost
from remix_jax.errors import InputError

SHARE = 0.92  # of a card's memory that JAX takes: XLA_PYTHON_CLIENT_MEM_FRACTION of gpu.sh


class Card(NamedTuple):
    """What the compiler asks of a card beside its peaks: CUDA's device properties."""

    kind: str  # as JAX names it
    capability: tuple[int, int]
    cores: int  # streaming multiprocessors
    lanes: int  # float32 units of one
    threads: int  # resident at once on one
    shared_kib: int  # of one; a block may have all but 1 KiB
    l2_mib: int
    clock_ghz: float
    memory_gib: float  # as CUDA reports it, less than the data sheet says


KNOWN = {
    "rtx4090": Card("NVIDIA GeForce RTX 4090", (8, 9), 128, 128, 1536, 100, 72, 2.52, 23.6),
    "l40s": Card("NVIDIA L40S", (8, 9), 142, 128, 1536, 100, 96, 2.52, 44.4),
    "a100-40": Card("NVIDIA A100-SXM4-40GB", (8, 0), 108, 64, 2048, 164, 40, 1.41, 39.4),
    "a100-80": Card("NVIDIA A100-SXM4-80GB", (8, 0), 108, 64, 2048, 164, 40, 1.41, 79.2),
    "h100": Card("NVIDIA H100 80GB HBM3", (9, 0), 132, 128, 2048, 228, 50, 1.98, 79.1),
    "h200": Card("NVIDIA H200", (9, 0), 132, 128, 2048, 228, 50, 1.98, 139.8),
}


def description(card: Card, chip: cost.Chip) -> str:
    """A card as text of XLA's GpuTargetConfigProto."""
    major, minor = card.capability
    features = "feature_extension: ACCELERATED_FEATURES" if major == 9 else ""  # sm_90a
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: {48 * 1024}
  shared_memory_per_core: {card.shared_kib * 1024}
  shared_memory_per_block_optin: {(card.shared_kib - 1) * 1024}
  threads_per_core_limit: {card.threads}
  core_count: {card.cores}
  fpus_per_core: {card.lanes}
  block_dim_limit_x: {2**31 - 1}
  block_dim_limit_y: {2**16 - 1}
  block_dim_limit_z: {2**16 - 1}
  memory_bandwidth: {chip.memory_rate:.0f}
  l2_cache_size: {card.l2_mib * 2**20}
  clock_rate_ghz: {card.clock_ghz}
  device_memory_size: {card.memory_gib * 2**30:.0f}
  registers_per_core_limit: {2**16}
  registers_per_block_limit: {2**16}
  cuda_compute_capability {{ major: {major} minor: {minor} {features} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{card.kind}"
"""


def toolkit() -> pathlib.Path:
    """The folder of nvidia-cuda-nvcc, in which XLA finds ptxas; InputError without a compiler."""
    packages = ("jax_plugins", "nvidia")
    plugins, nvidia = (
        [pathlib.Path(place) for place in (found.submodule_search_locations or ())] if found else []
        for found in map(importlib.util.find_spec, packages)
    )
    folder = next((each / "cu13" for each in nvidia if (each / "cu13/bin/ptxas").exists()), None)
    if folder is None or not any((each / "xla_cuda13").exists() for each in plugins):
        version = jax.__version__
        raise InputError(
            "no GPU compiler is installed: pip install --no-deps "
            f"jax-cuda13-plugin=={version} jax-cuda13-pjrt=={version}; pip install nvidia-cuda-nvcc"
        )
    return folder
