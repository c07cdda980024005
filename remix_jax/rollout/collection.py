"""Rejection sampling: one verified response a problem, with every attempt counted.

Batches go over the problems that are still unsolved, those with the fewest attempts first. The
bank is written after every batch, so that a kill costs at most the batch that was running. A
response depends on the seed, its problem's place and the number of its attempt, not on the batch
that it was drawn in: a continued collection finds what an unbroken one would have found, up to the
rounding of sums in batches of other shapes.
"""

import dataclasses
import importlib
import pathlib
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from remix_jax.cost import decode_flops
from remix_jax.data import traces
from remix_jax.data.problems import Problem, load_problems
from remix_jax.data.prompts import chat, encode_prompts
from remix_jax.data.traces import BANK_FILE, Bank, Trace
from remix_jax.errors import InputError
from remix_jax.grading import verdicts as grading
from remix_jax.grading.pool import GraderPool
from remix_jax.models import huggingface
from remix_jax.models.decoder import DecoderConfig
from remix_jax.models.digest import model_digest
from remix_jax.models.sampling import SamplerSettings
from remix_jax.rollout.rollouts import (
    Vocabulary,
    load_vocabulary,
    prompt_batch,
    response_ids,
    texts_of,
)
from remix_jax.rollout.sampler import Prompts, Sampler, Task, compiled
from remix_jax.sinks.console import Console
from remix_jax.text import count, duration

Accept = Callable[[str, str], bool]
ATTEMPT_BITS, PLACE_BITS = 14, 17  # of a response's number


@dataclasses.dataclass(frozen=True)
class Settings:
    """A collection. `attempts`, `batch_size` and `group_size` may change when it is continued."""

    model: str  # Hugging Face model directory
    problems: str  # problem file or prepared TFDS directory
    instruction: str  # appended to each problem
    temperature: float
    top_k: int  # 0: off
    top_p: float  # 1: off
    min_p: float  # 0: off
    prompt_tokens: int  # longer prompts are dropped and counted
    response_tokens: int
    seed: int
    dtype: str
    attempts: int  # most responses to a problem
    batch_size: int  # responses decoded at once
    group_size: int  # responses to one prompt of a batch
    accept: str = ""  # module:function(problem, response text) -> bool, asked of right responses


class Asked(NamedTuple):
    """The problems of a collection whose prompts fit."""

    problems: list[Problem]
    prompts: list[list[int]]
    dropped: int


class Drawing(NamedTuple):
    """What draws a batch."""

    sampler: Sampler
    sizes: DecoderConfig
    params: dict
    width: int  # slots of a prompt
    key: jax.Array
    vocabulary: Vocabulary
    accept: Accept


def collect(settings: Settings, out: str | pathlib.Path, console: Console) -> Bank:
    """Collects, or continues to; the bank lies in `out`.

    Raises:
      InputError: settings, model, problems, or an `out` that holds something else.
    """
    out = pathlib.Path(out)
    validate(settings)
    vocabulary = load_vocabulary(settings.model)
    asked = _asked(settings, vocabulary)
    bank = _begin(settings, vocabulary, asked, out)
    console.print_plan(_plan(settings, asked, bank), title="Collection of traces")
    if bank.attempts:
        console.event(f"{bank.attempts:,} responses were there already: {bank.solved:,} solved")
    if _open(settings, bank):
        drawing = _drawing(settings, vocabulary, asked)
        bank = _collect(settings, drawing, asked, bank, grading.process_pool(), out, console)
    traces.save(bank, out)
    console.print_plan(_summary(bank), title="Traces")
    console.event(f"the bank is in {out}")
    return bank


def validate(s: Settings) -> None:
    """Checks the settings.

    Raises:
      InputError: names the flag, its value and what would be right.
    """
    most = 2**ATTEMPT_BITS
    rules = (
        ("temperature", s.temperature > 0, "must be above 0: attempts must differ"),
        ("top_k", s.top_k >= 0, "must be 0 (off) or more"),
        ("top_p", 0 < s.top_p <= 1, "must be in (0, 1]"),
        ("min_p", 0 <= s.min_p < 1, "must be in [0, 1)"),
        ("prompt_tokens", s.prompt_tokens >= 1, "must be 1 or more"),
        ("response_tokens", s.response_tokens >= 1, "must be 1 or more"),
        ("seed", 0 <= s.seed < 2**31, "must be in [0, 2^31)"),
        ("attempts", 1 <= s.attempts <= most, f"must be from 1 to {most:,}"),
        ("group_size", s.group_size >= 1, "must be 1 or more"),
        (
            "batch_size",
            s.batch_size >= 1 and s.batch_size % max(s.group_size, 1) == 0,
            f"must be a multiple of group_size = {s.group_size}",
        ),
    )
    for field, holds, rule in rules:
        if not holds:
            raise InputError(f"--{field}={getattr(s, field)}: {rule}")


def _asked(s: Settings, vocabulary: Vocabulary) -> Asked:
    problems = load_problems(s.problems)
    if len(problems) > 2**PLACE_BITS:
        raise InputError(f"{s.problems}: {len(problems):,} problems; most are {2**PLACE_BITS:,}")
    texts = [chat(problem.problem, s.instruction) for problem in problems]
    encoded = encode_prompts(vocabulary.tokenizer, texts, s.prompt_tokens)
    return Asked([problems[i] for i in encoded.indices], encoded.ids, encoded.dropped)


def _begin(s: Settings, vocabulary: Vocabulary, asked: Asked, out: pathlib.Path) -> Bank:
    """The bank to continue, or an empty one."""
    names = ("temperature", "top_k", "top_p", "min_p", "response_tokens", "seed")
    sampler = {name: float(getattr(s, name)) for name in names}
    untried = [
        Trace(problem.problem, problem.answers, tuple(prompt), (), 0, 0.0)
        for problem, prompt in zip(asked.problems, asked.prompts, strict=True)
    ]
    tokenizer = traces.fingerprint(vocabulary.tokenizer)
    name = pathlib.Path(s.model).resolve().name
    new = Bank(name, model_digest(s.model), tokenizer, sampler, untried, s.accept)
    if not (out / BANK_FILE).exists():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise InputError(f"{out} is not empty and holds no trace bank: give another --out")
        traces.save(new, out)  # an unwritable place is told before anything is sampled
        return new
    old = traces.load(out)
    for field, ours, theirs in (
        ("model", new.weights, old.weights),
        ("tokenizer", new.tokenizer, old.tokenizer),
        ("accept", new.accept, old.accept),
        *((name, value, old.sampler.get(name)) for name, value in sampler.items()),
        ("problems or prompts", *([t[:3] for t in bank.traces] for bank in (new, old))),
    ):
        if ours != theirs:
            raise InputError(f"{out} holds a bank of other {field}: give another --out")
    return old


def _drawing(s: Settings, vocabulary: Vocabulary, asked: Asked) -> Drawing:
    width = max(map(len, asked.prompts))
    limit = huggingface.read_config(s.model).max_positions
    if width + s.response_tokens > limit:
        raise InputError(
            f"prompts of {width} tokens and --response_tokens={s.response_tokens}: {s.model} takes "
            f"{limit} positions (max_position_embeddings)"
        )
    model, params = huggingface.load(s.model, dtype=s.dtype)
    task = Task(
        s.batch_size // s.group_size,
        width,
        s.group_size,
        s.response_tokens,
        SamplerSettings(s.temperature, s.top_k, s.top_p, s.min_p),
        vocabulary.eos_ids,
        vocabulary.pad_id,
    )
    key, accept = jax.random.key(s.seed), _accept(s.accept)
    sampler = compiled(model, task)
    return Drawing(sampler, model.config, params, width, key, vocabulary, accept)


def _accept(name: str) -> Accept:
    """The function behind `module:function`; without a name every right answer is accepted."""
    if not name:
        return lambda problem, response: True
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"--accept={name}: expected MODULE:FUNCTION ({error})") from None


def _open(s: Settings, bank: Bank) -> list[int]:
    """Places of the problems that are unsolved and under the cap, fewest attempts first."""
    places = [i for i, t in enumerate(bank.traces) if not t.response and t.attempts < s.attempts]
    return sorted(places, key=lambda i: (bank.traces[i].attempts, i))


def _collect(
    s: Settings,
    drawing: Drawing,
    asked: Asked,
    bank: Bank,
    pool: GraderPool,
    out: pathlib.Path,
    console: Console,
) -> Bank:
    begin, already, tokens, batch = time.monotonic(), bank.attempts, 0, 0
    while places := _open(s, bank):
        made, new_tokens = _batch(s, drawing, asked, bank, places, pool)
        bank = bank._replace(traces=[made.get(i, t) for i, t in enumerate(bank.traces)])
        traces.save(bank, out)
        batch, tokens = batch + 1, tokens + new_tokens
        spent = max(time.monotonic() - begin, 1e-9)
        left = sum(s.attempts - bank.traces[i].attempts for i in _open(s, bank))
        pace = spent / (bank.attempts - already)
        console.print(
            f"batch {count(batch)} | solved {bank.solved:,}/{len(bank.traces):,} | responses "
            f"{count(bank.attempts)} | {count(tokens / spent)} tokens/s | {duration(spent)}, "
            f"left at most {duration(pace * left)}"
        )
    return bank


def _batch(
    s: Settings, drawing: Drawing, asked: Asked, bank: Bank, places: list[int], pool: GraderPool
) -> tuple[dict[int, Trace], int]:
    """One batch over the first of `places`: their new traces, and the tokens decoded.

    With fewer problems than the batch has room for, each comes several times.
    """
    slots = s.batch_size // s.group_size
    place_Q = [places[q % min(len(places), slots)] for q in range(slots)]
    drawn = dict.fromkeys(place_Q, 0)
    attempt_B = np.zeros(s.batch_size, np.int32)
    for q, place in enumerate(place_Q):
        first = bank.traces[place].attempts + drawn[place]
        attempt_B[q * s.group_size : (q + 1) * s.group_size] = first + np.arange(s.group_size)
        drawn[place] += s.group_size
    place_B = np.repeat(np.array(place_Q, np.int32), s.group_size)
    active_B = attempt_B < s.attempts
    tokens_QP, length_Q = prompt_batch(
        [asked.prompts[i] for i in place_Q], slots, drawing.width, drawing.vocabulary.pad_id
    )
    ids_B = np.where(active_B, (place_B << ATTEMPT_BITS) | attempt_B, 0).astype(np.int32)
    prompts = Prompts(tokens_QP, length_Q, ids_B, active_B)
    sampled = drawing.sampler(drawing.params, prompts, drawing.key)
    responses = response_ids(sampled, s.batch_size)
    texts = texts_of(drawing.vocabulary, responses)
    verdicts = grading.grade_many(texts, [asked.problems[i].answers for i in place_B], pool)
    length_B, ended_B = jax.device_get((sampled.response_len_B, sampled.ended_B))
    correct_B = np.array([v.correct for v in verdicts]) & ended_B  # an empty slot never ends
    for b in np.flatnonzero(correct_B):
        correct_B[b] = drawing.accept(asked.problems[place_B[b]].problem, texts[b])
    made = {}
    for place, before in ((i, bank.traces[i]) for i in drawn):
        own_B = (place_B == place) & active_B
        spent = decode_flops(
            drawing.sizes,
            place_Q.count(place),
            int(own_B.sum()),
            drawing.width,
            length_B[own_B].sum(),
        )
        right = np.flatnonzero(own_B & correct_B)
        response = responses[right[np.argmin(attempt_B[right])]] if right.size else []
        made[place] = before._replace(
            response=tuple(response),
            attempts=before.attempts + int(own_B.sum()),
            flops=before.flops + float(spent),
        )
    return made, int(length_B[active_B].sum())


def _plan(s: Settings, asked: Asked, bank: Bank) -> dict[str, object]:
    lines: dict[str, object] = {
        "model": s.model,
        "problems": len(asked.problems),
        "attempts a problem, at most": s.attempts,
        "batch": f"{s.batch_size} responses, {s.group_size} a prompt",
        "decoding": f"temperature {s.temperature:g}, {s.response_tokens} tokens",
    }
    if s.accept:
        lines["accepted by, beside the answer"] = s.accept
    if asked.dropped:
        lines["problems dropped"] = f"{asked.dropped:,}, prompts over {s.prompt_tokens} tokens"
    return lines


def _summary(bank: Bank) -> dict[str, object]:
    """What the collection came to."""
    lengths = [len(t.response) for t in bank.traces if t.response]
    lines: dict[str, object] = {
        "solved": f"{bank.solved:,} of {len(bank.traces):,}",
        "responses drawn": bank.attempts,
        "FLOPs": f"{bank.flops:.3g}",
    }
    if lengths:
        lines["responses a trace, failures included"] = f"{bank.attempts / len(lengths):,.0f}"
        lines["tokens a trace"] = f"{min(lengths):,} to {max(lengths):,}"
    return lines
