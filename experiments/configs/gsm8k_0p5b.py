"""ReMix-GRPO on Qwen2.5-0.5B-Instruct and GSM8K, sized for a single GPU.

Not a run of the paper: its p, N, m, clip and KL, with a batch of 32 groups of 8, short responses
and the schedules' breakpoints scaled to 100 steps. data/gsm8k_train.jsonl and data/gsm8k_test.jsonl
hold GSM8K's own rows of `question` and `answer`.
"""

from remix_jax.config import KL, Config, Data, Evaluation, Memory, Model, Objective
from remix_jax.data.problems import INSTRUCTION


def get_config() -> Config:
    """No critic: its weights and moments would take as much memory as the policy's."""
    return Config(
        steps=100,
        batch_size=256,
        group_size=8,
        mini_batch_size=64,
        micro_batch_size=8,
        score_batch_size=16,
        reincarnation_step=30,
        model=Model(path="models/Qwen2.5-0.5B-Instruct", compute_dtype="bfloat16"),
        memory=Memory(logit_entries=16_384, remat=True, anchors_dtype="bfloat16"),
        data=Data(
            train="data/gsm8k_train.jsonl",
            suites=("data/gsm8k_test.jsonl",),
            instruction=INSTRUCTION,
            prompt_tokens=256,
            response_tokens=512,
        ),
        objective=Objective(advantage="group_normalized"),
        kl=KL(start=15, every=3),
        evaluation=Evaluation(every=20),
    )
