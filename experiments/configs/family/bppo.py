"""BPPO (arXiv 2302.11312): many passes over the rows of one behaviour policy, the clip decays."""

from experiments.configs.family import base
from remix_jax.config import Config


def get_config() -> Config:
    """Four collections of 1,024 rows, four passes over each; nothing is replayed."""
    return base.of("bppo", critic=True, replay__share=0.0, passes=4, batch_size=1024)
