"""Responses to held-out problems, sampled and scored in batches; the accuracy during a run."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from remix_jax import rewards, streams
from remix_jax.config import Config
from remix_jax.data.problems import Problem
from remix_jax.data.tasks import ProblemSet
from remix_jax.models.hf_tokenizer import Vocabulary
from remix_jax.rewards import Item, Score, Scorer
from remix_jax.rollout.rollouts import prompt_batch, response_ids, score_responses
from remix_jax.rollout.sampler import Prompts, Sampler, Task, evaluation_task


class Question(NamedTuple):
    """One response to be drawn."""

    set: str
    place: int  # index of the problem in its set
    sample: int
    problem: Problem
    prompt: list[int]
    form: str  # of the answer


def questions(found: ProblemSet, samples: int) -> Iterator[Question]:
    """`samples` questions of each problem, in order."""
    indices = found.indices or range(len(found.problems))
    for place, problem, prompt in zip(indices, found.problems, found.prompts, strict=True):
        for i in range(samples):
            yield Question(found.name, place, i, problem, prompt, found.form)


def respond(
    sampler: Sampler,
    task: Task,
    params: dict,
    asked: Sequence[Question],
    row_ids: Sequence[int],
    vocabulary: Vocabulary,
    key: jax.Array,
    scorer: Scorer,
) -> list[tuple[Item, Score]]:
    """One batch: a response to each question and its score, in order; processes score a part each.

    Args:
      sampler: made for `task`, which may hold more rows than there are questions.
      asked: of each prompt as many in a row as `task.group_size`.
      row_ids: the number of each response's random stream under `key`.
    """
    prompts = [q.prompt for q in asked[:: task.group_size]]
    tokens_QP, length_Q = prompt_batch(prompts, task.prompts, task.prompt_slots, task.pad_id)
    ids_B = np.zeros(task.rows, np.int32)
    ids_B[: len(asked)] = row_ids
    active_B = np.arange(task.rows) < len(asked)
    sampled = sampler(params, Prompts(tokens_QP, length_Q, ids_B, active_B), key)
    return score_responses(
        scorer,
        vocabulary,
        [q.problem for q in asked],
        [q.prompt for q in asked],
        [q.form for q in asked],
        response_ids(sampled, len(asked)),
        jax.device_get(sampled.ended_B)[: len(asked)].tolist(),
    )


def held_out(
    sampler: Sampler,
    params: dict,
    suites: Sequence[ProblemSet],
    validation: Sequence[ProblemSet],
    vocabulary: Vocabulary,
    config: Config,
    scorer: Scorer,
) -> dict[str, float]:
    """Pass@1 of each suite and the unweighted mean of the suites, as the paper reports them.

    The draws depend on the config's seed and the problem's place alone: the same noise at every
    step, whatever the batches.

    Returns:
      eval/<suite> and eval/mean in [0, 1], or mean rewards where no function says what correct is;
      eval_reward/<suite>, the mean reward, where that may be another number; over the suites,
      eval/response_length in tokens and eval/grader_timeout_rate, the share of responses that the
      grader gave up on; validation/<name> of the problems that settings are chosen by, which no
      mean contains.
    """
    sets, samples = [*suites, *validation], config.evaluation.samples
    starts = np.cumsum([0, *(len(s.problems) * samples for s in sets)]).tolist()
    asked = [q for s in sets for q in questions(s, samples)]
    task = evaluation_task(config, vocabulary.eos_ids, vocabulary.pad_id)
    key = streams.key(config.seed, "evaluation")
    said: list[tuple[Item, Score]] = []
    for i in range(0, len(asked), task.rows):
        batch = asked[i : i + task.rows]
        row_ids = range(i, i + len(batch))
        said += respond(sampler, task, params, batch, row_ids, vocabulary, key, scorer)
    metrics: dict[str, float] = {}
    for n, found in enumerate(sets):
        figures = rewards.metrics([s for _, s in said[starts[n] : starts[n + 1]]])
        kind = "eval" if n < len(suites) else "validation"
        metrics[f"{kind}/{found.name}"] = figures.get("accuracy", figures["reward"])
        if config.reward.functions or found.form == "reasoning_gym":
            metrics[f"{kind}_reward/{found.name}"] = figures["reward"]
    metrics["eval/mean"] = float(np.mean([metrics[f"eval/{s.name}"] for s in suites]))
    of_suites = said[: starts[len(suites)]]
    metrics["eval/response_length"] = float(
        np.mean([len(item.completion_ids) for item, _ in of_suites])
    )
    timeouts = [s.reason == "timeout" for _, s in of_suites]
    return metrics | {"eval/grader_timeout_rate": float(np.mean(timeouts))}
