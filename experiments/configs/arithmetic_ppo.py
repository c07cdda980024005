"""PPO on the embedded arithmetic task, at ReMix-PPO's learning rate and fresh rollouts."""

from experiments import methods
from experiments.configs import arithmetic_remix_ppo
from remix_jax.config import Config


def get_config() -> Config:
    """The on-policy base of arithmetic_remix_ppo."""
    return methods.on_policy(arithmetic_remix_ppo.get_config())
