"""Evaluates a Hugging Face model directory on the five benchmark sets.

python -m experiments.evaluate --model=DIR --data=DIR --out=DIR \\
    --benchmarks=aime24,amc23,math500,minerva,olympiad_bench

Greedy Pass@1 by default. The paper's sampled protocol: --temperature=0.1
--samples=aime24:32,amc23:32. The same command continues an evaluation that was killed.
All devices take part; --mesh=1,-1,4 divides each matrix over 4 of them. On several machines: the
same command on each, with --coordinator or --distributed as in training (launch/README.md).
"""

import os
import sys

from absl import flags

from experiments import main
from remix_jax import processes
from remix_jax.data.benchmark_sets import BENCHMARKS
from remix_jax.evaluation import run
from remix_jax.evaluation.settings import Settings, mesh_of, samples_of
from remix_jax.sinks.console import Console

MODEL = flags.DEFINE_string("model", None, "Hugging Face model directory")
SETS = flags.DEFINE_list("benchmarks", list(BENCHMARKS), "sets, in the order of the table")
DATA = flags.DEFINE_string("data", "data", "directory of the sets' files: aime.json, amc.json, ...")
OUT = flags.DEFINE_string("out", None, "directory of the evaluation: new, or of the same one")
SAMPLES = flags.DEFINE_list("samples", ["1"], "responses a problem: N, or NAME:N,NAME:N (else 1)")
TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "0: greedy")
TOP_P = flags.DEFINE_float("top_p", 1.0, "1: off")
PROMPT_TOKENS = flags.DEFINE_integer("prompt_tokens", 2048, "longer prompts are dropped: wrong")
RESPONSE_TOKENS = flags.DEFINE_integer("response_tokens", 8192, "tokens of the longest response")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "responses decoded at once")
SEED = flags.DEFINE_integer("seed", 0, "of the draws")
DTYPE = flags.DEFINE_enum("dtype", "bfloat16", ["float32", "bfloat16"], "of the weights")
MESH = flags.DEFINE_list("mesh", ["1", "-1", "1"], "devices on data,fsdp,tensor; -1: the rest")
LIMIT = flags.DEFINE_integer("limit", 0, "first problems of each set, for a quick look; 0: all")

JOIN = main.define_processes()


def evaluate() -> None:
    """The evaluation behind the flags."""
    assert MODEL.value is not None  # required, like OUT
    assert OUT.value is not None
    settings = Settings(
        model=MODEL.value,
        benchmarks=tuple(SETS.value),
        samples=samples_of(SAMPLES.value, SETS.value),
        temperature=TEMPERATURE.value,
        top_p=TOP_P.value,
        prompt_tokens=PROMPT_TOKENS.value,
        response_tokens=RESPONSE_TOKENS.value,
        seed=SEED.value,
        dtype=DTYPE.value,
        limit=LIMIT.value,
        batch_size=BATCH_SIZE.value,
        data=DATA.value,
        mesh=mesh_of(MESH.value),
    )
    JOIN()
    try:
        with open(os.devnull, "w") as nowhere:  # of several processes the first one speaks
            file = None if processes.is_first() else nowhere
            run.run(settings, OUT.value, Console(0, file=file))
    except KeyboardInterrupt:
        print("stopped; the same command continues after the last whole batch", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main.run(evaluate, required=["model", "out"])
