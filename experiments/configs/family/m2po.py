"""M2PO (arXiv 2510.01161)."""

from experiments.configs.family import base
from remix_jax.config import Config


def get_config() -> Config:
    """The replay of the base."""
    return base.of("m2po")
