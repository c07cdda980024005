"""CHORD-phi (arXiv 2508.11408): imitation of unsure tokens, mu .1."""

from experiments.configs.family import base
from remix_jax.config import Config


def get_config() -> Config:
    """Own rows are on-policy."""
    return base.of("chord_phi", replay__share=0.0, passes=1)
