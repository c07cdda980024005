"""Decoding and learning on this machine's accelerator, against its bounds and against torch.

    python -m experiments.benchmark_accelerator --models=Qwen2.5-0.5B-Instruct --rows=64

Models of random weights in the shapes of experiments/configs/architectures: decoded tokens a second
beside what the memory's bandwidth allows, and the learning phase's share of the peak. With
--torch=PYTHON, an interpreter that has torch and transformers, the same shapes on that side.
Results go to DIR/results.json and, as a table, to the console.
"""

import json
import pathlib
import statistics
import subprocess
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import benchmark_torch
from experiments.main import run
from remix_jax import config_rules, cost, schedule
from remix_jax.config import KL, Config, Data, Evaluation, Memory, Model, Objective, Replay
from remix_jax.errors import InputError
from remix_jax.learner.state import Learner, abstract_state, init_state, make_learner
from remix_jax.learner.step import compile_learn, step_inputs
from remix_jax.models import huggingface
from remix_jax.models.decoder import Decoder, DecoderConfig
from remix_jax.models.sampling import Sampled
from remix_jax.rollout import sampler as sampling
from remix_jax.rollout.sampler import Prompts
from remix_jax.types import FreshRows, empty_rows

ARCHITECTURES = pathlib.Path(__file__).resolve().parent / "configs" / "architectures"
FLAGS = flags.FLAGS
_DEFAULT = ["Qwen2.5-0.5B-Instruct", "DeepSeek-R1-Distill-Qwen-1.5B"]


def benchmark_config(rows: int, micro: int, prompt: int, response: int) -> Config:
    """One GRPO step without anchors: a single pass over the rows, as the torch side makes it."""
    return Config(
        batch_size=rows,
        group_size=8,
        mini_batch_size=rows,
        micro_batch_size=micro,
        score_batch_size=micro,
        passes=1,
        reincarnation_step=0,
        model=Model(path="random", compute_dtype="bfloat16"),
        memory=Memory(logit_entries=16_384, remat=True, scan_layers=True),
        data=Data(train="none", suites=("none",), prompt_tokens=prompt, response_tokens=response),
        replay=Replay(share=0.0),
        kl=KL(coef=0.0, convex=False),
        objective=Objective(advantage="group_normalized", entropy_coef=0.0),
        evaluation=Evaluation(batch_size=8),
    )


def decode_bound(sizes: DecoderConfig, rows: int, prompt: int, response: int, rate: float) -> float:
    """Tokens a second if each step read matrices and cache once, bfloat16, and nothing else.

    `cost.decode_bytes` / rate seconds a step, the middle of the response seen on average.
    """
    return rows * rate / cost.decode_bytes(sizes, rows, prompt + response / 2)


def ours(sizes: DecoderConfig, config: Config, repeats: int) -> dict[str, Any]:
    """Seconds of decoding and of learning, and the FLOPs of the latter."""
    learner = make_learner(config, Decoder(sizes))
    slots = config.data.prompt_tokens, config.data.response_tokens
    groups = config.batch_groups
    stage = next(iter(schedule.stages(config).values()))
    task = sampling.rollout_task(config, stage, eos_ids=(), pad_id=0)
    sampler = sampling.make(config, learner.policy, task)
    params = _random_params(learner)
    prompts = np.random.default_rng(0).integers(1, sizes.vocab_size, (groups, slots[0]))
    row_B = np.arange(config.batch_size, dtype=np.int32)
    lengths = np.full(groups, slots[0], np.int32)
    given = Prompts(prompts.astype(np.int32), lengths, row_B, row_B >= 0)
    decode, sampled = [], None
    for turn in range(repeats + 1):
        begin = time.perf_counter()
        sampled = jax.block_until_ready(sampler(params, given, jax.random.key(turn)))
        decode.append(time.perf_counter() - begin)
    assert sampled is not None
    learn = compile_learn(learner, stage, None).call
    state, seconds = init_state(learner, params, config.seed), []
    inputs = step_inputs(config, 1)
    rows = _rows(sampled, config)
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        state, _ = jax.block_until_ready(learn(state, rows, inputs, None))
        seconds.append(time.perf_counter() - begin)
    tokens = config.batch_size * slots[1]
    flops = cost.step_flops(learner, config, stage, tokens, step=1)
    return {"decode": decode[1:], "learn": seconds[1:], "flops": flops.learning}


def _random_params(learner: Learner) -> dict:
    shapes = abstract_state(learner).params
    keys = iter(jax.random.split(jax.random.key(0), len(jax.tree.leaves(shapes))))
    return jax.tree.map(
        lambda x: (0.02 * jax.random.normal(next(keys), x.shape)).astype(x.dtype), shapes
    )


def _rows(sampled: Sampled, config: Config) -> FreshRows:
    """What was sampled, with rewards that differ within each group."""
    row_B = jnp.arange(config.batch_size)
    rows = empty_rows(config.batch_size, config.data.prompt_tokens, config.data.response_tokens)
    return rows.replace(
        tokens_BS=sampled.tokens_BS,
        prompt_len_B=sampled.prompt_len_B,
        response_len_B=sampled.response_len_B,
        behav_logp_BT=sampled.behav_logp_BT,
        sampled_logp_BT=sampled.sampled_logp_BT,
        reward_B=(row_B % 2).astype(jnp.float32),
        group_B=row_B // config.group_size,
        valid_B=row_B >= 0,
    )


def theirs(python: str, spec: dict[str, Any], out: pathlib.Path) -> dict[str, Any]:
    """The torch side, in a process of its own.

    Raises:
      InputError: it fails; the last line that it printed.
    """
    files = out / "torch.spec.json", out / "torch.json"
    files[0].write_text(json.dumps(spec))
    script = pathlib.Path(benchmark_torch.__file__).resolve()
    command = [python, "-P", str(script), *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"--torch={python}: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    return json.loads(files[1].read_text())


def figures(
    sizes: DecoderConfig, config: Config, seconds: dict[str, Any], flops: float
) -> dict[str, float]:
    """Medians as rates, and their shares of what the chip can do where that is known."""
    rows, prompt = config.batch_size, config.data.prompt_tokens
    response = config.data.response_tokens
    decode, learn = (statistics.median(seconds[phase]) for phase in ("decode", "learn"))
    found = {
        "decode_tokens_per_second": rows * response / decode,
        "learn_tokens_per_second": rows * (prompt + response) / learn,
    }
    chip = cost.chip()
    if chip is not None:
        bound = decode_bound(sizes, rows, prompt, response, chip.memory_rate)
        found["decode_share_of_bound"] = found["decode_tokens_per_second"] / bound
        found["learn_mfu"] = flops / (learn * chip.flops)
    return found


def benchmark() -> None:
    """Every model, both sides."""
    out = pathlib.Path(FLAGS.out)
    out.mkdir(parents=True, exist_ok=True)
    config = benchmark_config(FLAGS.rows, FLAGS.micro, FLAGS.prompt, FLAGS.response)
    config_rules.validate(config)
    results: dict[str, Any] = {
        "device": jax.devices()[0].device_kind,
        "versions": {"jax": jax.__version__},
        "rows": FLAGS.rows,
        "prompt": FLAGS.prompt,
        "response": FLAGS.response,
        "models": {},
    }
    for name in FLAGS.models:
        directory = next(
            (
                d
                for d in (pathlib.Path(name), ARCHITECTURES / name)
                if (d / "config.json").is_file()
            ),
            None,
        )
        if directory is None:
            raise InputError(f"--models={name}: no directory with a config.json, and no known name")
        sizes = huggingface.read_config(directory)
        own = ours(sizes, config, FLAGS.repeats)
        sides = {"remix_jax": figures(sizes, config, own, own["flops"])}
        if FLAGS.torch:
            counts = {"rows": FLAGS.rows, "micro": FLAGS.micro, "repeats": FLAGS.repeats}
            widths = {"prompt": FLAGS.prompt, "response": FLAGS.response}
            spec = {"model": str(directory), **counts, **widths}
            other = theirs(FLAGS.torch, spec, out)
            results["versions"] |= other["versions"]
            sides["torch"] = figures(sizes, config, other, own["flops"])
        results["models"][name] = sides
        for side, values in sides.items():
            shown = ", ".join(f"{key} {value:,.4g}" for key, value in values.items())
            print(f"{name}, {side}: {shown}", flush=True)
    (out / "results.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    flags.DEFINE_list("models", _DEFAULT, "directories with a config.json, or known names")
    flags.DEFINE_integer("rows", 64, "responses decoded at once; rows of a step", lower_bound=8)
    flags.DEFINE_integer("micro", 4, "rows of a backward pass", lower_bound=1)
    flags.DEFINE_integer("prompt", 256, "tokens of each prompt", lower_bound=2)
    flags.DEFINE_integer("response", 1024, "tokens of each response", lower_bound=1)
    flags.DEFINE_integer("repeats", 3, "measured, after one to warm up", lower_bound=1)
    flags.DEFINE_string("torch", None, "interpreter with torch and transformers")
    flags.DEFINE_string("out", "runs/accelerator", "directory for the results")
    run(benchmark)
