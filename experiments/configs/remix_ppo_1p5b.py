"""ReMix-PPO on DeepSeek-R1-Distill-Qwen-1.5B, with the paper's hyper-parameters.

350 steps, reincarnation after step 100: 79,360 rollouts, the paper's 0.079M. Put the model into
models/ and the problems into data/ (docs/tasks.md), or name them: --config.model.path=DIR.
"""

from remix_jax.config import Config, Data, Evaluation, Memory, Model
from remix_jax.data.problems import INSTRUCTION

SUITES = ("aime", "amc", "math", "minerva", "olympiad_bench")


def get_config() -> Config:
    """The defaults of `Config` are the paper's; a device learns from one row at a time."""
    return Config(
        model=Model(path="models/DeepSeek-R1-Distill-Qwen-1.5B", compute_dtype="bfloat16"),
        memory=Memory(
            micro_batch_tokens=9216,
            logit_entries=8192,
            remat=True,
            scan_layers=True,
            anchors_dtype="bfloat16",
        ),
        data=Data(
            train="data/deepscaler.json",
            suites=tuple(f"data/{name}.json" for name in SUITES),
            instruction=INSTRUCTION,
        ),
        evaluation=Evaluation(batch_size=64),
    )
