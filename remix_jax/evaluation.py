"""Answers to held-out problems, sampled in batches of one shape; the accuracy during a run."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from remix_jax.config import Config
from remix_jax.data import grading
from remix_jax.data.problems import Problem
from remix_jax.learner.programs import Program
from remix_jax.learner.rollout import ProblemSet, Vocabulary, decode, prompt_batch


class Response(NamedTuple):
    """What a model said to a problem."""

    text: str
    verdict: grading.Verdict
    length: int  # tokens, the end token included
    ended: bool  # an end token came within the limit


class Shape(NamedTuple):
    """What a sampler was compiled for."""

    prompts: int
    width: int  # tokens of the longest prompt that fits
    group_size: int  # responses a prompt


def respond(
    sampler: Program,
    shape: Shape,
    params: dict,
    problems: Sequence[Problem],
    prompts: Sequence[list[int]],
    row_ids: Sequence[int],
    vocabulary: Vocabulary,
    key: jax.Array,
) -> list[Response]:
    """One batch: `group_size` graded responses a problem, in order.

    Args:
      sampler: compiled for `shape`, which may hold more prompts than there are.
      row_ids: the number of each response's random stream under `key`.
    """
    tokens_QP, length_Q = prompt_batch(list(prompts), shape.prompts, shape.width, vocabulary.pad_id)
    ids_B = np.zeros(shape.prompts * shape.group_size, np.int32)
    ids_B[: len(row_ids)] = row_ids
    inputs = (tokens_QP, length_Q, ids_B, np.arange(len(ids_B)) < len(row_ids))
    sampled = sampler.call(params, *map(jnp.asarray, inputs), key)
    texts = decode(vocabulary, sampled, len(row_ids))
    answers = [problem.answers for problem in problems for _ in range(shape.group_size)]
    verdicts = [grading.grade(t, a) for t, a in zip(texts, answers, strict=True)]
    lengths, ended = jax.device_get((sampled.response_len_B, sampled.ended_B))
    rows = zip(texts, verdicts, lengths.tolist(), ended.tolist(), strict=False)
    return [Response(*row) for row in rows]


def evaluate(
    program: Program,
    params: dict,
    suites: Sequence[ProblemSet],
    vocabulary: Vocabulary,
    config: Config,
) -> dict[str, float]:
    """Pass@1 of each suite and the unweighted mean of the suites, as the paper reports them.

    The draws depend on the config's seed and the problem's place alone: the same noise at every
    step, whatever the batches.

    Returns:
      eval/<suite> and eval/mean in [0, 1], eval/response_length in tokens.
    """
    e = config.evaluation
    problems = [problem for suite in suites for problem in suite.problems]
    prompts = [prompt for suite in suites for prompt in suite.prompts]
    per_batch = max(e.batch_size // e.samples, 1)
    shape = Shape(per_batch, config.data.prompt_tokens, e.samples)
    key = jax.random.key(config.seed + 2)
    responses: list[Response] = []
    for first in range(0, len(prompts), per_batch):
        part = slice(first, first + per_batch)
        ids = range(first * e.samples, min(first + per_batch, len(prompts)) * e.samples)
        responses += respond(
            program, shape, params, problems[part], prompts[part], ids, vocabulary, key
        )
    correct = [response.verdict.correct for response in responses]
    metrics, begin = {}, 0
    for suite in suites:
        end = begin + len(suite.problems) * e.samples
        metrics[f"eval/{suite.name}"] = float(np.mean(correct[begin:end]))
        begin = end
    metrics["eval/mean"] = float(np.mean(list(metrics.values())))
    return metrics | {"eval/response_length": float(np.mean([r.length for r in responses]))}
