"""ToPPO (arXiv 2406.03894): the advantage of the policy that sampled."""

from experiments.configs.family import base
from remix_jax.config import Config


def get_config() -> Config:
    """The replay of the base, a critic."""
    return base.of("toppo", critic=True)
