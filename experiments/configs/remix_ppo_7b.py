"""ReMix-PPO on DeepSeek-R1-Distill-Qwen-7B: 75 steps, all in the mix stage, 11,520 rollouts."""

from experiments.configs import remix_ppo_1p5b
from remix_jax.config import Config


def get_config() -> Config:
    """remix_ppo_1p5b on the larger model; the paper stops before reincarnation."""
    config = remix_ppo_1p5b.get_config()
    config.model.path = "models/DeepSeek-R1-Distill-Qwen-7B"
    config.steps = 75
    config.memory.decode_tokens = 8 * 9216  # 8 rows: their cache is that of 16 of the smaller model
    return config
