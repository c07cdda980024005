"""HiPPO (Pattern Recognition 162, 2025), read plainly: replay of the highest rewards."""

from experiments.configs.family import base
from remix_jax.config import Config


def get_config() -> Config:
    """Rows of the last four steps."""
    return base.of("mix_ppg", critic=True, replay__sampler="highlights", replay__window=4)
