"""What an evaluation is: its settings, checked at the door, and what identifies it."""

import dataclasses
import hashlib
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

from remix_jax.data.benchmark_sets import BENCHMARKS
from remix_jax.data.problems import INSTRUCTION, Problem
from remix_jax.errors import InputError
from remix_jax.models.digest import model_digest

SAMPLE_BITS, PLACE_BITS = 10, 14  # of a response's number: see `row_id`


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides an evaluation's numbers; the last three decide only how it runs."""

    model: str  # Hugging Face model directory
    benchmarks: tuple[str, ...]
    samples: tuple[int, ...]  # responses a problem, a number for each benchmark
    temperature: float  # 0: greedy
    top_p: float
    prompt_tokens: int  # longer prompts are dropped: counted, and wrong
    response_tokens: int
    seed: int
    dtype: str
    limit: int  # the first problems of each set; 0: all
    batch_size: int  # responses decoded at once
    data: str  # directory of the benchmarks' files
    mesh: tuple[int, int, int] = (1, -1, 1)  # data, fsdp, tensor; -1: the rest of the devices


def validate(s: Settings) -> None:
    """Checks every field.

    Raises:
      InputError: names the flag, its value and what would be right.
    """
    for name in s.benchmarks:
        if name not in BENCHMARKS:
            raise InputError(f"--benchmarks: {name!r} can be {', '.join(BENCHMARKS)}")
    most = 2**SAMPLE_BITS
    rules = (
        ("benchmarks", len(set(s.benchmarks)) == len(s.benchmarks) > 0, "name sets, each once"),
        ("samples", all(1 <= n <= most for n in s.samples), f"must be from 1 to {most}"),
        ("samples", s.temperature > 0 or max(s.samples) == 1, "greedy decoding has one sample"),
        ("temperature", 0 <= s.temperature < math.inf, "must be 0 (greedy) or more"),
        ("top_p", 0 < s.top_p <= 1, "must be in (0, 1]"),
        ("prompt_tokens", s.prompt_tokens >= 1, "must be 1 or more"),
        ("response_tokens", s.response_tokens >= 1, "must be 1 or more"),
        ("batch_size", s.batch_size >= 1, "must be 1 or more"),
        ("limit", s.limit >= 0, "must be 0 (all) or more"),
        ("seed", 0 <= s.seed < 2**31, "must be in [0, 2^31)"),
        ("mesh", all(n >= 1 or n == -1 for n in s.mesh), "sizes must be 1 or more, or -1"),
    )
    for field, holds, rule in rules:
        if not holds:
            raise InputError(f"--{field}={getattr(s, field)}: {rule}")


def samples_of(text: Sequence[str], benchmarks: Sequence[str]) -> tuple[int, ...]:
    """Samples of each benchmark from a flag: one number for all, or NAME:N, unnamed sets having 1.

    Raises:
      InputError: neither form, or a name that is not evaluated.
    """
    shown = ",".join(text)
    pairs = [part.partition(":") for part in text]
    if not pairs or not all((n or name).isdigit() for name, _, n in pairs):
        raise InputError(f"--samples={shown}: expected a number, or NAME:NUMBER,NAME:NUMBER")
    if len(pairs) == 1 and not pairs[0][1]:
        return (int(pairs[0][0]),) * len(benchmarks)
    given = {name: int(n or name) for name, _, n in pairs}
    for name in given:
        if name not in benchmarks:
            raise InputError(f"--samples={shown}: {name!r} is none of {', '.join(benchmarks)}")
    return tuple(given.get(name, 1) for name in benchmarks)


def mesh_of(text: Sequence[str]) -> tuple[int, int, int]:
    """Sizes of data, fsdp and tensor from a flag.

    Raises:
      InputError: they are not three whole numbers.
    """
    try:
        data, fsdp, tensor = map(int, text)
    except ValueError:
        raise InputError(f"--mesh={','.join(text)}: expected DATA,FSDP,TENSOR, as 1,-1,1") from None
    return data, fsdp, tensor


def row_id(benchmark: str, place: int, sample: int) -> int:
    """The number of a response's random stream: of its set, place and sample alone, below 2^31."""
    number = list(BENCHMARKS).index(benchmark) << PLACE_BITS | place
    return number << SAMPLE_BITS | sample


def identity(s: Settings, problems: dict[str, list[Problem]]) -> dict[str, Any]:
    """The settings as saved: what must be the same for an evaluation to be continued."""
    decisive = dataclasses.asdict(s)
    del decisive["batch_size"], decisive["data"], decisive["mesh"]
    decisive |= {"model": str(pathlib.Path(s.model).expanduser().resolve())}
    content = {name: [(p.problem, p.answers) for p in of] for name, of in problems.items()}
    return {
        **{name: list(v) if isinstance(v, tuple) else v for name, v in decisive.items()},
        "instruction": INSTRUCTION,
        "model_digest": model_digest(s.model),
        "problems_digest": hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16],
    }
