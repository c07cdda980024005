"""Rollouts: problems -> sampled responses -> verdicts -> rows to learn from.

The host's three jobs in a step are here: prompts in, grading, and what is written of both; beside
them the rows of an expert, verified traces of a bank in place of what the policy samples.
"""

import itertools
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from remix_jax import processes, rewards, types
from remix_jax.config import Config
from remix_jax.data import traces
from remix_jax.data.problems import Problem
from remix_jax.data.tasks import ProblemSet
from remix_jax.errors import InputError
from remix_jax.models.hf_tokenizer import Vocabulary
from remix_jax.models.sampling import Sampled
from remix_jax.rewards import Item, Score, Scorer
from remix_jax.rollout.draws import Draw, Prefix
from remix_jax.schedule import Stage
from remix_jax.sharding import put

Traces = Mapping[tuple, tuple[Sequence[int], float]]
"""By (text, answers) of a problem: the tokens of a verified response, and its reward in the run."""


class Rollouts(NamedTuple):
    """The fresh rows of a step, and what the host knows of them."""

    rows: types.FreshRows | None  # None where nothing is sampled
    metrics: dict[str, float]
    samples: list[dict]
    errors: dict[str, str]  # the first error line of each reward function that failed on a row
    expert: types.FreshRows | None = None  # rows of the same groups that an expert wrote


def prompt_batch(
    prompts: list[list[int]], slots: int, width: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray]:
    """tokens_QP (int32, P = `width`, filled on the left) and prompt_len_Q of Q = `slots` prompts.

    The last prompt is repeated in empty slots. Raises ValueError for an empty one, or a longer one
    than `width`.
    """
    filled = prompts + [prompts[-1]] * (slots - len(prompts))
    tokens_QP = np.full((slots, width), pad_id, np.int32)
    for row, prompt in zip(tokens_QP, filled, strict=True):
        if not 0 < len(prompt) <= width:
            raise ValueError(f"a prompt of {len(prompt)} tokens does not fit a width of {width}")
        row[width - len(prompt) :] = prompt
    return tokens_QP, np.array([len(prompt) for prompt in filled], np.int32)


def response_ids(sampled: Sampled, rows: int) -> list[list[int]]:
    """The token ids of the first `rows` responses, end token included."""
    tokens_BS, length_B = jax.device_get((sampled.tokens_BS, sampled.response_len_B))
    first = tokens_BS.shape[1] - sampled.behav_logp_BT.shape[1]
    return [tokens_BS[b, first : first + length_B[b]].tolist() for b in range(rows)]


def texts_of(vocabulary: Vocabulary, ids: Sequence[Sequence[int]]) -> list[str]:
    """The text of each response without the end and padding tokens behind it.

    Other special tokens stay: with some tokenizers the marks of thinking are such.
    """
    behind = {*vocabulary.eos_ids, vocabulary.pad_id}
    trimmed = []
    for row in ids:
        extra = sum(1 for _ in itertools.takewhile(behind.__contains__, reversed(row)))
        trimmed.append(list(row[: len(row) - extra]))
    return vocabulary.tokenizer.batch_decode(trimmed)


def score_responses(
    scorer: Scorer,
    vocabulary: Vocabulary,
    problems: Sequence[Problem],
    prompts: Sequence[Sequence[int]],
    forms: Sequence[str],
    ids: Sequence[Sequence[int]],
    ended: Sequence[bool],
    given: Sequence[Sequence[int]] | None = None,
) -> list[tuple[Item, Score]]:
    """Responses as reward functions see them, and their scores; processes score a part each.

    Args:
      problems, prompts, forms: of each group; rows are divided among them evenly, in order.
      ids: of each response; these alone are the item's, whatever was given.
      ended: of each response, whether an end token came within the limit.
      given: of each group, what a prefix began its responses with. Both are decoded together and
        scored as one text: a letter may be split over them.
    """
    size = len(ids) // len(problems)
    seen = vocabulary.tokenizer.batch_decode(prompts)
    whole = [[*given[b // size], *own] for b, own in enumerate(ids)] if given else ids
    items = [
        Item(problems[b // size], seen[b // size], text, ids[b], ended[b], forms[b // size])
        for b, text in enumerate(texts_of(vocabulary, whole))
    ]
    scores = processes.divided(len(items), lambda part: scorer(items[part]))
    return [(item, Score(*score)) for item, score in zip(items, scores, strict=True)]


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

    Args:
      sampled: group_size responses a problem, and perhaps empty slots behind them.
      draw: the groups that were really sampled.
      first_group: number of the first group in the run.
      form: of the training set's answers (`rewards.FORMS`).
      mesh: of the learning phase.
      shown: rows, from the first, that are in `Rollouts.samples`; None: all.
    """
    begin = time.perf_counter()
    problems, n = draw.problems, len(draw.problems) * group_size
    lengths, ended = jax.device_get((sampled.response_len_B, sampled.ended_B))
    ids, length_B, ended_B = response_ids(sampled, n), lengths[:n], ended[:n]
    given = [prefix.ids if prefix else () for prefix in draw.prefixes]
    bare = [p[: len(p) - len(g)] for p, g in zip(draw.prompts, given, strict=True)]
    forms = [form] * len(problems)
    said = score_responses(scorer, vocabulary, problems, bare, forms, ids, ended_B.tolist(), given)
    seconds = time.perf_counter() - begin
    scores = [score for _, score in said]
    reward_B = np.array([score.reward for score in scores], np.float32)
    prefix_B = [prefix for prefix in draw.prefixes for _ in range(group_size)]
    metrics = rewards.metrics(scores) | {
        "reward": float(reward_B.mean()),  # in float32, as the learner has them
        "truncated_rate": float(1 - ended_B.mean()),
        "response_length": float(length_B.mean()),
        "new_tokens": int(length_B.sum()),
        "seconds/grade": seconds,
    }
    metrics |= prefix_metrics(reward_B, prefix_B)
    if group_size > 1:
        spread_Q = np.ptp(reward_B.reshape(-1, group_size), axis=1)
        metrics["zero_variance"] = float((spread_Q == 0).mean())
    shown_B = zip(said[:shown], prefix_B, strict=False)
    samples = [_sample(vocabulary, *each, prefix) for each, prefix in shown_B]
    errors = {name: line for each in reversed(scores) for name, line in each.errors.items()}
    success = [each.reward > 0 if each.correct is None else each.correct for each in scores]
    learned = sampled._asdict()
    del learned["ended_B"], learned["steps"]
    rows = _rows(learned, reward_B, success, group_size, first_group, mesh)
    return Rollouts(rows, metrics, samples, errors)


def _sample(
    vocabulary: Vocabulary, item: Item, score: Score, prefix: Prefix | None
) -> dict[str, Any]:
    """A line of samples.jsonl."""
    line = {
        "problem_id": item.problem.id,
        "problem": item.problem.problem,
        "prompt": item.prompt,
        "response": texts_of(vocabulary, [item.completion_ids])[0] if prefix else item.completion,
        "reward": score.reward,
        "parts": score.parts,
        "correct": score.correct,
        "answer": score.answer,
        "answers": item.problem.answers,
        "verdict": score.reason,
        "response_length": len(item.completion_ids),
        "truncated": not item.ended,
    }
    line |= {"errors": score.errors} if score.errors else {}
    return line | ({"prefix": vocabulary.tokenizer.decode(prefix.ids)} if prefix else {})


def prefix_metrics(reward_B: np.ndarray, prefixes: list[Prefix | None]) -> dict[str, float]:
    """Mean reward of prefixed and of unprefixed rows, and by tenths of the trace given away.

    Names: reward/prefixed, reward/unprefixed, reward/prefix_0.4 for prefixes of 40 to 50 % of
    their trace, and so on; nothing where no row has a prefix.
    """
    if not any(prefixes):
        return {}
    by_name: dict[str, list[float]] = {}
    for reward, prefix in zip(reward_B.tolist(), prefixes, strict=True):
        tenth = [f"prefix_{int(10 * prefix.share) / 10:.1f}"] if prefix else []
        for name in ("prefixed" if prefix else "unprefixed", *tenth):
            by_name.setdefault(f"reward/{name}", []).append(reward)
    return {name: sum(found) / len(found) for name, found in sorted(by_name.items())}


def _rows(
    responses: Mapping[str, Any],
    reward: Sequence[float] | np.ndarray,
    success: Sequence[bool],
    group_size: int,
    first_group: int,
    mesh: Mesh | None,
) -> types.FreshRows:
    """Rows of the graded responses and of the empty slots behind them (NumPy: no compilation)."""
    n, row_B = len(reward), np.arange(len(responses["response_len_B"]), dtype=np.int32)
    graded = {
        "reward_B": np.pad(np.asarray(reward, np.float32), (0, len(row_B) - n)),
        "success_B": np.pad(np.asarray(success, bool), (0, len(row_B) - n)),
        "group_B": (first_group + row_B // group_size).astype(np.int32),
        "valid_B": row_B < n,
    }
    on_devices = {name: put(x, mesh) for name, x in graded.items()}
    return types.FreshRows(**responses, **on_devices)


def with_traces(
    train: ProblemSet, config: Config, vocabulary: Vocabulary, scorer: Scorer
) -> tuple[ProblemSet, Traces]:
    """The training problems that `expert.bank` has a trace of, and their traces, scored.

    A trace longer than data.response_tokens does not count. Without a bank: all problems, none.

    Raises:
      InputError: no usable bank, or none of its traces is of a training problem.
    """
    bank, limit = config.expert.bank, config.data.response_tokens
    if not bank:
        return train, {}
    held = traces.load(bank, traces.fingerprint(vocabulary.tokenizer))
    found = zip(train.problems, train.prompts, traces.traces_of(held, train.problems), strict=True)
    kept = [(p, ids, t.response) for p, ids, t in found if t and len(t.response) <= limit]
    if not kept:
        raise InputError(
            f"config.expert.bank = {bank!r}: has no trace of up to {limit} tokens for any of the "
            f"{len(train.problems):,} problems of {train.name}"
        )
    problems, prompts, responses = (list(each) for each in zip(*kept, strict=True))
    forms, ended = [train.form] * len(kept), [True] * len(kept)
    said = score_responses(scorer, vocabulary, problems, prompts, forms, responses, ended)
    keys = [(problem.problem, problem.answers) for problem in problems]
    written = zip(responses, (score.reward for _, score in said), strict=True)
    train = train._replace(problems=problems, prompts=prompts)
    return train, dict(zip(keys, written, strict=True))


def expert_rows(
    draw: Draw,
    bank: Traces,
    stage: Stage,
    first_group: int,
    config: Config,
    pad_id: int,
    mesh: Mesh | None = None,
) -> types.FreshRows:
    """A row a group: the trace of its problem; empty rows up to the stage's groups.

    They have no log-probs of a sampler: NaN stands in their place, so that whatever reads them by
    mistake is not finite and stops the run; the learner marks them (`Rows.expert_B`).

    Args:
      draw: the groups of the step.
      first_group: number of the first one in the run.
    """
    slots, length = stage.fresh_groups, config.data.response_tokens
    written = [bank[p.problem, p.answers] for p in draw.problems]
    prompt_BP, prompt_len_B = prompt_batch(draw.prompts, slots, config.prompt_slots, pad_id)
    response_BT = np.full((slots, length), pad_id, np.int32)
    mask_BT = np.zeros((slots, length), np.float32)
    for b, (ids, _) in enumerate(written):
        response_BT[b, : len(ids)], mask_BT[b, : len(ids)] = ids, 1
    unknown_BT = np.full_like(mask_BT, np.nan)
    responses = {
        "tokens_BS": np.concatenate([prompt_BP, response_BT], axis=1),
        "prompt_len_B": prompt_len_B,
        "response_len_B": mask_BT.sum(axis=1, dtype=np.int32),
        "loss_mask_BT": mask_BT,
        "behav_logp_BT": unknown_BT,
        "sampled_logp_BT": unknown_BT,
    }
    placed = {name: put(x, mesh) for name, x in responses.items()}
    earned = [reward for _, reward in written]
    return _rows(placed, earned, [True] * len(written), 1, first_group, mesh)
