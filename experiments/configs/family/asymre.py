"""AsymRE (arXiv 2506.20520)."""

from experiments.configs.family import base
from remix_jax.config import Config


def get_config() -> Config:
    """The replay of the base."""
    return base.of("asymre")
