"""ReMix-PPO on DeepSeek-R1-Distill-Qwen-1.5B, with the paper's hyper-parameters.

350 steps, reincarnation after step 100: 79,360 rollouts, the paper's 0.079M. Put the model into
models/ and the problems into data/ (docs/data.md), or name them: --config.model.path=DIR.
"""

from remix_jax.config import Config, Data, Evaluation, Model
from remix_jax.data.problems import INSTRUCTION

SUITES = ("aime", "amc", "math", "minerva", "olympiad_bench")


def get_config() -> Config:
    """The defaults of `Config` are the paper's; one row is scored or differentiated at a time."""
    return Config(
        micro_batch_size=1,
        score_batch_size=1,
        model=Model(path="models/DeepSeek-R1-Distill-Qwen-1.5B"),
        data=Data(
            train="data/deepscaler.json",
            suites=tuple(f"data/{name}.json" for name in SUITES),
            instruction=INSTRUCTION,
        ),
        evaluation=Evaluation(batch_size=64),
    )
