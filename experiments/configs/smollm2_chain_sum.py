"""ReMix-PPO on SmolLM2-135M-Instruct after its cold start: sums of 2 to 5 terms, for one GPU.

launch/smollm2.sh makes the model and compares methods from this config. 4,300 fresh rollouts,
T = 16 of 40 steps, lambda falls from step 8 on; suites by the number of terms.
"""

from remix_jax.config import KL, Config, Critic, Data, Evaluation, Memory, Mesh, Model, Optimizer

_SUM = "reasoning_gym:chain_sum?min_digits=2&max_digits=2"
# Seeds of held-out sets that share no problem with training and cold start.
_SEEDS = {2: 408_000, 3: 300_000, 4: 300_000, 5: 300_000}


def _terms(low: int, high: int, size: int, seed: int, name: str) -> str:
    return f"{_SUM}&min_terms={low}&max_terms={high}&size={size}&seed={seed}&name={name}"


def get_config() -> Config:
    """One response a problem; experiments.compare makes groups of 8 for GRPO."""
    return Config(
        steps=40,
        batch_size=128,
        mini_batch_size=32,
        micro_batch_size=32,
        score_batch_size=128,
        reincarnation_step=16,
        checkpoint_every=0,
        model=Model(path="runs/smollm2/cold/export", compute_dtype="bfloat16"),
        memory=Memory(scan_layers=True),
        data=Data(
            train=_terms(2, 5, 1000, 0, "train"),
            validation=_terms(2, 5, 128, 200_000, "validation"),
            suites=tuple(_terms(n, n, 128, seed, f"terms{n}") for n, seed in _SEEDS.items()),
            prompt_tokens=96,
            response_tokens=80,
        ),
        kl=KL(start=8, every=2),
        optimizer=Optimizer(learning_rate=3e-6),
        critic=Critic(optimizer=Optimizer(learning_rate=3e-5)),
        evaluation=Evaluation(every=8, temperature=1.0, batch_size=640),
        mesh=Mesh(fsdp=1),
    )
