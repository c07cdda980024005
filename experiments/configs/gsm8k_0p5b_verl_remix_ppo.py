"""ReMix-PPO beside gsm8k_0p5b_verl_ppo: the same model, problems, reward, rates and rollouts.

Replay, two passes, KL-Convex and reincarnation after step 100 are the paper's; 475 steps generate
as many rollouts as verl's 435.
"""

from experiments.configs import gsm8k_0p5b_verl_ppo
from remix_jax.config import KL, Config, Replay


def get_config() -> Config:
    """The defaults of `Config` are the paper's."""
    config = gsm8k_0p5b_verl_ppo.get_config()
    config.steps, config.passes, config.reincarnation_step = 475, 2, 100
    config.replay, config.kl = Replay(), KL()
    return config
