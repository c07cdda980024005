"""Rejection sampling: one verified response a problem, with every attempt counted.

Batches go over the problems that are still unsolved, those with the fewest attempts first. The
bank is written after every batch, so that a kill costs at most the batch that was running. A
response depends on the seed, its problem's place and the number of its attempt, not on the batch
that it was drawn in: a continued collection finds what an unbroken one would have found, up to the
rounding of sums in batches of other shapes.
"""

import dataclasses
import hashlib
import json
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from remix_jax import config_rules, files, plugins, streams
from remix_jax.config import Config
from remix_jax.cost import decode_flops
from remix_jax.data import tasks, traces
from remix_jax.data.tasks import ProblemSet
from remix_jax.data.traces import BANK_FILE, Bank, Trace
from remix_jax.errors import InputError
from remix_jax.learner import policy as policies
from remix_jax.models import huggingface
from remix_jax.models.decoder import DecoderConfig
from remix_jax.models.hf_tokenizer import Vocabulary, load_vocabulary
from remix_jax.models.huggingface import model_digest
from remix_jax.rewards import Scorer
from remix_jax.rollout.rollouts import prompt_batch, response_ids, score_responses
from remix_jax.rollout.sampler import Prompts, Sampler, Task, make, sampler_settings
from remix_jax.sharding import tree_bytes
from remix_jax.sinks.console import Console
from remix_jax.text import count, duration

ATTEMPT_BITS, PLACE_BITS = 14, 17  # of a response's number
SETTINGS = "settings.json"


@dataclasses.dataclass(frozen=True)
class Effort:
    """How a collection goes about it; the first three may change when it is continued."""

    attempts: int = 2500  # most responses to a problem
    batch_size: int = 256  # responses decoded at once
    group_size: int = 8  # responses to one prompt of a batch
    accept: str = ""  # file.py:function or module:function (problem, response) -> bool


class Drawing(NamedTuple):
    """What draws a batch, and what says that a response is right."""

    asked: ProblemSet
    sampler: Sampler
    task: Task
    sizes: DecoderConfig
    params: dict
    key: jax.Array
    vocabulary: Vocabulary
    scorer: Scorer
    accept: Callable[[str, str], bool] | None


def collect(config: Config, effort: Effort, out: str | pathlib.Path, console: Console) -> Bank:
    """Collects, or continues to, traces of the config's training problems; the bank lies in `out`.

    The model samples as config.sampling says; right is what config.reward says is correct, and what
    `effort.accept` does not refuse.

    Raises:
      InputError: config, effort, model, problems, or an `out` that holds something else.
    """
    out = pathlib.Path(out).expanduser()
    _check(config, effort)
    accept = plugins.load(effort.accept, "--accept") if effort.accept else None
    scorer, vocabulary = Scorer.of(config), load_vocabulary(config.model.path)
    asked = tasks.load_set(config.data.train, config.data, vocabulary.tokenizer)
    if asked.size > 2**PLACE_BITS:
        raise InputError(f"{asked.name}: {asked.size:,} problems; most are {2**PLACE_BITS:,}")
    task = _task(config, effort, asked, vocabulary)
    new = _empty(config, effort, asked, vocabulary)
    settings = _identity(config, effort, asked, new, scorer)
    with files.claimed(out, SETTINGS, settings, what="trace bank", flag="--out"):
        bank = traces.load(out) if (out / BANK_FILE).exists() else new
        traces.save(bank, out)  # a disk that takes nothing is reported before anything is sampled
        lines = _plan(config, effort, asked, vocabulary, scorer)
        console.print_plan(lines, title="Collection of traces")
        if bank.attempts:
            console.event(f"{bank.attempts:,} responses were there already: {bank.solved:,} solved")
        if _open(effort, bank):
            policy, params = policies.load(policies.as_saved(config))
            sampler = make(config, policy, task, kept=tree_bytes(params))
            key = streams.key(config.seed, "collection")
            drawing = Drawing(
                asked, sampler, task, policy.config, params, key, vocabulary, scorer, accept
            )
            bank = _collect(effort, drawing, bank, out, console)
    console.print_plan(_summary(bank), title="Traces")
    console.event(f"the bank is in {out}")
    return bank


def _check(config: Config, effort: Effort) -> None:
    data = config.data
    suites = data.suites or (data.train,)  # a collection evaluates nothing
    config_rules.validate(
        dataclasses.replace(config, data=dataclasses.replace(data, suites=suites))
    )
    rules = (
        ("attempts", 1 <= effort.attempts <= 2**ATTEMPT_BITS, f"from 1 to {2**ATTEMPT_BITS:,}"),
        ("group_size", effort.group_size >= 1, "1 or more"),
        (
            "batch_size",
            effort.batch_size >= 1 and effort.batch_size % max(effort.group_size, 1) == 0,
            f"a multiple of group_size = {effort.group_size}",
        ),
    )
    for field, holds, rule in rules:
        if not holds:
            raise InputError(f"--{field}={getattr(effort, field)}: must be {rule}")


def _task(config: Config, effort: Effort, asked: ProblemSet, vocabulary: Vocabulary) -> Task:
    width, response = max(map(len, asked.prompts)), config.data.response_tokens
    limit = huggingface.read_config(config.model.path).max_positions
    if width + response > limit:
        raise InputError(
            f"prompts of {width} tokens and data.response_tokens = {response}: {config.model.path} "
            f"takes {limit} positions (max_position_embeddings)"
        )
    return Task(
        effort.batch_size // effort.group_size,
        width,
        effort.group_size,
        response,
        sampler_settings(config),
        vocabulary.eos_ids,
        vocabulary.pad_id,
    )


def _empty(config: Config, effort: Effort, asked: ProblemSet, vocabulary: Vocabulary) -> Bank:
    sampling = dataclasses.asdict(config.sampling)
    names = ("temperature", "top_k", "top_p", "min_p")
    sampler = {name: float(sampling[name]) for name in names}
    sampler |= {
        "response_tokens": float(config.data.response_tokens),
        "seed": float(config.seed),
    }
    untried = [
        Trace(problem.problem, problem.answers, tuple(prompt), (), 0, 0.0)
        for problem, prompt in zip(asked.problems, asked.prompts, strict=True)
    ]
    name = pathlib.Path(config.model.path).expanduser().resolve().name
    tokenizer = traces.fingerprint(vocabulary.tokenizer)
    return Bank(name, model_digest(config.model.path), tokenizer, sampler, untried, effort.accept)


def _identity(
    config: Config, effort: Effort, asked: ProblemSet, bank: Bank, scorer: Scorer
) -> dict[str, Any]:
    """What must be the same for a collection to be continued."""
    content = json.dumps([t[:3] for t in bank.traces])
    return {
        "model": bank.weights,
        "tokenizer": bank.tokenizer,
        **bank.sampler,
        "reward": scorer.identity(),
        "answer": asked.form,
        "accept": effort.accept,
        "dtype": config.model.compute_dtype or config.model.dtype,
        "problems and prompts": hashlib.sha256(content.encode()).hexdigest()[:16],
    }


def _open(effort: Effort, bank: Bank) -> list[int]:
    """Indices of the problems that are unsolved and under the cap, fewest attempts first."""
    open_ = [
        i for i, t in enumerate(bank.traces) if not t.response and t.attempts < effort.attempts
    ]
    return sorted(open_, key=lambda i: (bank.traces[i].attempts, i))


def _collect(
    effort: Effort, drawing: Drawing, bank: Bank, out: pathlib.Path, console: Console
) -> Bank:
    begin, already, tokens, batch = time.monotonic(), bank.attempts, 0, 0
    while indices := _open(effort, bank):
        made, new_tokens = _batch(effort, drawing, bank, indices)
        bank = bank._replace(traces=[made.get(i, t) for i, t in enumerate(bank.traces)])
        traces.save(bank, out)
        batch, tokens = batch + 1, tokens + new_tokens
        spent = max(time.monotonic() - begin, 1e-9)
        left = sum(effort.attempts - bank.traces[i].attempts for i in _open(effort, bank))
        pace = spent / (bank.attempts - already)
        console.print(
            f"batch {count(batch)} | solved {bank.solved:,}/{len(bank.traces):,} | responses "
            f"{count(bank.attempts)} | {count(tokens / spent)} tokens/s | {duration(spent)}, "
            f"left at most {duration(pace * left)}"
        )
    return bank


def _batch(
    effort: Effort, d: Drawing, bank: Bank, indices: list[int]
) -> tuple[dict[int, Trace], int]:
    """One batch over the first of `indices`: their new traces, and the tokens decoded.

    With fewer problems than the batch has room for, each comes several times.
    """
    slots, group = d.task.prompts, d.task.group_size
    place_Q = [indices[q % min(len(indices), slots)] for q in range(slots)]
    drawn = dict.fromkeys(place_Q, 0)
    attempt_B = np.zeros(d.task.rows, np.int32)
    for q, place in enumerate(place_Q):
        first = bank.traces[place].attempts + drawn[place]
        attempt_B[q * group : (q + 1) * group] = first + np.arange(group)
        drawn[place] += group
    place_B = np.repeat(np.array(place_Q, np.int32), group)
    active_B = attempt_B < effort.attempts
    prompts = [d.asked.prompts[i] for i in place_Q]
    tokens_QP, length_Q = prompt_batch(prompts, slots, d.task.prompt_slots, d.task.pad_id)
    ids_B = np.where(active_B, (place_B << ATTEMPT_BITS) | attempt_B, 0).astype(np.int32)
    sampled = d.sampler(d.params, Prompts(tokens_QP, length_Q, ids_B, active_B), d.key)
    length_B, ended_B = jax.device_get((sampled.response_len_B, sampled.ended_B))
    responses = response_ids(sampled, d.task.rows)
    right_B = _right(d, place_B, responses, ended_B)
    made = {}
    for place, before in ((i, bank.traces[i]) for i in drawn):
        own_B = (place_B == place) & active_B
        spent = decode_flops(
            d.sizes,
            place_Q.count(place),
            int(own_B.sum()),
            d.task.prompt_slots,
            length_B[own_B].sum(),
        )
        right = np.flatnonzero(own_B & right_B)
        response = responses[right[np.argmin(attempt_B[right])]] if right.size else []
        made[place] = before._replace(
            response=tuple(response),
            attempts=before.attempts + int(own_B.sum()),
            flops=before.flops + float(spent),
        )
    return made, int(length_B[active_B].sum())


def _right(
    d: Drawing, place_B: np.ndarray, responses: list[list[int]], ended_B: np.ndarray
) -> np.ndarray:
    """Which responses are correct by the reward, ended, and accepted."""
    problems = [d.asked.problems[i] for i in place_B]
    prompts, forms = [d.asked.prompts[i] for i in place_B], [d.asked.form] * len(place_B)
    said = score_responses(
        d.scorer, d.vocabulary, problems, prompts, forms, responses, ended_B.tolist()
    )
    # An empty slot never ends.
    right_B = np.array([bool(score.correct) for _, score in said]) & ended_B
    if d.accept is not None:
        for b in np.flatnonzero(right_B):
            right_B[b] = d.accept(problems[b].problem, said[b][0].completion)
    return right_B


def _plan(
    config: Config, effort: Effort, asked: ProblemSet, vocabulary: Vocabulary, scorer: Scorer
) -> dict[str, object]:
    heat, response = config.sampling.temperature, config.data.response_tokens
    lines: dict[str, object] = {
        "model": config.model.path,
        "problems": len(asked.problems),
        "attempts a problem, at most": effort.attempts,
        "batch": f"{effort.batch_size} responses, {effort.group_size} a prompt",
        "decoding": f"temperature {heat:g}, {response} tokens",
        "reward": scorer.text,
    }
    if effort.accept:
        lines["accepted by, beside the reward"] = effort.accept
    if asked.dropped:
        dropped = f"{asked.dropped:,}, prompts over {config.data.prompt_tokens} tokens"
        lines["problems dropped"] = dropped
    return lines | tasks.plan([asked], vocabulary.tokenizer)


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
