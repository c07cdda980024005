"""PPO around pi_k with masked importance sampling, C = 2."""

from experiments.configs.family import base
from remix_jax.config import Config


def get_config() -> Config:
    """The replay of the base."""
    return base.of("masked_is")
