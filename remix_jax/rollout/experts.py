"""Rows of an expert: verified traces of a bank, beside or instead of what the policy samples.

They have no log-probs of a sampler: NaN stands in their place, so that whatever reads them by
mistake is not finite and stops the run; the learner marks them (`Rows.expert_B`).
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from remix_jax import types
from remix_jax.config import Config
from remix_jax.data import traces
from remix_jax.data.problems import Problem
from remix_jax.data.tasks import ProblemSet
from remix_jax.errors import InputError
from remix_jax.models.huggingface import Vocabulary
from remix_jax.rewards import Item, Scorer
from remix_jax.rollout.draws import Draw
from remix_jax.rollout.rollouts import prompt_batch, score, texts_of
from remix_jax.schedule import Stage


class Written(NamedTuple):
    """A verified response to a problem: its tokens, and what the run's reward gives for it."""

    ids: tuple[int, ...]
    reward: float


Traces = Mapping[tuple, Written]
"""By (text, answers) of the problem."""


def with_traces(
    train: ProblemSet, config: Config, vocabulary: Vocabulary, scorer: Scorer
) -> tuple[ProblemSet, Traces]:
    """The training problems that `expert.bank` has a trace of, and their traces, scored.

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
    ids = [t.response for i in kept if (t := found[i]) is not None]
    texts = texts_of(vocabulary, [list(each) for each in ids])
    rendered = vocabulary.tokenizer.batch_decode(prompts)
    parts = zip(problems, rendered, texts, ids, strict=True)
    scores = score(scorer, [Item(*each, ended=True, form=train.form) for each in parts])
    written = [Written(*each) for each in zip(ids, (s.reward for s in scores), strict=True)]
    traces_by = dict(zip(map(_key, problems), written, strict=True))
    return train._replace(problems=problems, prompts=prompts), traces_by


def expert_rows(
    draw: Draw, traces: Traces, stage: Stage, first_group: int, config: Config, pad_id: int
) -> types.FreshRows:
    """A row a group: the trace of its problem; empty rows up to the stage's groups.

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
    reward_B = np.zeros(slots, np.float32)
    for b, problem in enumerate(draw.problems):
        ids, reward_B[b] = traces[_key(problem)]
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
        reward_B=reward_B,
        success_B=valid_B,
        group_B=first_group + np.arange(slots, dtype=np.int32),
        valid_B=valid_B,
    )


def _key(item: Problem) -> tuple:
    return item.problem, item.answers
