"""The family in the learner's step: whole mini-batches, rows of an expert, what rows must keep."""

import chex
import jax
import numpy as np
import pytest

from remix_jax.data.problems import Problem
from remix_jax.learner.experts import expert_rows
from remix_jax.learner.rollout import Draw
from remix_jax.rl import family
from tests.learner.tiny import (
    P,
    T,
    advance,
    fresh_rows,
    grouped,
    host,
    make_config,
    stage_of,
    start,
)


def config_of(name, **changes):
    """A small run of the method: replay, a narrow clip, one pass, no KL."""
    method = family.METHODS[name]
    advantage = "method" if method.own_advantage else method.advantage
    fields = {
        "objective__method": name,
        "objective__aggregation": method.aggregation or "token-mean",
        "objective__clip": 0.02,
        "replay__window": 3,
        "reincarnation_step": 0,
        "kl__coef": 0.0,
        "passes": 1,
        "mini_batch_size": 8,
        "micro_batch_size": 8,
    }
    if method.experts == "needed":
        fields["expert__bank"] = "bank"
    make = make_config if advantage == "gae" else grouped
    config = make(**fields | changes)
    config.objective.advantage = advantage or config.objective.advantage
    return config


def expert_of(config, step):
    """The expert's rows of the groups that `fresh_rows` makes for the step."""
    rng = np.random.default_rng([99, step])
    stage = stage_of(config, step)
    n = stage.fresh_groups
    problems = [Problem(problem=str(i), answers=(0,), id=str(i)) for i in range(n)]
    prompts = [rng.integers(0, 11, rng.integers(1, P + 1)).tolist() for _ in range(n)]
    traces = {
        (str(i), (0,)): tuple(rng.integers(0, 11, rng.integers(2, T + 1)).tolist())
        for i in range(n)
    }
    draw = Draw(problems, prompts, [None] * n)
    return expert_rows(draw, traces, stage, 100 * step, config, pad_id=0)


def steps_of(name, steps=2, **changes):
    """State before and after the last of some steps, and its metrics."""
    config = config_of(name, **changes)
    learner, state = start(config)
    before = metrics = None
    for step in range(1, steps + 1):
        rows = None
        if config.own_rows:
            rows = fresh_rows(config, state, step)
            if config.expert_rows:
                keep = rows.valid_B.shape[0] // config.group_size
                rows = jax.tree.map(lambda x, n=keep: x[:n], rows)
        expert = expert_of(config, step) if config.expert_rows else None
        before = host(state)
        state, metrics = advance(learner, state, config, step, rows, expert)
    return before, host(state), host(metrics)


@pytest.mark.parametrize("name", ["bapo", "m2po", "p3o"])
def test_micro_batches_are_one_batch(name):
    """Bounds, threshold and ESS are those of the mini-batch, not of each part of it."""
    _, whole, metrics = steps_of(name)
    _, parts, part_metrics = steps_of(name, micro_batch_size=2)
    chex.assert_trees_all_close(whole.params, parts.params, atol=1e-4)
    chex.assert_trees_all_close(metrics, part_metrics, rtol=3e-3, atol=3e-4)
