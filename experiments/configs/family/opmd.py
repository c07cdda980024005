"""OPMD (Kimi k1.5, arXiv 2501.12599)."""

from experiments.configs.family import base
from remix_jax.config import Config


def get_config() -> Config:
    """The replay of the base."""
    return base.of("opmd")
