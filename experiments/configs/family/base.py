"""What the presets of the off-policy family share: the arithmetic task, replay, equal rollouts.

Every method gets 40 % replayed rows of the last two steps and two passes over each batch unless its
own preset says otherwise, and at least 4,096 fresh rollouts. The rows of experts are the traces of
arithmetic/traces_easy, which `python -m experiments.family` collects if they are not there.
"""

from typing import Any

from experiments import methods
from experiments.configs import arithmetic_remix_grpo, arithmetic_remix_ppo
from remix_jax.config import KL, Config, Expert
from remix_jax.rl import family

ROLLOUTS = 4096
TRACES = arithmetic_remix_ppo.TASK / "traces_easy"


def get_config() -> Config:
    """Mix-PPG on groups of 8, without reincarnation, KL to the first policy."""
    return of("mix_ppg")


def of(method: str, critic: bool = False, **fields: Any) -> Config:
    """The preset of a method, on groups of 8 or on PPO's critic.

    Args:
      method: key of `family.METHODS`; the advantage and aggregation that it needs are set.
      fields: of the config (batch_size=..) or of a section (replay__share=..).
    """
    entry = family.METHODS[method]
    config = (arithmetic_remix_ppo if critic else arithmetic_remix_grpo).get_config()
    config.reincarnation_step, config.kl = 0, KL(convex=False)
    config.objective.method = method
    advantage = "method" if entry.own_advantage else entry.advantage
    config.objective.advantage = advantage or config.objective.advantage
    config.objective.aggregation = entry.aggregation or config.objective.aggregation
    if entry.experts == "needed":
        config.expert = Expert(bank=str(TRACES))
    for name, value in fields.items():
        section, _, field = name.rpartition("__")
        setattr(getattr(config, section) if section else config, field, value)
    return evaluated(methods.with_rollouts(config, ROLLOUTS) if config.own_rows else config)


def evaluated(config: Config) -> Config:
    """The config with an evaluation after each quarter of its rollouts."""
    config.evaluation.every = max(config.steps // 4, 1)
    return config
