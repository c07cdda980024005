"""CHORD-mu (arXiv 2508.11408): imitation fades out from .9 to .05."""

from experiments.configs.family import base
from remix_jax.config import Config


def get_config() -> Config:
    """Own rows are on-policy."""
    return base.of("chord_mu", replay__share=0.0, passes=1)
