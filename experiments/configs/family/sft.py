"""Log-likelihood of an expert's traces, nothing sampled: leaves a policy in WORKDIR/export."""

from experiments.configs.family import base
from remix_jax.config import KL, Config


def get_config() -> Config:
    """32 steps of 64 traces: two epochs of arithmetic/traces_easy."""
    return base.of(
        "sft",
        group_size=1,
        batch_size=64,
        replay__share=0.0,
        passes=1,
        steps=32,
        kl=KL(coef=0.0),
        objective__entropy_coef=0.0,
    )
