"""PrefixRL with ReMix on the hard split of the arithmetic task: rows behind a prefix are replayed.

A row's prefix lies in its prompt's slots and its group is its own, so that replay, KL-Convex and
reincarnation need to know nothing of prefixes.
"""

from experiments.configs import arithmetic_prefix_reinforce
from remix_jax.config import KL, Config


def get_config() -> Config:
    """arithmetic_prefix_reinforce with p = .4, m = 2, N = 2, KL-Convex and T = 12."""
    config = arithmetic_prefix_reinforce.get_config()
    config.replay.share, config.replay.window, config.passes = 0.4, 2, 2
    config.kl = KL(start=8, every=2)
    config.reincarnation_step = 12
    return config
