"""AGRO (arXiv 2503.19612): the KL to the first policy is in its advantage."""

from experiments.configs.family import base
from remix_jax.config import Config


def get_config() -> Config:
    """The replay of the base."""
    return base.of("agro", kl__coef=0.0)
