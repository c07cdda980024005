"""LUFFY (arXiv 2504.14945): 1 row of an expert and 7 own ones in each group."""

from experiments.configs.family import base
from remix_jax.config import Config


def get_config() -> Config:
    """Own rows are on-policy."""
    return base.of("luffy", replay__share=0.0, passes=1)
