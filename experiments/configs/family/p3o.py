"""P3O (arXiv 1905.01756): on-policy rows by REINFORCE, old ones by ESS."""

from experiments.configs.family import base
from remix_jax.config import Config


def get_config() -> Config:
    """The replay of the base."""
    return base.of("p3o", passes=1)
