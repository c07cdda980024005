"""GRPO on the embedded arithmetic task, at ReMix-GRPO's learning rate and fresh rollouts."""

from experiments import methods
from experiments.configs import arithmetic_remix_grpo
from remix_jax.config import Config


def get_config() -> Config:
    """The on-policy base of arithmetic_remix_grpo."""
    return methods.on_policy(arithmetic_remix_grpo.get_config())
