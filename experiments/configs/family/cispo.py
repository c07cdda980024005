"""CISPO (MiniMax-M1, arXiv 2506.13585)."""

from experiments.configs.family import base
from remix_jax.config import Config


def get_config() -> Config:
    """The replay of the base."""
    return base.of("cispo")
