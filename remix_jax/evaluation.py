"""Held-out accuracy: every problem of every suite, sampled in batches of one shape."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from remix_jax.config import Config
from remix_jax.data import grading
from remix_jax.data.grader_pool import GraderPool
from remix_jax.learner.programs import Program
from remix_jax.learner.rollout import ProblemSet, Vocabulary, decode, prompt_batch


def evaluate(
    program: Program,
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
    width = config.data.prompt_tokens
    sets = [*suites, *validation]
    problems = [problem for each in sets for problem in each.problems]
    prompts = [prompt for each in sets for prompt in each.prompts]
    per_batch = max(e.batch_size // e.samples, 1)
    key = jax.random.key(config.seed + 2)
    verdicts, lengths = [], []
    for first in range(0, len(prompts), per_batch):
        part = prompts[first : first + per_batch]
        tokens_QP, length_Q = prompt_batch(part, per_batch, width, vocabulary.pad_id)
        row_B = np.arange(per_batch * e.samples, dtype=np.int32)
        active_B = row_B < len(part) * e.samples
        ids_B = row_B + first * e.samples
        inputs = (tokens_QP, length_Q, ids_B, active_B)
        sampled = program.call(params, *map(jnp.asarray, inputs), key)
        texts = decode(vocabulary, sampled, len(part) * e.samples)
        answers = [problems[first + b // e.samples].answers for b in range(len(texts))]
        verdicts += grading.grade_many(texts, answers, pool)
        lengths += np.asarray(sampled.response_len_B)[: len(texts)].tolist()
    ends = np.cumsum([len(each.problems) * e.samples for each in sets])
    correct = np.array([verdict.correct for verdict in verdicts])
    rates = [float(np.mean(part)) for part in np.split(correct, ends[:-1])]
    metrics = {f"eval/{suite.name}": rate for suite, rate in zip(suites, rates, strict=False)}
    metrics["eval/mean"] = float(np.mean(rates[: len(suites)]))
    held_out = ends[len(suites) - 1]
    metrics["eval/response_length"] = float(np.mean(lengths[:held_out]))
    metrics["eval/grader_timeout_rate"] = grading.timeout_rate(verdicts[:held_out])
    others = zip(validation, rates[len(suites) :], strict=True)
    return metrics | {f"validation/{each.name}": rate for each, rate in others}
