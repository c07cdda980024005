"""Eight devices, however the mesh divides them, give what one gives."""

import functools

import chex
import jax
import numpy as np
import pytest

from remix_jax import sharding
from remix_jax.config import Optimizer
from remix_jax.learner.state import place_state
from remix_jax.learner.step import compile_learn, step_inputs
from tests.learner.tiny import (
    DEEPER,
    fresh_rows,
    grouped,
    host,
    make_config,
    stage_of,
    start,
)

# Adam makes visible steps of gradients that are all but rounding: with small ones the next
# gradients do not see it, and the moments, sums of gradients, agree closely.
RATE = 1e-4
SLOW = {"optimizer__learning_rate": RATE, "critic__optimizer": Optimizer(learning_rate=RATE)}
SLOW |= {"mini_batch_size": 8, "micro_batch_size": 8}
SMALLER = {"memory__scan_layers": True, "memory__remat": True, "memory__logit_entries": 3}
SLOW |= {"score_batch_size": 4}
PACKED = {"micro_batch_size": 4}  # the one device trains each row in a buffer of its own
METHODS = {"ppo": make_config, "grpo": grouped}
CUT = {"grpo, cut and run again": functools.partial(grouped, **SMALLER)}
ADAPTERS = {"ppo, adapters": functools.partial(make_config, lora__rank=2, lora__alpha=4.0)}
CASES = [
    *(("ppo, adapters", mesh) for mesh in ((1, 8, 1), (1, 1, 8), (2, 2, 2))),
    ("ppo", (2, 2, 2)),
    ("grpo", (4, 1, 2)),
    ("grpo, cut and run again", (2, 2, 2)),
]


def spread(tree, mesh):
    return tree if mesh is None else jax.device_put(tree, sharding.shardings(tree, mesh))


def learned(config, wanted):
    """State and metrics after three steps, with the programs that a run on that mesh uses."""
    learner, first = start(config, policy=DEEPER)
    mesh = sharding.make_mesh(wanted)
    whole = first.whole(first.params)
    params, critic = (spread(x, mesh) for x in (whole, first.critic_params))
    state = place_state(learner, params, config.seed, mesh)
    state = state.replace(critic_params=critic)  # its value head is not zero
    _, rows_from = start(config, policy=DEEPER)
    every = []
    for step in (1, 2) if config.lora.rank else (1, 2, 3):
        program = compile_learn(learner, stage_of(config, step), mesh)
        rows = fresh_rows(config, rows_from, step, policy=DEEPER)
        shift_BT = 0.3 * np.sin(np.arange(rows.behav_logp_BT.size)).reshape(rows.loss_mask_BT.shape)
        rows = rows.replace(behav_logp_BT=rows.behav_logp_BT + shift_BT)  # ratios off 1
        given = jax.tree.map(lambda x: sharding.put(x, mesh), (rows, step_inputs(config, step)))
        state, metrics = program.call(state, *given, None)
        every.append(host(metrics))
    return state, every


def moments(state):
    """Adam's of both models, array by array."""
    both = state.opt_state, state.critic_opt_state
    return [x for x in jax.tree.leaves(host(both)) if x.ndim]


@pytest.fixture(scope="module")
def alone():
    """What one device makes of each method."""
    methods = METHODS | ADAPTERS
    return {name: learned(make(**SLOW), (1, 1, 1)) for name, make in methods.items()}


@pytest.mark.parametrize(("method", "wanted"), CASES)
def test_learning_on_eight_devices_is_learning_on_one(method, wanted, alone):
    config = (METHODS | CUT | ADAPTERS)[method](**SLOW | PACKED)
    state, metrics = learned(config, wanted)
    expected, expected_metrics = alone[method.removesuffix(", cut and run again")]
    assert int(metrics[-1]["n_replayed"]) >= 2, "replayed rows are part of it"
    for now, then in zip(moments(state), moments(expected), strict=True):
        np.testing.assert_allclose(now, then, rtol=1e-3, atol=1e-5 * abs(then).max())
    chex.assert_trees_all_close(host(state), host(expected), atol=RATE)
    for now, then in zip(metrics, expected_metrics, strict=True):
        assert now["learn_use"] > 0.99 * then["learn_use"]
        now["learn_use"] = then["learn_use"]
    chex.assert_trees_all_close(metrics, expected_metrics, rtol=2e-3, atol=2e-4)
    where = sharding.shardings(state, sharding.make_mesh(wanted))
    for (path, x), place in zip(
        jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(where), strict=True
    ):
        assert x.sharding.is_equivalent_to(place, x.ndim), sharding.path_text(path)
