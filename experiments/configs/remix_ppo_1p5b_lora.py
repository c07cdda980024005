"""ReMix-PPO on DeepSeek-R1-Distill-Qwen-1.5B by adapters, on one card of 24 GB.

The paper's run but for what is trained: low-rank adapters of policy and critic on the same frozen
bfloat16 weights, both anchors adapters too (docs/lora.md), and their learning rates, ten times the
paper's.
"""

from experiments.configs import remix_ppo_1p5b
from remix_jax.config import Config, Lora, Memory, Model


def get_config() -> Config:
    """remix_ppo_1p5b with adapters of rank 32 on all matrices of the layers."""
    config = remix_ppo_1p5b.get_config()
    config.model = Model(path=config.model.path, dtype="bfloat16")
    config.lora = Lora(rank=32)
    config.memory = Memory(
        micro_batch_tokens=9216,
        logit_slots=1024,
        logit_entries=8192,
        remat=True,
        scan_layers=True,
    )
    return config
