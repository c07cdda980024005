"""Rollouts: problems -> sampled responses -> verdicts -> rows to learn from.

The host's three jobs in a step are here: prompts in, grading, and what is written of both.
"""

import time
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from remix_jax import processes, rewards, types
from remix_jax.data.prompts import pad_left
from remix_jax.models.huggingface import Vocabulary
from remix_jax.models.sampling import Sampled
from remix_jax.rewards import Item, Score, Scorer
from remix_jax.rollout.draws import Draw
from remix_jax.rollout.prefixed import Prefix
from remix_jax.sharding import put


class Rollouts(NamedTuple):
    """The fresh rows of a step, and what the host knows of them."""

    rows: types.FreshRows | None  # None where nothing is sampled
    metrics: dict[str, float]
    samples: list[dict]
    errors: dict[str, str]  # the first error line of each reward function that failed on a row
    expert: types.FreshRows | None = None  # rows of the same groups that an expert wrote


def prompt_batch(prompts: list[list[int]], slots: int, width: int, pad_id: int):
    """(tokens [slots, P], lengths [slots]): the prompts, the last one repeated in empty slots."""
    filled = prompts + [prompts[-1]] * (slots - len(prompts))
    return pad_left(filled, width, pad_id)


def response_ids(sampled: Sampled, rows: int) -> list[list[int]]:
    """The token ids of the first `rows` responses, end token included."""
    tokens_BS, length_B = jax.device_get((sampled.tokens_BS, sampled.response_len_B))
    first = tokens_BS.shape[1] - sampled.behav_logp_BT.shape[1]
    return [tokens_BS[b, first : first + length_B[b]].tolist() for b in range(rows)]


def texts_of(vocabulary: Vocabulary, ids: list[list[int]]) -> list[str]:
    """The text of each response without the end and padding tokens behind it.

    Other special tokens stay: with some tokenizers the marks of thinking are such.
    """
    behind = {*vocabulary.eos_ids, vocabulary.pad_id}
    trimmed = [row[: len(row) - _count_at_end(row, behind)] for row in ids]
    return vocabulary.tokenizer.batch_decode(trimmed)


def _count_at_end(row: list[int], tokens: set[int]) -> int:
    return next((i for i, token in enumerate(reversed(row)) if token not in tokens), len(row))


def grade_rollouts(
    sampled: Sampled,
    draw: Draw,
    vocabulary: Vocabulary,
    group_size: int,
    first_group: int,
    scorer: Scorer,
    form: str,
    mesh: Mesh | None = None,
    shown: int | None = None,
) -> Rollouts:
    """Scores the responses and makes rows of them.

    Where there is a prefix, prefix and response are scored as one text; the tokens that a reward
    function sees are the response's own.

    Args:
      sampled: group_size responses a problem, and perhaps empty slots behind them.
      draw: the groups that were really sampled.
      first_group: number of the first group in the run.
      form: of the training set's answers (`rewards.FORMS`).
      mesh: of the learning phase.
      shown: rows, from the first, that are in `Rollouts.samples`; None: all.
    """
    n = len(draw.problems) * group_size
    begin = time.perf_counter()
    ids = response_ids(sampled, n)
    length_B, ended_B = jax.device_get((sampled.response_len_B, sampled.ended_B))
    items = _items(vocabulary, draw, ids, ended_B.tolist(), group_size, form)
    scores = score(scorer, items)
    seconds = time.perf_counter() - begin
    reward_B = np.zeros(length_B.shape[0], np.float32)
    reward_B[:n] = [each.reward for each in scores]
    prefix_B = [prefix for prefix in draw.prefixes for _ in range(group_size)]
    metrics = (
        rewards.metrics(scores)
        | {
            "reward": float(reward_B[:n].mean()),  # in float32, as the learner has them
            "truncated_rate": float(1 - ended_B[:n].mean()),
            "response_length": float(length_B[:n].mean()),
            "new_tokens": int(length_B[:n].sum()),
            "seconds/grade": seconds,
        }
    )
    metrics |= prefix_metrics(reward_B[:n], prefix_B)
    if group_size > 1:
        spread_Q = np.ptp(reward_B[:n].reshape(-1, group_size), axis=1)
        metrics["zero_variance"] = float((spread_Q == 0).mean())
    texts = texts_of(vocabulary, ids[:shown])
    samples = [
        _sample(vocabulary, *each) for each in zip(items, scores, texts, prefix_B, strict=False)
    ]
    errors = {name: line for each in reversed(scores) for name, line in each.errors.items()}
    success_B = np.zeros(reward_B.shape, bool)
    success_B[:n] = [each.reward > 0 if each.correct is None else each.correct for each in scores]
    rows = _rows(sampled, reward_B, success_B, n, group_size, first_group, mesh)
    return Rollouts(rows, metrics, samples, errors)


def score(scorer: Scorer, items: list[Item]) -> list[Score]:
    """The score of each item, of which every process computes a part."""
    found = processes.divided(len(items), lambda part: scorer(items[part]))
    return [Score(*each) for each in found]


def _items(
    vocabulary: Vocabulary,
    draw: Draw,
    ids: list[list[int]],
    ended: list[bool],
    group_size: int,
    form: str,
) -> list[Item]:
    """The rows as the scorer takes them. Prefix and response are decoded together: a letter may be
    split over both."""
    given = [prefix.ids if prefix else () for prefix in draw.prefixes]
    bare = [p[: len(p) - len(g)] for p, g in zip(draw.prompts, given, strict=True)]
    prompts = vocabulary.tokenizer.batch_decode(bare)
    texts = texts_of(vocabulary, [[*given[b // group_size], *own] for b, own in enumerate(ids)])
    return [
        Item(draw.problems[q], prompts[q], texts[b], ids[b], ended[b], form)
        for b, q in enumerate(np.repeat(np.arange(len(prompts)), group_size).tolist())
    ]


def _sample(
    vocabulary: Vocabulary, item: Item, found: Score, response: str, prefix: Prefix | None
) -> dict[str, Any]:
    """A line of samples.jsonl."""
    line = {
        "problem_id": item.problem.id,
        "problem": item.problem.problem,
        "prompt": item.prompt,
        "response": response,
        "reward": found.reward,
        "parts": found.parts,
        "correct": found.correct,
        "answer": found.answer,
        "answers": item.problem.answers,
        "verdict": found.reason,
        "response_length": len(item.completion_ids),
        "truncated": not item.ended,
    }
    line |= {"errors": found.errors} if found.errors else {}
    return line | ({} if prefix is None else {"prefix": vocabulary.tokenizer.decode(prefix.ids)})


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


def _rows(
    sampled: Sampled,
    reward_B: np.ndarray,
    success_B: np.ndarray,
    n: int,
    group_size: int,
    first_group: int,
    mesh: Mesh | None,
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
        success_B=put(success_B, mesh),
        group_B=put((first_group + row_B // group_size).astype(np.int32), mesh),
        valid_B=put(row_B < n, mesh),
    )
