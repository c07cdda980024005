"""Log-likelihood of given completions, for experiments.sft: 32 rows an update."""

from remix_jax.config import KL, Config, Evaluation, Objective, Optimizer, Replay


def get_config() -> Config:
    """The learner without rollouts, replay, KL term and critic."""
    return Config(
        batch_size=32,
        mini_batch_size=32,
        micro_batch_size=32,
        score_batch_size=32,
        passes=1,
        reincarnation_step=0,
        replay=Replay(share=0.0),
        kl=KL(coef=0.0),
        objective=Objective(method="sft", advantage="method", entropy_coef=0.0),
        optimizer=Optimizer(learning_rate=2e-5),
        evaluation=Evaluation(every=0),
    )
