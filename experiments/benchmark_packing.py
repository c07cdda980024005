"""A learning phase with rows packed into buffers, against one row in each, on the CPU.

    python -m experiments.benchmark_packing [--quick] [--out=runs/benchmark_packing]

GRPO with a reference: one scoring of the fresh rows and one mini-batch of 32. Responses are as
reasoning models': lognormal, mean 2,500 and cut at 8,192 tokens; prompts likewise, cut at an eighth
of that; all divided by 16 (--quick: 32). Then all of them at full length. The padded side is the
same learner with a mini-batch in one pass, which leaves each row in a buffer of its own.
CPU-seconds are those of the process, the least of some rounds in turn.
"""

import json
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import long_tail
from experiments.main import run
from experiments.tables import Sheet, share
from remix_jax import config as c
from remix_jax.learner import state as states
from remix_jax.learner.step import compile_learn, step_inputs
from remix_jax.models.decoder import Decoder
from remix_jax.schedule import stage_at, stages
from remix_jax.types import FreshRows, empty_rows

_QUICK = flags.DEFINE_bool("quick", False, "half the length and one round, in under 5 minutes")
_OUT = flags.DEFINE_string("out", "runs/benchmark_packing", "directory for results.json")

ROWS, PROMPT = 32, 1024
MODEL = long_tail.model(tied_embeddings=True, positions=long_tail.CAP)


def make_config(prompt: int, response: int) -> c.Config:
    """One step of GRPO."""
    return c.Config(
        batch_size=ROWS,
        group_size=8,
        mini_batch_size=ROWS,
        micro_batch_size=ROWS,
        score_batch_size=ROWS,
        passes=1,
        reincarnation_step=0,
        data=c.Data(prompt_tokens=prompt, response_tokens=response),
        replay=c.Replay(share=0.0, window=1),
        kl=c.KL(coef=0.04, convex=False),
        objective=c.Objective(advantage="group_normalized", entropy_coef=0.0),
        optimizer=c.Optimizer(learning_rate=1e-5),
    )


def drawn_rows(prompt: int, response: int, full: bool) -> FreshRows:
    """Fresh rows of random tokens, by the list of lengths or at full length."""
    rng = np.random.default_rng(0)
    drawn = long_tail.shares(rng, 2, ROWS)
    response_B = np.maximum(drawn[0] * response, 1).round()
    prompt_B = np.maximum(drawn[1, :: ROWS // 4].repeat(ROWS // 4) * prompt, 2).round()
    if full:
        prompt_B, response_B = np.full(ROWS, prompt), np.full(ROWS, response)
    logp_BT = jnp.full((ROWS, response), -np.log(MODEL.vocab_size), jnp.float32)
    tokens_BS = rng.integers(0, MODEL.vocab_size, (ROWS, prompt + response))
    return empty_rows(ROWS, prompt, response).replace(
        tokens_BS=jnp.asarray(tokens_BS, jnp.int32),
        prompt_len_B=jnp.asarray(prompt_B, jnp.int32),
        response_len_B=jnp.asarray(response_B, jnp.int32),
        behav_logp_BT=logp_BT,
        sampled_logp_BT=logp_BT,
        reward_B=jnp.asarray(rng.integers(0, 7, ROWS), jnp.float32),
        group_B=jnp.arange(ROWS, dtype=jnp.int32) // 8,
        valid_B=jnp.ones(ROWS, bool),
    )


def learners(policy: Decoder, prompt: int, response: int) -> dict[str, tuple[Any, ...]]:
    """By side: the first state, the compiled learning phase, its numbers."""
    made = {}
    params = jax.jit(policy.init)(jax.random.key(0), *jnp.zeros((3, 1, 1), jnp.int32))["params"]
    config = make_config(prompt, response)
    packed = states.make_learner(config, policy)
    padded = packed._replace(busy_slots=ROWS * long_tail.CAP)  # so many slots in a pass
    for side, learner in (("padded", padded), ("packed", packed)):
        stage = stages(config)[stage_at(config, 1)]
        program = compile_learn(learner, stage, None).call
        state = states.init_state(learner, jax.tree.map(jnp.copy, params), 0)
        made[side] = (state, program, step_inputs(config, 1))
    return made


def compare(policy: Decoder, prompt: int, response: int, rounds: int) -> list[dict[str, Any]]:
    """Both sides on both lists of lengths, in turn."""
    made, results = learners(policy, prompt, response), []
    for lengths in ("lognormal", "full"):
        rows = drawn_rows(prompt, response, lengths == "full")
        seconds: dict[str, list[float]] = {side: [] for side in made}
        found: dict[str, Any] = {}
        for _ in range(rounds):
            for side, (state, program, inputs) in made.items():
                state = jax.tree.map(jnp.copy, state)  # donated
                begin = time.process_time()
                _, found[side] = jax.block_until_ready(program(state, rows, inputs, None))
                seconds[side].append(time.process_time() - begin)
        for name in ("loss", "grad_norm", "kl_base", "entropy"):
            padded, packed = found["padded"][name], found["packed"][name]
            np.testing.assert_allclose(packed, padded, rtol=1e-4, atol=1e-5)
        use = {side: float(metrics["learn_use"]) for side, metrics in found.items()}
        ratio = min(seconds["packed"]) / min(seconds["padded"])
        known = {"lengths": lengths, "cpu_seconds": seconds, "learn_use": use, "ratio": ratio}
        results.append(known)
    return results


def sheet(results: list[dict[str, Any]]) -> Sheet:
    """A line for each list of lengths."""
    header = ["lengths", "useful slots, padded, %", "packed, %"]
    header += ["CPU-seconds, padded", "packed", "ratio"]
    lines = []
    for each in results:
        cells = [share(each["learn_use"][side]) for side in ("padded", "packed")]
        cells += [f"{min(each['cpu_seconds'][side]):.3g}" for side in ("padded", "packed")]
        lines.append([each["lengths"], *cells, f"{each['ratio']:.2f}"])
    return Sheet(header, lines)


def main() -> None:
    scale, rounds = (32, 1) if _QUICK.value else (16, 3)
    results = compare(Decoder(MODEL), PROMPT // scale, long_tail.CAP // scale, rounds)
    out = pathlib.Path(_OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    print("\n".join(sheet(results).markdown()))


if __name__ == "__main__":
    run(main)
