"""Decoupled PPO (AReaL, arXiv 2505.24298)."""

from experiments.configs.family import base
from remix_jax.config import Config


def get_config() -> Config:
    """The replay of the base."""
    return base.of("decoupled_ppo")
