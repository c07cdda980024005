"""Rollouts: problems -> sampled responses -> verdicts -> rows to learn from.

The host's three jobs in a step are here: prompts in, grading, and what is written of both.
"""

import time
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from remix_jax import processes, types
from remix_jax.data.problems import Problem
from remix_jax.data.prompts import pad_left
from remix_jax.grading import verdicts as grading
from remix_jax.grading.pool import GraderPool
from remix_jax.models import huggingface
from remix_jax.models.sampling import Sampled
from remix_jax.sharding import put


class Vocabulary(NamedTuple):
    """A tokenizer and what of it the programs need as constants."""

    tokenizer: Any  # transformers.PreTrainedTokenizerFast
    eos_ids: tuple[int, ...]
    pad_id: int


class Prefix(NamedTuple):
    """The beginning of a trace that solved a problem; the model goes on from it."""

    place: int  # of the problem in the training set
    ids: tuple[int, ...]
    share: float  # of the trace's tokens


class Draw(NamedTuple):
    """The groups of a step: problem, prompt (with its prefix, if any), prefix."""

    problems: list[Problem]
    prompts: list[list[int]]
    prefixes: list[Prefix | None]


class Rollouts(NamedTuple):
    """The fresh rows of a step, and what the host knows of them."""

    rows: types.FreshRows | None  # None where nothing is sampled
    metrics: dict[str, float]
    samples: list[dict]
    expert: types.FreshRows | None = None  # rows of the same groups that an expert wrote


def load_vocabulary(directory: str) -> Vocabulary:
    """The tokenizer of a model directory with its end and padding ids."""
    tokenizer = huggingface.load_tokenizer(directory)
    eos_ids = huggingface.eos_ids(directory, tokenizer)
    return Vocabulary(tokenizer, eos_ids, huggingface.pad_id(tokenizer))


def prompt_batch(prompts: list[list[int]], slots: int, width: int, pad_id: int):
    """(tokens [slots, P], lengths [slots]): the prompts, the last one repeated in empty slots."""
    filled = prompts + [prompts[-1]] * (slots - len(prompts))
    return pad_left(filled, width, pad_id)


def decode(vocabulary: Vocabulary, sampled: Sampled, rows: int) -> list[str]:
    """The text of the first `rows` responses, special tokens left out."""
    return texts_of(vocabulary, response_ids(sampled, rows))


def response_ids(sampled: Sampled, rows: int) -> list[list[int]]:
    """The token ids of the first `rows` responses, end token included."""
    tokens_BS, length_B = jax.device_get((sampled.tokens_BS, sampled.response_len_B))
    first = tokens_BS.shape[1] - sampled.behav_logp_BT.shape[1]
    return [tokens_BS[b, first : first + length_B[b]].tolist() for b in range(rows)]


def texts_of(vocabulary: Vocabulary, ids: list[list[int]]) -> list[str]:
    """The text of each response, special tokens left out."""
    return vocabulary.tokenizer.batch_decode(ids, skip_special_tokens=True)


def grade_rollouts(
    sampled: Sampled,
    draw: Draw,
    vocabulary: Vocabulary,
    group_size: int,
    first_group: int,
    pool: GraderPool,
    mesh: Mesh | None = None,
    shown: int | None = None,
) -> Rollouts:
    """Grades the responses and makes rows of them.

    Where there is a prefix the answer is looked for in prefix and response, as one text.

    Args:
      sampled: group_size responses a problem, and perhaps empty slots behind them.
      draw: the groups that were really sampled.
      first_group: number of the first group in the run.
      pool: compares the answers that need algebra.
      mesh: of the learning phase.
      shown: rows, from the first, that `Rollouts.samples` tells of; None: all.
    """
    n = len(draw.problems) * group_size
    begin = time.perf_counter()
    ids = response_ids(sampled, n)
    of_row = _Asked(
        [problem for problem in draw.problems for _ in range(group_size)],
        [prefix for prefix in draw.prefixes for _ in range(group_size)],
    )
    verdicts, formatted = _verdicts(vocabulary, ids, of_row, pool)
    seconds = time.perf_counter() - begin
    reward_B = np.zeros(sampled.response_len_B.shape[0], np.float32)
    reward_B[:n] = [verdict.correct for verdict in verdicts]
    length_B, ended_B = jax.device_get((sampled.response_len_B, sampled.ended_B))
    metrics = {
        "reward": float(reward_B[:n].mean()),
        "accuracy": float(np.mean([verdict.correct for verdict in verdicts])),
        "format_rate": float(np.mean(formatted)),
        "grader_timeout_rate": grading.timeout_rate(verdicts),
        "truncated_rate": float(1 - ended_B[:n].mean()),
        "response_length": float(length_B[:n].mean()),
        "new_tokens": int(length_B[:n].sum()),
        "seconds/grade": seconds,
    } | prefix_metrics(reward_B[:n], of_row.prefixes)
    samples = _samples(vocabulary, ids[:shown], of_row, verdicts, ended_B)
    rows = _rows(sampled, reward_B, n, group_size, first_group, mesh)
    return Rollouts(rows, metrics, samples)


class _Asked(NamedTuple):
    """What each row answers."""

    problems: list[Problem]
    prefixes: list[Prefix | None]


def _verdicts(
    vocabulary: Vocabulary, ids: list[list[int]], of_row: _Asked, pool: GraderPool
) -> tuple[list[grading.Verdict], list[bool]]:
    """The verdict on each row, and whether its form is right; processes grade a part each."""

    def graded(part: slice) -> list[tuple[grading.Verdict, bool]]:
        texts = texts_of(vocabulary, ids[part])
        whole = _with_prefixes(vocabulary, texts, ids[part], of_row.prefixes[part])
        answers = [problem.answers for problem in of_row.problems[part]]
        verdicts = grading.grade_many(whole, answers, pool)
        return [(v, grading.format_ok(t)) for v, t in zip(verdicts, whole, strict=True)]

    results = processes.divided(len(ids), graded)
    return [grading.Verdict(*verdict) for verdict, _ in results], [ok for _, ok in results]


def _samples(
    vocabulary: Vocabulary, ids: list[list[int]], of_row: _Asked, verdicts, ended_B
) -> list[dict]:
    """The lines of samples.jsonl about the rows of `ids`, the first ones."""
    return [
        {
            "problem_id": of_row.problems[b].id,
            "prompt": of_row.problems[b].problem,
            "response": text,
            "reward": float(verdicts[b].correct),
            "answer": verdicts[b].answer,
            "verdict": verdicts[b].reason,
            "response_length": len(ids[b]),
            "truncated": not bool(ended_B[b]),
        }
        | _prefix_text(vocabulary, of_row.prefixes[b])
        for b, text in enumerate(texts_of(vocabulary, ids) if ids else [])
    ]


def prefix_metrics(reward_B: np.ndarray, prefixes: list[Prefix | None]) -> dict[str, float]:
    """Mean reward of prefixed and of unprefixed rows, and by tenths of the trace given away.

    Names: reward/prefixed, reward/unprefixed, reward/prefix_0.4 for prefixes of 40 to 50 % of
    their trace, and so on; nothing where no row has a prefix.
    """
    if not any(prefixes):
        return {}
    by_name: dict[str, list[float]] = {}
    for reward, prefix in zip(reward_B.tolist(), prefixes, strict=True):
        names = ["unprefixed"]
        if prefix is not None:
            names = ["prefixed", f"prefix_{int(10 * prefix.share) / 10:.1f}"]
        for name in names:
            by_name.setdefault(f"reward/{name}", []).append(reward)
    return {name: sum(rewards) / len(rewards) for name, rewards in sorted(by_name.items())}


def _with_prefixes(vocabulary: Vocabulary, texts, ids, prefixes) -> list[str]:
    """Prefix and response as one text; decoded together, for a letter may be split over both."""
    joint = [[*p.ids, *own] for p, own in zip(prefixes, ids, strict=True) if p is not None]
    decoded = iter(texts_of(vocabulary, joint) if joint else [])
    return [text if p is None else next(decoded) for p, text in zip(prefixes, texts, strict=True)]


def _prefix_text(vocabulary: Vocabulary, prefix: Prefix | None) -> dict[str, str]:
    return {} if prefix is None else {"prefix": vocabulary.tokenizer.decode(prefix.ids)}


def _rows(
    sampled: Sampled, reward_B, n: int, group_size: int, first_group: int, mesh: Mesh | None
) -> types.FreshRows:
    """Rows of the graded responses (NumPy: no compilation)."""
    row_B = np.arange(reward_B.shape[0], dtype=np.int32)
    return types.FreshRows(
        tokens_BS=sampled.tokens_BS,
        prompt_len_B=sampled.prompt_len_B,
        response_len_B=sampled.response_len_B,
        loss_mask_BT=sampled.loss_mask_BT,
        behav_logp_BT=sampled.behav_logp_BT,
        sampled_logp_BT=sampled.sampled_logp_BT,
        reward_B=put(reward_B, mesh),
        group_B=put((first_group + row_B // group_size).astype(np.int32), mesh),
        valid_B=put(row_B < n, mesh),
    )
