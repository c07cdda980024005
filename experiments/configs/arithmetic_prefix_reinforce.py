"""PrefixRL as published, on the hard split of the arithmetic task: REINFORCE with group means.

48 groups of 8 a step, three of four from a prefix of a trace; one update a step, at which the
ratios are 1 and Mix-PPG's gradient is that of REINFORCE. The bank is the one that
`python -m experiments.collect_traces --config=experiments/configs/arithmetic_prefix_reinforce.py
--batch_size=2048 --out=experiments/arithmetic/traces` left, with a rejection phase of 690 responses
a problem.
"""

from experiments.configs import arithmetic_remix_ppo
from remix_jax.config import KL, Config, Evaluation, Objective, Optimizer, Prefix


def get_config() -> Config:
    """PrefixRL 3 : 1."""
    config = arithmetic_remix_ppo.get_config()
    problems = arithmetic_remix_ppo.TASK / "problems"
    config.steps = 32
    config.batch_size = config.mini_batch_size = config.micro_batch_size = 384
    config.group_size, config.passes, config.reincarnation_step = 8, 1, 0
    config.score_batch_size = 384
    config.replay.share = 0.0
    config.kl = KL(coef=0.0, convex=False)
    config.objective = Objective(advantage="mean_baseline", entropy_coef=0.0)
    config.optimizer = Optimizer(learning_rate=3e-4)
    config.prefix = Prefix(bank=str(arithmetic_remix_ppo.TASK / "traces"), tokens=16)
    config.data.train = str(problems / "hard_train.jsonl")
    config.data.validation = ""
    config.data.suites = (str(problems / "hard_test.jsonl"),)
    config.data.response_tokens = 20
    config.evaluation = Evaluation(every=4, temperature=1.0, batch_size=1024, samples=4)
    return config
