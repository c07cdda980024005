"""Decoding in slots that are filled again as rows end, against static waves, on the CPU.

    python -m experiments.benchmark_slots [--quick] [--out=runs/benchmark_slots]

Reasoning models' responses are of very different lengths: here lognormal, mean 2,500 and cut at
8,192 tokens, all divided by 64. A wave decodes as many rows as there are slots until the last of
them has ended, and its cache grows with it, in four steps; that is the scheme that a program of
static shapes has by default. Both decode the same rows with the same model, and draw the same
tokens; CPU-seconds are those of the process, the least of some rounds in turn.

The model counts: token v is followed by v + 1, whatever else it computes, and a prompt says where
to begin. So a response has the length that is wanted, by an end token as any other.
"""

import functools
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
from remix_jax.models import sampling, slots
from remix_jax.models.decoder import Decoder, DecoderConfig
from remix_jax.models.sampling import Prompts, Sampled, SamplerSettings, Task

_QUICK = flags.DEFINE_bool("quick", False, "128 rows and one round, in under 5 minutes")
_OUT = flags.DEFINE_string("out", "runs/benchmark_slots", "directory for results.json")

SCALE = 64
CAP, PROMPT = long_tail.CAP // SCALE, 16
RATIOS = (2, 4, 8)  # rows / slots
END = 2047  # the last token that is counted


def counting(config: DecoderConfig) -> dict:
    """Parameters of a model that computes as any other, and says v + 1 after token v."""
    slot = jnp.zeros((1, 1), jnp.int32)
    params = Decoder(config).init(jax.random.key(0), slot, slot, slot)["params"]
    table_VD = jax.random.normal(jax.random.key(1), (config.vocab_size, config.width))
    # What the blocks add is small beside the embedding; the head finds the token before.
    params = jax.tree.map(lambda x: 0.1 * x, params) | {"final_norm": params["final_norm"]}
    params["embed"] = {"embedding": table_VD}
    params["lm_head"] = {"kernel": jnp.roll(table_VD, 1, axis=0).T}
    return params


def lengths(rows: int) -> np.ndarray:
    """Tokens of each response [rows]: exp(N(7.467, .962)) cut at 8,192, divided."""
    drawn = CAP * long_tail.shares(np.random.default_rng(0), rows)
    return np.maximum(drawn, 1).round().astype(np.int32)


def prompts_for(length_B: np.ndarray) -> Prompts:
    """A prompt a row, after which it counts for so long."""
    tokens_QP = np.full((len(length_B), PROMPT), END - CAP - 1, np.int32)
    tokens_QP[:, -1] = END - length_B
    lengths_Q = np.full(len(length_B), PROMPT, np.int32)
    ids_B = np.arange(len(length_B), dtype=np.int32)
    return Prompts(tokens_QP, lengths_Q, ids_B, np.ones(len(length_B), bool))


@functools.partial(jax.jit, static_argnames=("model", "task", "at_once"))
def static_waves(model: Decoder, params, prompts: Prompts, key, task: Task, at_once: int):
    """Responses [B, T] and their log-probs, in waves of `at_once` rows; and slot-steps."""
    run = functools.partial(model.apply, {"params": params})
    P, T = task.prompt_slots, task.response_slots

    def wave(prompts: Prompts):
        mask_BP = jnp.arange(P)[None] >= P - prompts.prompt_len_Q[:, None]
        positions_BP = jnp.maximum(jnp.cumsum(mask_BP, axis=1) - 1, 0)
        x_BD, prompt = run(prompts.tokens_QP, positions_BP, mask_BP, method="prefill")
        prompt = slots.from_first(prompt, P - jnp.asarray(prompts.prompt_len_Q))
        keys_B = jax.vmap(functools.partial(jax.random.fold_in, key))(prompts.row_ids_B)

        def step(carry):
            t, live_B, x_BD, cache, tokens_BT, logp_BT = carry
            logits_BV = run(x_BD[:, None], method="project")[:, 0]
            keys_of_t_B = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys_B, t)
            token_B, logp_B, _ = sampling.draw(logits_BV, keys_of_t_B, task.settings)
            tokens_BT = tokens_BT.at[:, t].set(jnp.where(live_B, token_B, task.pad_id))
            logp_BT = logp_BT.at[:, t].set(jnp.where(live_B, logp_B, 0.0))
            at_B = prompts.prompt_len_Q + t
            seen_1T = jnp.arange(cache[0][1].shape[2])[None] <= t
            parts = prompt, cache, prompts.prompt_len_Q, seen_1T, t
            x_BD, cache = run(token_B, at_B, *parts, method="decode")
            live_B &= token_B != task.eos_ids[0]
            return t + 1, live_B, x_BD, cache, tokens_BT, logp_BT

        blank_BT = jnp.zeros((at_once, T))
        tokens_BT = jnp.full((at_once, T), task.pad_id, jnp.int32)
        live_B, none = prompts.active_B, slots.empty_cache(prompt, at_once, 0)
        carry = (jnp.zeros((), jnp.int32), live_B, x_BD, none, tokens_BT, blank_BT)
        for end in range(T // 4, T + 1, T // 4):

            def unfinished(carry, end=end):
                return (carry[0] < end) & carry[1].any()

            t, live_B, x_BD, cache, *written = carry
            behind = slots.empty_cache(prompt, at_once, T // 4)
            longer = tuple(
                (jnp.concatenate(keys, axis=3), jnp.concatenate(values, axis=2))
                for keys, values in map(zip, cache, behind)
            )
            carry = t, live_B, x_BD, longer, *written
            carry = jax.lax.while_loop(unfinished, step, carry)
        return carry[4], carry[5], carry[0]

    parts = jax.tree.map(lambda x: x.reshape(-1, at_once, *x.shape[1:]), prompts)
    tokens, logps, steps_W = jax.lax.map(wave, parts)
    return tokens.reshape(-1, T), logps.reshape(-1, T), steps_W.sum() * at_once


def compare(rows: int, ratio: int, rounds: int) -> dict[str, Any]:
    """Both schemes on the same rows, in turn."""
    at_once, length_B = rows // ratio, lengths(rows)
    given, key = prompts_for(length_B), jax.random.key(3)
    task = Task(rows, PROMPT, 1, CAP, SamplerSettings(), (END,), 0, at_once * (PROMPT + CAP))
    config = long_tail.model(tied_embeddings=False, positions=CAP + PROMPT)
    params, model = counting(config), Decoder(config)
    traced = {
        "waves": static_waves.trace(model, params, given, key, task, at_once),
        "slots": sampling.sample.trace(model, params, given, key, task),
    }
    programs = {}
    result: dict[str, Any] = {"rows": rows, "at_once": at_once, "tokens": int(length_B.sum())}
    for name, each in traced.items():
        begin = time.process_time()
        programs[name] = each.lower().compile()
        result[name] = {"compile_cpu_seconds": time.process_time() - begin}
    found: dict[str, Any] = {}
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, program in programs.items():
            begin = time.process_time()
            found[name] = jax.device_get(program(params, given, key))
            seconds[name].append(time.process_time() - begin)
    (tokens_BT, logp_BT, slot_steps), sampled = found["waves"], found["slots"]
    assert isinstance(sampled, Sampled)
    np.testing.assert_array_equal(sampled.response_len_B, length_B)
    np.testing.assert_array_equal(sampled.tokens_BS[:, PROMPT:], tokens_BT)
    np.testing.assert_allclose(sampled.behav_logp_BT, logp_BT, atol=1e-4)
    run_steps = {"waves": slot_steps, "slots": sampled.slot_steps}
    for name in programs:
        result[name] |= {
            "used": result["tokens"] / int(run_steps[name]),
            "tokens_per_cpu_second": result["tokens"] / min(seconds[name]),
            "cpu_seconds": seconds[name],
        }
    speeds = [result[name]["tokens_per_cpu_second"] for name in ("slots", "waves")]
    return result | {"times_as_fast": speeds[0] / speeds[1]}


def sheet(results: list[dict[str, Any]]) -> Sheet:
    """A line for each number of slots."""
    header = ["slots", "rows", "used by waves, %", "by refilled slots, %"]
    header += ["tokens a CPU-second, waves", "refilled slots", "times as fast"]
    lines = []
    for each in results:
        pair = [each[name] for name in ("waves", "slots")]
        cells = [str(each["at_once"]), str(each["rows"]), *(share(one["used"]) for one in pair)]
        cells += [f"{one['tokens_per_cpu_second']:,.0f}" for one in pair]
        lines.append([*cells, f"{each['times_as_fast']:.2f}"])
    return Sheet(header, lines)


def main() -> None:
    rows, rounds = (128, 1) if _QUICK.value else (256, 3)
    results = []
    for ratio in RATIOS:
        results.append(compare(rows, ratio, rounds))
        print(
            f"{rows // ratio} slots: {results[-1]['times_as_fast']:.2f} times as fast", flush=True
        )
    out = pathlib.Path(_OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    print("\n".join(sheet(results).markdown()))


if __name__ == "__main__":
    run(main)
