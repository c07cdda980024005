"""ReMix-PPO on DeepSeek-R1-Distill-Qwen-7B by adapters, on one card of 80 GB or on a v5e-8.

On eight chips of 16 GB: --config.mesh.fsdp=2 --config.mesh.tensor=4.
"""

from experiments.configs import remix_ppo_1p5b_lora, remix_ppo_7b
from remix_jax.config import Config, Model


def get_config() -> Config:
    """remix_ppo_7b with the adapters and the memory of remix_ppo_1p5b_lora."""
    config, smaller = remix_ppo_7b.get_config(), remix_ppo_1p5b_lora.get_config()
    config.model = Model(path=config.model.path, dtype="bfloat16")
    config.lora, config.memory = smaller.lora, smaller.memory
    return config
