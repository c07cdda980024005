"""Responses to held-out problems, sampled and scored in batches; the accuracy during a run."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from remix_jax import streams
from remix_jax.config import Config
from remix_jax.data.problems import Problem
from remix_jax.data.tasks import ProblemSet
from remix_jax.models.huggingface import Vocabulary
from remix_jax.rewards import Item, Score, Scorer
from remix_jax.rollout.rollouts import prompt_batch, response_ids, score, texts_of
from remix_jax.rollout.sampler import Prompts, Sampler, Task, evaluation_task


class Question(NamedTuple):
    """One response to be drawn."""

    set: str
    place: int  # index of the problem in its set
    sample: int
    row_id: int  # number of the response's random stream
    problem: Problem
    prompt: list[int]
    form: str  # of the answer


class Response(NamedTuple):
    """What a model said to a problem, and what that is worth."""

    prompt: str  # as the model saw it, special tokens and all
    text: str
    score: Score
    length: int  # tokens, the end token included
    ended: bool  # an end token came within the limit


def questions(
    found: ProblemSet, samples: int, row_id: Callable[[int, int], int]
) -> Iterator[Question]:
    """`samples` questions of each problem, in order; row_id(place, sample) numbers the streams."""
    indices = found.indices or range(len(found.problems))
    for place, problem, prompt in zip(indices, found.problems, found.prompts, strict=True):
        for i in range(samples):
            yield Question(found.name, place, i, row_id(place, i), problem, prompt, found.form)


def respond(
    sampler: Sampler,
    task: Task,
    params: dict,
    asked: Sequence[Question],
    vocabulary: Vocabulary,
    key: jax.Array,
    scorer: Scorer,
) -> list[Response]:
    """One batch: a scored response to each question, in order; processes score a part each.

    Args:
      sampler: made for `task`, which may hold more rows than there are questions.
      asked: of each prompt as many in a row as `task.group_size`.
      key: of the random streams.
    """
    prompts = [q.prompt for q in asked[:: task.group_size]]
    tokens_QP, length_Q = prompt_batch(prompts, task.prompts, task.prompt_slots, task.pad_id)
    ids_B = np.zeros(task.rows, np.int32)
    ids_B[: len(asked)] = [q.row_id for q in asked]
    active_B = np.arange(task.rows) < len(asked)
    sampled = sampler(params, Prompts(tokens_QP, length_Q, ids_B, active_B), key)
    ids = response_ids(sampled, len(asked))
    texts = texts_of(vocabulary, ids)
    seen = vocabulary.tokenizer.batch_decode([q.prompt for q in asked])
    ended = jax.device_get(sampled.ended_B)[: len(asked)].tolist()
    items = [
        Item(q.problem, prompt, text, own, end, q.form)
        for q, prompt, text, own, end in zip(asked, seen, texts, ids, ended, strict=True)
    ]
    scores = score(scorer, items)
    return [
        Response(item.prompt, item.completion, found, len(item.completion_ids), item.ended)
        for item, found in zip(items, scores, strict=True)
    ]


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
    number = itertools.count()
    asked = [q for s in sets for q in questions(s, samples, lambda *_: next(number))]
    task = evaluation_task(config, vocabulary.eos_ids, vocabulary.pad_id)
    key = streams.key(config.seed, "evaluation")
    said: list[Response] = []
    for i in range(0, len(asked), task.rows):
        batch = asked[i : i + task.rows]
        said += respond(sampler, task, params, batch, vocabulary, key, scorer)
    metrics: dict[str, float] = {}
    for n, found in enumerate(sets):
        of_set = [r.score for r in said[starts[n] : starts[n + 1]]]
        reward = float(np.mean([s.reward for s in of_set]))
        judged = [bool(s.correct) for s in of_set if s.correct is not None]
        kind = "eval" if n < len(suites) else "validation"
        metrics[f"{kind}/{found.name}"] = float(np.mean(judged)) if judged else reward
        if config.reward.functions or found.form == "reasoning_gym":
            metrics[f"{kind}_reward/{found.name}"] = reward
    metrics["eval/mean"] = float(np.mean([metrics[f"eval/{s.name}"] for s in suites]))
    of_suites = said[: starts[len(suites)]]
    metrics["eval/response_length"] = float(np.mean([r.length for r in of_suites]))
    timeouts = [r.score.reason == "timeout" for r in of_suites]
    return metrics | {"eval/grader_timeout_rate": float(np.mean(timeouts))}
