"""The host's part of a step: prompts in, responses graded, rows to learn from and samples to read
out; beside them the rows of an expert, verified traces in place of what the policy samples.
"""

import functools
import math
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
from remix_jax.learner.step import SHOWN_REPLAYED
from remix_jax.models.hf_tokenizer import Vocabulary
from remix_jax.models.sampling import Begun, Sampled
from remix_jax.rewards import Item, Score, Scorer
from remix_jax.rollout.draws import Draw, Prefix
from remix_jax.schedule import Stage
from remix_jax.sharding import put

_SHOWN_TOKENS = 8192  # of a step, with numbers of their own in samples.jsonl
_OF_TOKENS = ("ratio", "entropy", "advantage", "logp")
_LETTER_TOKENS = 4  # a letter of UTF-8 has no more bytes
Traces = Mapping[tuple, tuple[Sequence[int], float]]
"""By (text, answers) of a problem: the tokens of a verified response, and its reward in the run."""


class Rollouts(NamedTuple):
    """The fresh rows of a step, and what the host knows of them."""

    rows: types.FreshRows | None  # None where nothing is sampled
    metrics: dict[str, float]
    samples: list[dict]
    shown: list[int]  # which rows the samples are of
    errors: dict[str, str]  # the first error line of each reward function that failed on a row
    expert: types.FreshRows | None = None  # rows of the same groups that an expert wrote
    in_flight: tuple[Begun, jax.Array] | None = None  # rows that the next step goes on with


def prompt_batch(
    prompts: list[list[int]], slots: int, width: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray]:
    """tokens_QP (int32, P = `width`, filled on the left) and prompt_len_Q of Q = `slots` prompts.

    The last one is repeated in empty slots. ValueError for an empty one, or one beyond `width`.
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
    trimmed = [list(row) for row in ids]
    for row in trimmed:
        while row and row[-1] in behind:
            row.pop()
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
      ids, ended: of each response; whether an end token came within the limit.
      given: of each group, what a prefix began its responses with. Both are decoded together and
        scored as one text, for a letter may be split over them; `ids` alone are the item's.
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
    scorer: Scorer,
    mesh: Mesh | None = None,
    shown: int | None = None,
    lag_B: np.ndarray | None = None,
    mask_truncated: bool = False,
) -> Rollouts:
    """Scores the responses and makes rows of them.

    Args:
      sampled: group_size responses a problem, and perhaps empty slots behind them.
      mesh: of the learning phase.
      lag_B: of each response, steps since its first token was drawn; None: all in this step.
      shown: how many rows are in `Rollouts.samples`: the best and the worst, and then of every
        group; None: all in order.
      mask_truncated: no loss counts a token of a response that met the limit (DAPO's overlong
        filtering, arXiv 2503.14476, section 3.4).
    """
    begin = time.perf_counter()
    problems, n = draw.problems, len(draw.problems) * group_size
    ids, ended_B = response_ids(sampled, n), jax.device_get(sampled.ended_B)[:n]
    given = [prefix.ids if prefix else () for prefix in draw.prefixes]
    bare = [p[: len(p) - len(g)] for p, g in zip(draw.prompts, given, strict=True)]
    forms = [draw.form] * len(problems)
    said = score_responses(scorer, vocabulary, problems, bare, forms, ids, ended_B.tolist(), given)
    seconds = time.perf_counter() - begin
    scores = [score for _, score in said]
    reward_B = np.array([score.reward for score in scores], np.float32)
    prefix_B = [prefix for prefix in draw.prefixes for _ in range(group_size)]
    # PPO compares the rewards of all rows: they are one group.
    spread_Q = np.ptp(reward_B.reshape(-1, group_size if group_size > 1 else n), axis=1)
    metrics = rewards.metrics(scores) | {
        "reward": float(reward_B.mean()),  # in float32, as the learner has them
        "zero_variance": float((spread_Q == 0).mean()),
        "truncated_rate": float(1 - ended_B.mean()),
        "response_length": sum(map(len, ids)) / n,
        "new_tokens": sum(map(len, ids)),
        "seconds/grade": seconds,
        **prefix_metrics(reward_B, prefix_B),
    }
    rows = list(range(n))
    if shown is not None:
        ends = int(reward_B.argmax()), int(reward_B.argmin())
        spread = sorted(rows, key=lambda b: (b % group_size, b // group_size))
        rows = list(dict.fromkeys([*ends, *spread]))[:shown]
    samples = [sample(vocabulary, *said[b], prefix_B[b]) for b in rows]
    errors = {name: line for each in reversed(scores) for name, line in each.errors.items()}
    if mask_truncated:
        mask_BT, whole_B = jax.device_get((sampled.loss_mask_BT, sampled.ended_B))
        sampled = sampled._replace(loss_mask_BT=mask_BT * whole_B[:, None])
    success = [each.reward > 0 if each.correct is None else each.correct for each in scores]
    fresh = _rows(sampled, reward_B, success, group_size, draw.first, mesh, lag_B)
    return Rollouts(fresh, metrics, samples, rows, errors)


def decoding_metrics(sampled: Sampled, tokens: float) -> dict[str, float]:
    """How well the slots were used that `tokens` tokens were drawn in."""
    steps, slot_steps, drained = map(int, jax.device_get(sampled[-3:]))
    metrics = {"tokens_per_decode_step": tokens / max(steps, 1)}
    if slot_steps:
        metrics |= {"decode_use": tokens / slot_steps, "decode_drain": drained / slot_steps}
    return metrics


def sample(
    vocabulary: Vocabulary, item: Item, score: Score, prefix: Prefix | None = None
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


def with_tokens(
    samples: list[dict[str, Any]],
    shown: Mapping[str, Any],
    train: ProblemSet,
    vocabulary: Vocabulary,
) -> list[dict[str, Any]]:
    """The samples of a step with the numbers of their tokens, and replayed rows behind them.

    As many tokens as `_SHOWN_TOKENS` allows: of the first two samples, the replayed rows, the rest.

    Args:
      shown: what `learner.step.learn` says of the samples' rows, and then of replayed ones.
    """
    rows = {name: np.asarray(x) for name, x in shown.items()}
    first = len(rows["age_K"]) - SHOWN_REPLAYED
    fresh = [(dict(line), k) for k, line in enumerate(samples)]
    places = range(first, first + SHOWN_REPLAYED)
    old = [(line, k) for k in places if (line := _replayed(rows, k, train, vocabulary))]
    left, exact = _SHOWN_TOKENS, {name: rows[f"{name}_KT"].astype(float) for name in _OF_TOKENS}
    rounded = {name: np.round(x_KT, 3) for name, x_KT in exact.items()}
    for line, k in [*fresh[:2], *old, *fresh[2:first]]:
        n = int(rows["response_len_K"][k])
        ratio_T = exact["ratio"][k, :n]
        weighed = ratio_T[ratio_T > 0]
        mean = float(weighed.mean()) if weighed.size else math.nan
        line |= {"age": int(rows["age_K"][k]), "mean_ratio": mean}
        if n <= left or left == _SHOWN_TOKENS:
            left -= n
            texts = token_texts(vocabulary, _ids(rows, k)[1])
            numbers = {name: x_KT[k, :n].tolist() for name, x_KT in rounded.items()}
            line["tokens"] = {"text": texts} | numbers
    return [line for line, _ in [*fresh, *old]]


def _ids(rows: Mapping[str, np.ndarray], k: int) -> tuple[list[int], list[int]]:
    """The tokens of prompt and response of a row to be shown."""
    tokens_S, begin = rows["tokens_KS"][k], rows["tokens_KS"].shape[1] - rows["logp_KT"].shape[1]
    prompt, response = rows["prompt_len_K"][k], rows["response_len_K"][k]
    return tokens_S[begin - prompt : begin].tolist(), tokens_S[begin : begin + response].tolist()


def _replayed(
    rows: Mapping[str, np.ndarray], k: int, train: ProblemSet, vocabulary: Vocabulary
) -> dict[str, Any] | None:
    """A line of samples.jsonl; None of a fresh row, or where its prompt ends with a prefix."""
    prompt, response = _ids(rows, k)
    if rows["age_K"][k] <= 0 or prompt not in train.prompts:
        return None
    problem = train.problems[train.prompts.index(prompt)]
    return {
        "problem_id": problem.id,
        "problem": problem.problem,
        "prompt": vocabulary.tokenizer.decode(prompt),
        "response": texts_of(vocabulary, [response])[0],
        "reward": float(rows["reward_K"][k]),
        "correct": bool(rows["success_K"][k]),
        "answers": problem.answers,
        "response_length": len(response),
        "truncated": response[-1] not in vocabulary.eos_ids,
    }


@functools.lru_cache(1 << 16)
def _decoded(tokenizer: Any, ids: tuple[int, ...]) -> str:
    return tokenizer.decode(ids)


def token_texts(vocabulary: Vocabulary, ids: Sequence[int]) -> list[str]:
    """The text of each token; a letter that several tokens make up stands at the last of them."""
    decode, texts = functools.partial(_decoded, vocabulary.tokenizer), list[str]()
    before, begun = list[int](), list[int]()
    for token in ids:
        begun.append(token)
        # Behind the token before it: some tokenizers leave out the space that a text begins with.
        text = decode((*before, *begun))[len(decode(tuple(before))) :]
        is_whole = not text.endswith("\ufffd") or len(begun) == _LETTER_TOKENS
        texts.append(text if is_whole else "")
        if is_whole:
            before, begun = begun, []
    return texts


def prefix_metrics(reward_B: np.ndarray, prefixes: list[Prefix | None]) -> dict[str, float]:
    """Mean rewards: reward/prefixed, reward/unprefixed, and reward/prefix_0.4 of prefixes of 40 to
    50 % of their trace, and so on; nothing where no row has a prefix.
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
    responses: Sampled,
    reward: Sequence[float] | np.ndarray,
    success: Sequence[bool],
    group_size: int,
    first: int,
    mesh: Mesh | None,
    lag_B: np.ndarray | None = None,
) -> types.FreshRows:
    """Rows of the graded responses and of the empty slots behind them (NumPy: no compilation)."""
    n, row_B = len(reward), np.arange(len(responses.tokens_BS), dtype=np.int32)
    fields = responses._asdict() | {
        "reward_B": np.pad(np.asarray(reward, np.float32), (0, len(row_B) - n)),
        "success_B": np.pad(np.asarray(success, bool), (0, len(row_B) - n)),
        "group_B": (first + row_B // group_size).astype(np.int32),
        "valid_B": row_B < n,
        "lag_B": np.zeros_like(row_B) if lag_B is None else lag_B,
    }
    for name in ("ended_B", "steps", "slot_steps", "drain_slot_steps"):
        del fields[name]
    host = {name: x for name, x in fields.items() if not isinstance(x, jax.Array)}
    return types.FreshRows(**fields | {name: put(x, mesh) for name, x in host.items()})


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
    written = dict(zip(keys, [(i.completion_ids, s.reward) for i, s in said], strict=True))
    return train._replace(problems=problems, prompts=prompts), written


def expert_rows(
    draw: Draw,
    bank: Traces,
    stage: Stage,
    config: Config,
    pad_id: int,
    mesh: Mesh | None = None,
) -> types.FreshRows:
    """A row a group: the trace of its problem; empty rows up to the stage's groups.

    They have no log-probs of a sampler: NaN stands in their place, so that whatever reads them by
    mistake is not finite and stops the run; the learner marks them (`Rows.expert_B`).
    """
    slots, length = stage.fresh_groups, config.data.response_tokens
    written = [bank[p.problem, p.answers] for p in draw.problems]
    prompt_BP, prompt_len_B = prompt_batch(draw.prompts, slots, config.prompt_slots, pad_id)
    response_BT = np.full((slots, length), pad_id, np.int32)
    mask_BT = np.zeros((slots, length), np.float32)
    for b, (ids, _) in enumerate(written):
        response_BT[b, : len(ids)], mask_BT[b, : len(ids)] = ids, 1
    tokens_BS = np.concatenate([prompt_BP, response_BT], axis=1)
    length_B, unknown_BT = mask_BT.sum(axis=1, dtype=np.int32), np.full_like(mask_BT, np.nan)
    responses: dict[str, Any] = {
        "tokens_BS": tokens_BS,
        "prompt_len_B": prompt_len_B,
        "response_len_B": length_B,
        "behav_logp_BT": unknown_BT,
        "sampled_logp_BT": unknown_BT,
        "loss_mask_BT": mask_BT,
        "ended_B": length_B > 0,
        "steps": length,
    }
    earned, success = [reward for _, reward in written], [True] * len(written)
    return _rows(Sampled(**responses), earned, success, 1, draw.first, mesh)
