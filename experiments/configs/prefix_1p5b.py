"""PrefixRL on DeepSeek-R1-Distill-Qwen-1.5B with the paper's numbers: 128 problems of 8, lr 1e-6.

The bank comes first, from the policy's own successes on problems that it hardly ever solves:

    python -m experiments.collect_traces --config=experiments/configs/prefix_1p5b.py \
        --out=data/traces --attempts=2500 --batch_size=64

A prefix is at most 80 % of a trace of 8,192 tokens: 6,554 slots beside the prompt's, for the policy
goes on from it with up to 8,192 tokens more.
"""

from experiments.configs import remix_ppo_1p5b
from remix_jax.config import KL, Config, Objective, Prefix


def get_config() -> Config:
    """PrefixRL 3 : 1, on-policy."""
    config = remix_ppo_1p5b.get_config()
    config.steps, config.batch_size, config.group_size = 400, 1024, 8
    config.mini_batch_size = 256
    config.passes, config.reincarnation_step, config.replay.share = 1, 0, 0.0
    config.kl = KL(coef=0.0, convex=False)
    config.objective = Objective(advantage="mean_baseline", entropy_coef=0.0)
    config.data.train = "data/hard.json"
    config.prefix = Prefix(bank="data/traces", tokens=6554)
    config.memory.micro_batch_tokens = 15_872  # one row
    return config
