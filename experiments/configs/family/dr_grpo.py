"""Dr.GRPO (arXiv 2503.20783): no std, a constant normaliser."""

from experiments.configs.family import base
from remix_jax.config import Config


def get_config() -> Config:
    """On-policy, as published."""
    return base.of("dr_grpo", replay__share=0.0, passes=1)
