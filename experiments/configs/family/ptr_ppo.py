"""PTR-PPO (arXiv 2112.03798): replay by the largest advantage of a row."""

from experiments.configs.family import base
from remix_jax.config import Config


def get_config() -> Config:
    """Rows of the last four steps."""
    return base.of("mix_ppg", critic=True, replay__sampler="max_advantage", replay__window=4)
