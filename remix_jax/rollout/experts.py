"""Rows of an expert: verified traces of a bank, beside or instead of what the policy samples.

They have no log-probs of a sampler: NaN stands in their place, so that whatever reads them by
mistake is not finite and stops the run; the learner marks them (`Rows.expert_B`).
"""

from collections.abc import Mapping

import numpy as np

from remix_jax import types
from remix_jax.config import Config
from remix_jax.data import traces
from remix_jax.data.problems import Problem
from remix_jax.data.tasks import ProblemSet
from remix_jax.data.traces import Trace
from remix_jax.errors import InputError
from remix_jax.rollout.rollouts import Draw, Vocabulary, prompt_batch
from remix_jax.schedule import Stage

Traces = Mapping[tuple, tuple[int, ...]]
"""Token ids of a verified response by (text, answers) of the problem."""


def with_traces(
    train: ProblemSet, config: Config, vocabulary: Vocabulary
) -> tuple[ProblemSet, Traces]:
    """The training problems that `expert.bank` has a trace of, and their traces.

    A trace longer than data.response_tokens does not count. Without a bank: all problems, none.

    Raises:
      InputError: no usable bank, or none of its traces is of a training problem.
    """
    bank = config.expert.bank
    if not bank:
        return train, {}
    held = traces.load(bank, traces.fingerprint(vocabulary.tokenizer))
    found = traces.traces_of(held, train.problems)
    limit = config.data.response_tokens
    kept = [i for i, t in enumerate(found) if t is not None and len(t.response) <= limit]
    if not kept:
        raise InputError(
            f"config.expert.bank = {bank!r}: has no trace of up to {limit} tokens for any of the "
            f"{len(train.problems):,} problems of {train.name}"
        )
    problems = [train.problems[i] for i in kept]
    prompts = [train.prompts[i] for i in kept]
    responses = {_key(t): t.response for i in kept if (t := found[i]) is not None}
    return train._replace(problems=problems, prompts=prompts), responses


def expert_rows(
    draw: Draw, traces: Traces, stage: Stage, first_group: int, config: Config, pad_id: int
) -> types.FreshRows:
    """A row a group: the trace of its problem, with reward 1; empty rows up to the stage's groups.

    On the host (NumPy).

    Args:
      draw: the groups of the step.
      first_group: number of the first one in the run.
    """
    slots, n = stage.fresh_groups, len(draw.problems)
    width, length = config.prompt_slots, config.data.response_tokens
    valid_B = np.arange(slots) < n
    prompt_BP, prompt_len_B = prompt_batch(draw.prompts, slots, width, pad_id)
    response_BT = np.full((slots, length), pad_id, np.int32)
    response_len_B = np.zeros(slots, np.int32)
    for b, problem in enumerate(draw.problems):
        ids = traces[_key(problem)]
        response_BT[b, : len(ids)] = ids
        response_len_B[b] = len(ids)
    unknown_BT = np.full((slots, length), np.nan, np.float32)
    written_BT = np.arange(length)[None, :] < response_len_B[:, None]
    return types.FreshRows(
        tokens_BS=np.concatenate([prompt_BP, response_BT], axis=1),
        prompt_len_B=prompt_len_B,
        response_len_B=response_len_B,
        loss_mask_BT=written_BT.astype(np.float32),
        behav_logp_BT=unknown_BT,
        sampled_logp_BT=unknown_BT,
        reward_B=valid_B.astype(np.float32),
        group_B=first_group + np.arange(slots, dtype=np.int32),
        valid_B=valid_B,
    )


def _key(item: Problem | Trace) -> tuple:
    return item.problem, item.answers
