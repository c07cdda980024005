"""Decoding and learning on this machine's accelerator, against its bounds and against torch.

    python -m experiments.benchmark_accelerator [--torch=PYTHON] [--models=Qwen2.5-0.5B-Instruct]

Models of random weights in the shapes of experiments/configs/architectures. For each: decoding with
several numbers of rows, beside what the memory's bandwidth allows; the learning phase with passes
of several sizes, as a share of the peak; seconds to compile, anew and from the cache; the largest
operations. With --torch, an interpreter that has torch and transformers, the same shapes there.
After --seconds nothing more begins, and the same command goes on: what --out has is kept there, in
results.json; results.md has the tables.
"""

import collections
import contextlib
import functools
import json
import pathlib
import re
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.experimental.compilation_cache import compilation_cache
from jax.profiler import ProfileData

from experiments import benchmark_torch
from experiments.main import run
from experiments.tables import Sheet, page, share
from remix_jax import config_rules, cost, schedule
from remix_jax.config import KL, Config, Data, Evaluation, Memory, Model, Objective, Replay
from remix_jax.errors import InputError
from remix_jax.learner.state import Learner, abstract_state, init_state, make_learner
from remix_jax.learner.step import step_inputs, trace_learn
from remix_jax.models import huggingface
from remix_jax.models.decoder import Decoder, DecoderConfig
from remix_jax.models.sampling import Prompts
from remix_jax.rollout import sampler as sampling
from remix_jax.sharding import compiled
from remix_jax.types import FreshRows, empty_rows

ARCHITECTURES = pathlib.Path(__file__).resolve().parent / "configs" / "architectures"
FLAGS = flags.FLAGS
_DEFAULT = ["Qwen2.5-0.5B-Instruct", "DeepSeek-R1-Distill-Qwen-1.5B"]
_INSIDE = ("while", "conditional", "call")  # events that hold those of other operations
Call = Callable[[int], Any]
Part = Callable[[], dict[str, Any]]


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


def decoding(sizes: DecoderConfig, config: Config, repeats: int) -> dict[str, Any]:
    """Every response at its full length, all rows at once."""
    learner = make_learner(config, Decoder(sizes))
    stage = next(iter(schedule.stages(config).values()))
    task = sampling.rollout_task(config, stage, eos_ids=(), pad_id=0)
    groups, prompt = config.batch_groups, config.data.prompt_tokens
    tokens = np.random.default_rng(0).integers(1, sizes.vocab_size, (groups, prompt))
    row_B = np.arange(config.batch_size, dtype=np.int32)
    lengths = np.full(groups, prompt, np.int32)
    given = jax.device_put(Prompts(tokens.astype(np.int32), lengths, row_B, row_B >= 0))
    params = _random_params(learner)

    def make() -> Call:
        program = compiled(sampling.trace(learner.policy, task), None)
        return lambda turn: program.call(params, given, jax.random.key(turn))

    found = measured(make, repeats)
    rows, response = config.batch_size, config.data.response_tokens
    found["tokens_per_second"] = rows * response / statistics.median(found["seconds"])
    chip = cost.chip()
    if chip is not None:
        bound = decode_bound(sizes, rows, prompt, response, chip.memory_rate)
        found["share_of_peak"] = found["tokens_per_second"] / bound
    return found


def learning(sizes: DecoderConfig, config: Config, repeats: int) -> dict[str, Any]:
    """All rows of prompt and response once, in passes of config.micro_batch_size rows."""
    width = config.prompt_slots + config.data.response_tokens
    slots = config.micro_batch_size * width
    learner = make_learner(config, Decoder(sizes))._replace(busy_slots=slots)
    stage = next(iter(schedule.stages(config).values()))
    rows, inputs = _rows(sizes, config), step_inputs(config, 1)
    state = init_state(learner, _random_params(learner), config.seed)

    def make() -> Call:
        program = compiled(trace_learn(learner, stage, None), None)

        def call(turn: int) -> Any:
            nonlocal state
            state, metrics = program.call(state, rows, inputs, None)
            return metrics

        return call

    found = measured(make, repeats)
    tokens = config.batch_size * width
    found["tokens_per_second"] = tokens / statistics.median(found["seconds"])
    chip = cost.chip()
    if chip is not None:
        responses = config.batch_size * config.data.response_tokens
        flops = cost.step_flops(learner, config, stage, responses, step=1).learning
        found["share_of_peak"] = flops / (statistics.median(found["seconds"]) * chip.flops)
    return found


def measured(make: Callable[[], Call], repeats: int) -> dict[str, Any]:
    """Seconds to compile anew, and from the cache; of each repeat; peak memory; operations."""
    times = []
    with tempfile.TemporaryDirectory() as directory, _programs_kept_in(directory):
        for _ in range(2):
            jax.clear_caches()
            begin = time.perf_counter()
            call = make()
            times.append(time.perf_counter() - begin)
    jax.block_until_ready(call(0))
    seconds = []
    for turn in range(1, repeats + 1):
        begin = time.perf_counter()
        jax.block_until_ready(call(turn))
        seconds.append(time.perf_counter() - begin)
    memory = jax.devices()[0].memory_stats() or {}
    return {
        "compile_seconds": times[0],
        "load_seconds": times[1],
        "seconds": seconds,
        "peak_bytes": memory.get("peak_bytes_in_use", 0),  # of the process so far
        "operations": profiled(lambda: call(repeats + 1)),
    }


@contextlib.contextmanager
def _programs_kept_in(directory: str) -> Iterator[None]:
    settings = {
        "jax_compilation_cache_dir": directory,
        "jax_persistent_cache_min_compile_time_secs": 0,
    }
    before = {name: getattr(jax.config, name) for name in settings}

    def use(values: dict[str, Any]) -> None:
        for name, value in values.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()

    use(settings)
    try:
        yield
    finally:
        use(before)


def profiled(call: Callable[[], Any]) -> list[dict[str, Any]]:
    """The device's operations in one call, equal ones together, those that took longest first."""
    with tempfile.TemporaryDirectory() as directory:
        with jax.profiler.trace(directory):
            jax.block_until_ready(call())
        files = sorted(pathlib.Path(directory).rglob("*.xplane.pb"))
        seconds: dict[str, float] = collections.defaultdict(float)
        counts: collections.Counter[str] = collections.Counter()
        for name, nanoseconds in _events(ProfileData.from_file(str(files[-1]))):
            seconds[name] += nanoseconds / 1e9
            counts[name] += 1
    total = sum(seconds.values())
    return [
        {"name": name, "seconds": took, "share": took / total, "count": counts[name]}
        for name, took in sorted(seconds.items(), key=lambda pair: -pair[1])[:20]
    ]


def _events(data: Any) -> Iterator[tuple[str, float]]:
    """Operations, less what makes equal ones differ in name."""
    for plane in data.planes:
        lines = list(plane.lines)
        lines = [line for line in lines if line.name == "XLA Ops"] or lines
        for event in (event for line in lines for event in line.events):
            name = dict(event.stats).get("hlo_op")
            kind = re.sub(r"([._]\d+|\.clone|\.remat\d*)+$", "", str(name))
            if name is not None and kind not in _INSIDE:
                yield kind, event.duration_ns


def _random_params(learner: Learner) -> dict:
    shapes = abstract_state(learner).params
    keys = iter(jax.random.split(jax.random.key(0), len(jax.tree.leaves(shapes))))
    return jax.tree.map(
        lambda x: (0.02 * jax.random.normal(next(keys), x.shape)).astype(x.dtype), shapes
    )


def _rows(sizes: DecoderConfig, config: Config) -> FreshRows:
    """Random tokens at full length, with rewards that differ within each group."""
    B, P, T = config.batch_size, config.data.prompt_tokens, config.data.response_tokens
    row_B, logp_BT = jnp.arange(B), jnp.full((B, T), -np.log(sizes.vocab_size), jnp.float32)
    tokens_BS = np.random.default_rng(0).integers(1, sizes.vocab_size, (B, P + T))
    return empty_rows(B, P, T).replace(
        tokens_BS=jnp.asarray(tokens_BS, jnp.int32),
        prompt_len_B=jnp.full(B, P, jnp.int32),
        response_len_B=jnp.full(B, T, jnp.int32),
        behav_logp_BT=logp_BT,
        sampled_logp_BT=logp_BT,
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


def sheets(results: dict[str, Any]) -> Iterator[Sheet]:
    """What was measured, and below it the largest operations of each part."""
    header = ["part", "tokens/s", "of the peak, %", "seconds", "compiled in, s", "from cache, s"]
    rows, compiling = [], ("compile_seconds", "load_seconds")
    for name, part in results["parts"].items():
        seconds = part["seconds"]
        peak = share(part["share_of_peak"]) if "share_of_peak" in part else ""
        spread = f"{statistics.median(seconds):.3g} ({min(seconds):.3g} to {max(seconds):.3g})"
        times = [f"{part[key]:.0f}" if key in part else "" for key in compiling]
        rows.append([name, f"{part['tokens_per_second']:,.0f}", peak, spread, *times])
    yield Sheet(header, rows)
    for name, part in results["parts"].items():
        lines = [
            [each["name"], share(each["share"]), f"{each['seconds']:.4f}", f"{each['count']:,}"]
            for each in part.get("operations", ())[:10]
        ]
        if lines:
            yield Sheet(["operation", "share, %", "seconds", "times"], lines, name)


def _parts(directory: pathlib.Path, out: pathlib.Path) -> dict[str, Part]:
    """What is to be measured of a model, by name."""
    sizes, lengths = huggingface.read_config(directory), (FLAGS.prompt, FLAGS.response)
    rows, width = list(map(int, FLAGS.rows)), sum(lengths)
    found: dict[str, Part] = {}
    for count in rows:
        config = benchmark_config(count, 8, *lengths)
        config_rules.validate(config)
        found[f"decoding, {count} rows"] = functools.partial(decoding, sizes, config, FLAGS.repeats)
    for slots in map(int, FLAGS.slots):
        most = max(slots // width, 1)
        micro = max(n for n in range(1, most + 1) if rows[0] % n == 0)
        config = benchmark_config(rows[0], micro, *lengths)
        config_rules.validate(config)
        name = f"learning, {rows[0]} rows, {micro} a pass"
        found[name] = functools.partial(learning, sizes, config, FLAGS.repeats)
    if FLAGS.torch:
        spec = {"model": str(directory), "rows": rows[0], "micro": 4, "repeats": FLAGS.repeats}
        spec |= {"prompt": FLAGS.prompt, "response": FLAGS.response}
        known: dict[str, Any] = {}

        def torch(phase: str, tokens: int) -> dict[str, Any]:
            known.update({} if known else theirs(FLAGS.torch, spec, out))
            seconds, versions = known[phase], known["versions"]
            rate = tokens / statistics.median(seconds)
            return {"seconds": seconds, "tokens_per_second": rate, "versions": versions}

        tokens = {"decode": rows[0] * FLAGS.response, "learn": rows[0] * width}
        for phase, count in tokens.items():
            found[f"torch, {phase}, {rows[0]} rows"] = functools.partial(torch, phase, count)
    return found


def _directory(name: str) -> pathlib.Path:
    for directory in (pathlib.Path(name), ARCHITECTURES / name):
        if (directory / "config.json").is_file():
            return directory
    raise InputError(f"--models={name}: no directory with a config.json, and no known name")


def benchmark() -> None:
    """Every part of every model that is not measured yet, until the time is up."""
    begin, out = time.perf_counter(), pathlib.Path(FLAGS.out)
    out.mkdir(parents=True, exist_ok=True)
    parts: dict[str, Part] = {}
    for name in FLAGS.models:
        made = _parts(_directory(name), out)
        parts |= {f"{name}: {part}": function for part, function in made.items()}
    settings = {
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "prompt": FLAGS.prompt,
        "response": FLAGS.response,
    }
    file = out / "results.json"
    results: dict[str, Any] = {"settings": settings, "parts": {}}
    if file.exists():
        before = json.loads(file.read_text())
        if before["settings"] != settings:
            raise InputError(f"--out={out}: holds results of {before['settings']}, not {settings}")
        results = before
    for name in (name for name in parts if name not in results["parts"]):
        if time.perf_counter() - begin > FLAGS.seconds:
            print(f"{name}: not begun; the same command goes on", flush=True)
            continue
        results["parts"][name] = found = parts[name]()
        print(f"{name}: {found['tokens_per_second']:,.0f} tokens/s", flush=True)
        file.write_text(json.dumps(results, indent=2) + "\n")
        lines = [line for sheet in sheets(results) for line in sheet.markdown()]
        (out / "results.md").write_text(page(lines, settings))


if __name__ == "__main__":
    flags.DEFINE_list("models", _DEFAULT, "directories with a config.json, or known names")
    flags.DEFINE_list("rows", ["64", "256"], "responses decoded at once; the first, rows of a step")
    flags.DEFINE_list("slots", ["4096", "16384"], "of a backward pass, in whole rows")
    flags.DEFINE_integer("prompt", 256, "tokens of each prompt", lower_bound=2)
    flags.DEFINE_integer("response", 1024, "tokens of each response", lower_bound=1)
    flags.DEFINE_integer("repeats", 3, "measured, after one to warm up", lower_bound=1)
    flags.DEFINE_integer("seconds", 360, "after which nothing more begins", lower_bound=1)
    flags.DEFINE_string("torch", None, "interpreter with torch and transformers")
    flags.DEFINE_string("out", "runs/accelerator", "directory for the results")
    run(benchmark)
