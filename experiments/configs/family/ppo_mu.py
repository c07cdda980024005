"""PPO's clip around the policy that sampled, whatever its age."""

from experiments.configs.family import base
from remix_jax.config import Config


def get_config() -> Config:
    """The replay of the base."""
    return base.of("ppo")
