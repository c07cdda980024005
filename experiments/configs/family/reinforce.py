"""REINFORCE on group means."""

from experiments.configs.family import base
from remix_jax.config import Config


def get_config() -> Config:
    """On-policy: nothing corrects for age."""
    return base.of("reinforce", replay__share=0.0, passes=1, objective__advantage="mean_baseline")
