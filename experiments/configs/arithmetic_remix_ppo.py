"""ReMix-PPO on the embedded arithmetic task.

The paper's hyper-parameters, with batch, learning rates and the schedules' breakpoints scaled to a
task that a 2-core machine learns in seconds: 8,192 fresh rollouts, T = 30 of 76 steps, lambda falls
from step 15 on.
"""

import pathlib

from remix_jax.config import KL, Config, Critic, Data, Evaluation, Mesh, Model, Optimizer

TASK = pathlib.Path(__file__).resolve().parent.parent / "arithmetic"


def get_config() -> Config:
    """ReMix-PPO, one response a problem."""
    problems = TASK / "problems"
    return Config(
        steps=76,
        batch_size=128,
        mini_batch_size=32,
        micro_batch_size=32,
        score_batch_size=128,
        reincarnation_step=30,
        checkpoint_every=0,
        model=Model(path=str(TASK / "base")),
        data=Data(
            train=str(problems / "train.jsonl"),
            validation=str(problems / "validation.jsonl"),
            suites=tuple(str(problems / f"chain{n}.jsonl") for n in (3, 4, 5, 6, 7)),
            prompt_tokens=18,
            response_tokens=16,
        ),
        kl=KL(start=15, every=3),
        optimizer=Optimizer(learning_rate=1e-4),
        critic=Critic(optimizer=Optimizer(learning_rate=1e-3)),
        evaluation=Evaluation(every=4, temperature=1.0, batch_size=1536),
        mesh=Mesh(fsdp=1),  # one device: 0.1M parameters gain nothing from more
    )
