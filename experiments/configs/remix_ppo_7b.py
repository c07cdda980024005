"""ReMix-PPO on DeepSeek-R1-Distill-Qwen-7B: 75 steps, all in the mix stage, 11,520 rollouts."""

from experiments.configs import remix_ppo_1p5b
from remix_jax.config import Config


def get_config() -> Config:
    """remix_ppo_1p5b on the larger model; the paper stops before reincarnation."""
    config = remix_ppo_1p5b.get_config()
    config.model.path = "models/DeepSeek-R1-Distill-Qwen-7B"
    config.steps = 75
    return config
