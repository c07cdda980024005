"""ReMix+ on the embedded arithmetic task: ReMix-PPO and imitation of its successes.

Not the paper's method; what that is worth, and where, is in docs/remix_plus.md.
"""

from experiments import methods
from experiments.configs import arithmetic_remix_ppo
from remix_jax.config import Config


def get_config() -> Config:
    """arithmetic_remix_ppo with imitation, at the learning rate that was best for it."""
    config = methods.remix_plus(arithmetic_remix_ppo.get_config())
    config.optimizer.learning_rate = 6e-4
    return config
