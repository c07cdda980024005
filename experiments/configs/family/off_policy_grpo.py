"""Off-policy GRPO (arXiv 2505.22257): the policy that samples is renewed every v = 10 updates."""

from experiments.configs.family import base
from remix_jax.config import Config


def get_config() -> Config:
    """v is batch_size / mini_batch_size: one collection for ten updates, in one pass."""
    return base.of(
        "off_policy_grpo", replay__share=0.0, passes=1, batch_size=320, score_batch_size=160
    )
