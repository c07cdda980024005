"""Partial rollouts: rows that are finished under a later policy than the one that began them."""

import dataclasses
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from remix_jax import schedule
from remix_jax.config_rules import validate
from remix_jax.errors import InputError
from remix_jax.learner import batch as batches
from remix_jax.rl import replay
from remix_jax.run import loop
from remix_jax.types import batch_of, kept_rows
from tests.experiments.runs import figures, quiet, small_config
from tests.learner.tiny import fresh_rows, make_config, score, stage_of, start


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Four steps of the mix stage, with a group of four in flight between them."""
    config = small_config(tmp_path_factory.mktemp("carry"), grpo=True)
    config.sampling.carry, config.evaluation.every = 1, 0
    config.steps, config.reincarnation_step = 4, 0
    config.optimizer.learning_rate = 1e-3
    return config


def test_a_run_with_rows_in_flight_is_exact_and_continues_bitwise(config, tmp_path):
    """Ctrl-C in step 2, with rows in flight in the checkpoint, is the unbroken run to the bit."""

    def interrupt(step):
        if step == 1:  # its figures are written while step 2 learns
            os.kill(os.getpid(), signal.SIGINT)

    loop.run(config, tmp_path / "whole", quiet(config))
    assert loop.run(config, tmp_path / "parts", quiet(config, interrupt)).stopped
    assert not loop.run(config, tmp_path / "parts", quiet(config)).stopped
    steps, again = (
        [
            {k: v for k, v in each.items() if not k.startswith(("eval", "valid"))}
            for each in figures(tmp_path / part)
        ]
        for part in ("whole", "parts")  # one that is stopped evaluates once more
    )
    assert steps == again
    weights = [tmp_path / part / "export" / "model.safetensors" for part in ("whole", "parts")]
    assert weights[0].read_bytes() == weights[1].read_bytes()

    mix = steps[1:]
    assert [each["rollouts"] for each in steps[1:]] == [
        schedule.rollouts_until(config, step) for step in range(1, 5)
    ]
    assert all(each["carried"] < 1 for each in mix)
    assert any(each["carried"] > 0 for each in mix), "some row was finished by a later policy"
    # The sampler is compared with the trainer on tokens of this step's policy alone.
    assert max(abs(each["sampler_gap"]) for each in mix) < 1e-5
    ledger = json.loads((tmp_path / "whole" / "ledger.json").read_text())
    assert sum(fate["rows"] for fate in ledger) == steps[-1]["rollouts"], "each row once"


def test_nothing_is_carried_into_the_on_policy_stage(config):
    ends = dataclasses.replace(config, reincarnation_step=2)
    assert [schedule.carried(ends, step) for step in range(4)] == [0, 1, 1, 0]


def test_rows_that_an_earlier_policy_began_are_scored_and_grow_old_earlier():
    config = make_config(sampling__carry=1)
    learner, state = start(config)
    rows = fresh_rows(config, state, 1)
    n = rows.valid_B.shape[0]
    lag_B = jnp.asarray(np.arange(n) % 2, jnp.int32)
    drawn_BT = rows.behav_logp_BT - 0.2 * lag_B[:, None]
    rows = kept_rows(rows.replace(behav_logp_BT=drawn_BT, lag_B=lag_B))
    spare = jax.tree.map(lambda x: jnp.resize(x, (config.batch_size, *x.shape[1:])), rows)
    scored = batches.score(learner, stage_of(config, 1), state, batch_of(spare), jnp.ones(()))
    true_BT = score(learner.policy, state.params, spare, 1.0)
    inside_BT = np.asarray(spare.mask_BT) > 0
    for b, lag in enumerate(spare.lag_B):
        want_BT = true_BT if lag else spare.behav_logp_BT
        np.testing.assert_allclose(
            scored.prox_logp_BT[b][inside_BT[b]], want_BT[b][inside_BT[b]], atol=1e-5 if lag else 0
        )
    found = batches.sampler_gap(learner, state.params, rows)
    assert abs(found["sampler_gap"]) < 1e-6, "of this policy's rows alone"

    ring = replay.init(n, 1, config.data.prompt_tokens, config.data.response_tokens, 2)
    ring, slots = replay.add(ring, rows.replace(version_B=jnp.full((n,), 3, jnp.int32)))
    how = jax.random.key(0), jnp.asarray(5)
    taken = replay.sample(ring, *how, 2, "uniform", n, jnp.asarray(n))
    drawn = set(np.asarray(taken[0])[np.asarray(taken[1])])
    usable = np.asarray(slots)[(np.asarray(lag_B) == 0) & np.asarray(rows.valid_B)]
    assert drawn == set(usable), "two steps old at most, counted from the first token"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"sampling__carry": 99}, "must be at most 4, a step's groups"),
        ({"sampling__engine": "own.py:make"}, "must be 0 unless our sampler"),
        ({"replay__share": 0.0, "passes": 1}, "must be 0 in a run that is on-policy all along"),
    ],
)
def test_where_nothing_can_be_carried_is_said(changes, text):
    config = make_config(
        **({"sampling__carry": 1, "data__train": "x", "model__path": "x"} | changes)
    )
    config.data.suites = ("y",)
    with pytest.raises(InputError, match=f"config.sampling.carry = .*{text}"):
        validate(config)
