"""ReMix-GRPO on DeepSeek-R1-Distill-Qwen-1.5B: 256 groups of 8, reincarnation after step 50.

200 steps: 368,640 rollouts.
"""

from experiments.configs import remix_ppo_1p5b
from remix_jax.config import Config


def get_config() -> Config:
    """remix_ppo_1p5b with group advantages in place of the critic."""
    config = remix_ppo_1p5b.get_config()
    config.objective.advantage = "group_normalized"
    config.steps, config.reincarnation_step = 200, 50
    config.batch_size, config.group_size, config.mini_batch_size = 2048, 8, 256
    return config
