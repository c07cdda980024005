"""RLOO (arXiv 2402.14740)."""

from experiments.configs.family import base
from remix_jax.config import Config


def get_config() -> Config:
    """On-policy: nothing corrects for age."""
    return base.of("rloo", replay__share=0.0, passes=1)
