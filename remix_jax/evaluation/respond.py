"""Answers to held-out problems, sampled in batches of one shape; the accuracy during a run."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from remix_jax import processes, streams
from remix_jax.config import Config
from remix_jax.data.problems import Problem
from remix_jax.data.tasks import ProblemSet
from remix_jax.grading import verdicts as grading
from remix_jax.grading.pool import GraderPool
from remix_jax.rollout.rollouts import Vocabulary, decode, prompt_batch
from remix_jax.rollout.sampler import Prompts, Sampler, Task, evaluation_task


class Response(NamedTuple):
    """What a model said to a problem."""

    text: str
    verdict: grading.Verdict
    length: int  # tokens, the end token included
    ended: bool  # an end token came within the limit


def respond(
    sampler: Sampler,
    task: Task,
    params: dict,
    problems: Sequence[Problem],
    prompts: Sequence[list[int]],
    row_ids: Sequence[int],
    vocabulary: Vocabulary,
    key: jax.Array,
    pool: GraderPool,
) -> list[Response]:
    """One batch: `group_size` graded responses a problem, in order.

    Args:
      sampler: made for `task`, which may hold more prompts than there are.
      row_ids: the number of each response's random stream under `key`.
      pool: compares the answers that need algebra.
    """
    tokens_QP, length_Q = prompt_batch(list(prompts), task.prompts, task.prompt_slots, task.pad_id)
    ids_B = np.zeros(task.rows, np.int32)
    ids_B[: len(row_ids)] = row_ids
    active_B = np.arange(task.rows) < len(row_ids)
    sampled = sampler(params, Prompts(tokens_QP, length_Q, ids_B, active_B), key)
    texts = decode(vocabulary, sampled, len(row_ids))
    answers = [problem.answers for problem in problems for _ in range(task.group_size)]
    verdicts = processes.divided(
        len(texts), lambda part: grading.grade_many(texts[part], answers[part], pool)
    )
    lengths, ended = jax.device_get((sampled.response_len_B, sampled.ended_B))
    rows = zip(texts, verdicts, lengths.tolist(), ended.tolist(), strict=False)
    return [Response(text, grading.Verdict(*verdict), *rest) for text, verdict, *rest in rows]


def evaluate(
    sampler: Sampler,
    params: dict,
    suites: Sequence[ProblemSet],
    validation: Sequence[ProblemSet],
    vocabulary: Vocabulary,
    config: Config,
    pool: GraderPool,
) -> dict[str, float]:
    """Pass@1 of each suite and the unweighted mean of the suites, as the paper reports them.

    The draws depend on the config's seed and the problem's place alone: the same noise at every
    step, whatever the batches. `pool` compares the answers that need algebra.

    Returns:
      eval/<suite> and eval/mean in [0, 1]; over the suites, eval/response_length in tokens and
      eval/grader_timeout_rate, the share of responses that the grader gave up on;
      validation/<name> of the problems that settings are chosen by, which no mean contains.
    """
    e = config.evaluation
    sets = [*suites, *validation]
    problems = [problem for each in sets for problem in each.problems]
    prompts = [prompt for each in sets for prompt in each.prompts]
    task = evaluation_task(config, vocabulary.eos_ids, vocabulary.pad_id)
    per_batch = task.prompts
    key = streams.key(config.seed, "evaluation")
    responses: list[Response] = []
    for first in range(0, len(prompts), per_batch):
        part = slice(first, first + per_batch)
        ids = range(first * e.samples, min(first + per_batch, len(prompts)) * e.samples)
        responses += respond(
            sampler, task, params, problems[part], prompts[part], ids, vocabulary, key, pool
        )
    ends = np.cumsum([len(each.problems) * e.samples for each in sets])
    correct = np.array([response.verdict.correct for response in responses])
    rates = [float(np.mean(part)) for part in np.split(correct, ends[:-1])]
    metrics = {f"eval/{suite.name}": rate for suite, rate in zip(suites, rates, strict=False)}
    metrics["eval/mean"] = float(np.mean(rates[: len(suites)]))
    held_out = responses[: ends[len(suites) - 1]]
    metrics["eval/response_length"] = float(np.mean([r.length for r in held_out]))
    metrics["eval/grader_timeout_rate"] = grading.timeout_rate([r.verdict for r in held_out])
    others = zip(validation, rates[len(suites) :], strict=True)
    return metrics | {f"validation/{each.name}": rate for each, rate in others}
