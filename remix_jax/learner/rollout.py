"""Rollouts: problems -> sampled responses -> verdicts -> rows to learn from.

The host's three jobs in a step are here: prompts in, grading, and what is written of both.
"""

import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from remix_jax import types
from remix_jax.config import Config, set_name
from remix_jax.data import grading
from remix_jax.data.grader_pool import GraderPool
from remix_jax.data.problems import Problem, load_problems
from remix_jax.data.prompts import encode_prompts, pad_left
from remix_jax.models import huggingface
from remix_jax.models.sampling import Sampled


class ProblemSet(NamedTuple):
    """Problems whose prompts fit, as token ids."""

    name: str
    problems: list[Problem]
    prompts: list[list[int]]
    dropped: int  # over the prompt limit
    skipped: tuple[str, ...]  # what was said of each malformed row left out by choice


class Vocabulary(NamedTuple):
    """A tokenizer and what of it the programs need as constants."""

    tokenizer: Any  # transformers.PreTrainedTokenizerFast
    eos_ids: tuple[int, ...]
    pad_id: int


class Rollouts(NamedTuple):
    """The fresh rows of a step, and what the host knows of them."""

    rows: types.Rows
    metrics: dict[str, float]
    samples: list[dict]


def load_vocabulary(directory: str) -> Vocabulary:
    """The tokenizer of a model directory with its end and padding ids."""
    tokenizer = huggingface.load_tokenizer(directory)
    eos_ids = huggingface.eos_ids(directory, tokenizer)
    return Vocabulary(tokenizer, eos_ids, huggingface.pad_id(tokenizer))


def problem_set(
    path: str, vocabulary: Vocabulary, config: Config, skip_malformed: bool = False
) -> ProblemSet:
    """A problem file under the model's chat template.

    Prompts over the limit are dropped and counted; so are malformed rows where they may be skipped.

    Raises:
      InputError: the file or a row of it is malformed, the template fails, or no prompt fits.
    """
    skipped: list[str] | None = [] if skip_malformed else None
    problems = load_problems(path, skipped)
    texts = [problem.problem for problem in problems]
    limit = config.data.prompt_tokens
    encoded = encode_prompts(vocabulary.tokenizer, texts, config.data.instruction, limit)
    kept = [problems[i] for i in encoded.indices]
    return ProblemSet(set_name(path), kept, encoded.ids, encoded.dropped, tuple(skipped or ()))


def prompt_batch(prompts: list[list[int]], slots: int, width: int, pad_id: int):
    """(tokens [slots, P], lengths [slots]): the prompts, the last one repeated in empty slots."""
    filled = prompts + [prompts[-1]] * (slots - len(prompts))
    return pad_left(filled, width, pad_id)


def decode(vocabulary: Vocabulary, sampled: Sampled, rows: int) -> list[str]:
    """The text of the first `rows` responses, special tokens left out."""
    tokens_BS, length_B = jax.device_get((sampled.tokens_BS, sampled.response_len_B))
    first = tokens_BS.shape[1] - sampled.logp_BT.shape[1]
    ids = [tokens_BS[b, first : first + length_B[b]].tolist() for b in range(rows)]
    return vocabulary.tokenizer.batch_decode(ids, skip_special_tokens=True)


def grade_rollouts(
    sampled: Sampled,
    problems: list[Problem],
    vocabulary: Vocabulary,
    group_size: int,
    first_group: int,
    pool: GraderPool,
) -> Rollouts:
    """Grades the responses and makes rows of them.

    Args:
      sampled: group_size responses a problem, and perhaps empty slots behind them.
      problems: of the groups that were really sampled.
      first_group: number of the first group in the run.
      pool: compares the answers that need algebra.
    """
    n = len(problems) * group_size
    begin = time.perf_counter()
    texts = decode(vocabulary, sampled, n)
    of_row = [problem for problem in problems for _ in range(group_size)]
    verdicts = grading.grade_many(texts, [problem.answers for problem in of_row], pool)
    seconds = time.perf_counter() - begin
    slots = sampled.response_len_B.shape[0]
    reward_B = np.zeros(slots, np.float32)
    reward_B[:n] = [verdict.correct for verdict in verdicts]
    length_B, ended_B = jax.device_get((sampled.response_len_B, sampled.ended_B))
    formatted = [grading.format_ok(text) for text in texts]
    metrics = {
        "reward": float(reward_B[:n].mean()),
        "accuracy": float(np.mean([verdict.correct for verdict in verdicts])),
        "format_rate": float(np.mean(formatted)),
        "grader_timeout_rate": grading.timeout_rate(verdicts),
        "truncated_rate": float(1 - ended_B[:n].mean()),
        "response_length": float(length_B[:n].mean()),
        "new_tokens": int(length_B[:n].sum()),
        "seconds/grade": seconds,
    }
    samples = [
        {
            "problem_id": of_row[b].id,
            "prompt": of_row[b].problem,
            "response": texts[b],
            "reward": float(reward_B[b]),
            "answer": verdicts[b].answer,
            "verdict": verdicts[b].reason,
            "response_length": int(length_B[b]),
            "truncated": not bool(ended_B[b]),
        }
        for b in range(n)
    ]
    return Rollouts(_rows(sampled, reward_B, n, group_size, first_group), metrics, samples)


def _rows(sampled: Sampled, reward_B, n: int, group_size: int, first_group: int) -> types.Rows:
    """Rows of the graded responses; what the learner fills in is zero (NumPy: no compilation)."""
    row_B = np.arange(reward_B.shape[0], dtype=np.int32)
    return types.Rows(
        tokens_BS=sampled.tokens_BS,
        prompt_len_B=sampled.prompt_len_B,
        response_len_B=sampled.response_len_B,
        logp_BT=sampled.logp_BT,
        sampled_logp_BT=sampled.sampled_logp_BT,
        base_logp_BT=jnp.asarray(np.zeros(sampled.logp_BT.shape, np.float32)),
        reward_B=jnp.asarray(reward_B),
        group_B=jnp.asarray((first_group + row_B // group_size).astype(np.int32)),
        version_B=jnp.asarray(np.zeros_like(row_B)),
        used_B=jnp.asarray(np.zeros_like(row_B)),
        signal_B=jnp.asarray(np.zeros(row_B.shape, bool)),
        valid_B=jnp.asarray(row_B < n),
    )
