"""PrefixRL under GRPO on the hard split of the arithmetic task."""

from experiments.configs import arithmetic_prefix_reinforce
from remix_jax.config import Config


def get_config() -> Config:
    """arithmetic_prefix_reinforce with rewards normalised by their group's deviation."""
    config = arithmetic_prefix_reinforce.get_config()
    config.objective.advantage = "group_normalized"
    return config
