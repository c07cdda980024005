"""ReMix-GRPO on the embedded arithmetic task: 16 groups of 8 responses a step, no critic."""

from experiments.configs import arithmetic_remix_ppo
from remix_jax.config import Config


def get_config() -> Config:
    """arithmetic_remix_ppo with group advantages."""
    config = arithmetic_remix_ppo.get_config()
    config.group_size = 8
    config.objective.advantage = "group_normalized"
    return config
