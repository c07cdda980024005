"""PPO on Qwen2.5-0.5B-Instruct and GSM8K with the numbers of verl's public log, for one GPU.

The log: eric-haibin-lin/verl-data, branch experiments, Qwen2.5-0.5B-bsz256_2-prompt1024-resp512;
435 steps of 256 rollouts, test accuracy 45.8 % after 7,680 rollouts, 57.9 % at its best. data/gsm8k
holds the two parquet files that verl's examples/data_preprocess/gsm8k.py writes; their form sets
instruction and reward (`#### number`, strict). As there, the KL to the first model (k1) comes off
the reward. The log does not say how its evaluation decodes; here it is greedy.
experiments/references/verl_gsm8k_ppo.json is the log's curve.
"""

from remix_jax.config import KL, Config, Data, Evaluation, Memory, Model, Replay


def get_config() -> Config:
    """No replay, one pass; clip .2, entropy .001, GAE with gamma = lambda = 1 are the defaults."""
    return Config(
        steps=435,
        batch_size=256,
        mini_batch_size=64,
        micro_batch_size=8,
        score_batch_size=16,
        passes=1,
        reincarnation_step=0,
        model=Model(path="models/Qwen2.5-0.5B-Instruct", compute_dtype="bfloat16"),
        memory=Memory(logit_entries=16_384, remat=True, anchors_dtype="bfloat16"),
        data=Data(
            train="data/gsm8k/train.parquet",
            suites=("data/gsm8k/test.parquet",),
            prompt_tokens=1024,
            response_tokens=512,
        ),
        replay=Replay(share=0.0),
        kl=KL(estimator="k1", in_reward=True, convex=False),
        evaluation=Evaluation(every=10),
    )
