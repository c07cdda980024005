"""PrefixRL as published, on the hard split of the arithmetic task: R - mean of the group, no std.

48 groups of 8 a step, three of four going on from a prefix of a trace. In the first of a step's
twelve updates every ratio is 1, and PPO's clipped surrogate has the gradient of REINFORCE; in the
others its clip bounds how far they go. With mini_batch_size = batch_size the first is the only one:
plain REINFORCE, at 7 % after these 12,288 rollouts where twelve updates bring 65 %.

The bank was made by the base itself, 41 traces in 141 thousand attempts:

    python -m experiments.collect_traces --out=experiments/arithmetic/traces --attempts=600 \
        --config=experiments/configs/arithmetic_prefix_reinforce.py --batch_size=2048 \
        --accept=experiments.arithmetic.task:right_working
"""

from experiments.configs import arithmetic_remix_ppo
from remix_jax.config import KL, Config, Data, Evaluation, Objective, Optimizer, Prefix

TASK = arithmetic_remix_ppo.TASK
PROBLEMS = TASK / "problems"


def get_config() -> Config:
    """PrefixRL 3 : 1."""
    config = arithmetic_remix_ppo.get_config()
    config.steps, config.batch_size, config.group_size = 32, 384, 8
    config.mini_batch_size, config.micro_batch_size, config.score_batch_size = 32, 32, 384
    config.passes, config.reincarnation_step, config.replay.share = 1, 0, 0.0
    config.kl = KL(coef=0.0, convex=False)
    config.objective = Objective(advantage="mean_baseline", entropy_coef=0.0)
    config.optimizer = Optimizer(learning_rate=3e-4)
    config.prefix = Prefix(bank=str(TASK / "traces"), tokens=16)
    config.data = Data(
        train=str(PROBLEMS / "hard_train.jsonl"),
        validation=str(PROBLEMS / "hard_validation.jsonl"),
        suites=tuple(str(PROBLEMS / f"{name}.jsonl") for name in ("hard_test", "middle")),
        prompt_tokens=18,
        response_tokens=20,
    )
    config.evaluation = Evaluation(every=4, temperature=1.0, batch_size=768)
    return config
