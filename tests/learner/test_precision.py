"""Budgets of tokens, and what is kept in fewer bits than the parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from remix_jax import config_rules, sharding
from remix_jax.errors import InputError
from remix_jax.learner import step
from remix_jax.learner.state import move_anchors, place_state, static_of
from tests.learner.tiny import (
    P,
    T,
    advance,
    grouped,
    host,
    make_config,
    stage_of,
    start,
)


def trained(**changes):
    # Small steps: large ones drive the ratio so far that rounding decides the course.
    config = grouped(steps=3, reincarnation_step=0, optimizer__learning_rate=1e-3, **changes)
    learner, state = start(config)
    state, metrics = advance(learner, state, config, 1)
    return state, host(metrics)


MANY = 10**6  # slots that keep a device busy: as many rows as there may be


def test_a_budget_of_tokens_is_a_number_of_rows():
    config = make_config(memory__micro_batch_tokens=3 * (P + T) + 1)
    assert static_of(config).score_rows(MANY) == 3
    assert static_of(config).micro_rows(MANY) == 2, "3 does not divide a mini-batch of 4"
    assert static_of(config).micro_rows(MANY, shards=4) == 4, "no more than the mini-batch"
    config.memory.micro_batch_tokens = P + T - 1
    config.model.path, config.data.train, config.data.suites = "model", "a.json", ("b.json",)
    with pytest.raises(InputError, match=f"hold a row of prompt and response, {P + T} tokens"):
        config_rules.validate(config)
    config.memory.micro_batch_tokens = P + T
    learner, _ = start(config)
    stage, key = stage_of(config, 1), jax.random.key(0)
    batches, _, _ = step._mini_batches(learner.static, stage, key, jnp.zeros(config.passes))
    assert batches.shape == (config.passes * 2, 4)
    assert learner.static.micro_rows(MANY) == 1


def test_float32_masters_with_products_moments_and_anchors_of_bfloat16():
    small = {
        "memory__micro_batch_tokens": P + T,
        "model__compute_dtype": "bfloat16",
        "memory__anchors_dtype": "bfloat16",
        "optimizer__first_moment_dtype": "bfloat16",
    }
    state, metrics = trained(**small)
    exact, exact_metrics = trained()

    def dtypes(tree):
        return {str(x.dtype) for x in jax.tree.leaves(tree)}

    assert dtypes(state.params) == {"float32"}
    assert dtypes(state.base_params) == dtypes(state.prev_params) == {"bfloat16"}
    assert dtypes(state.opt_state[1][0].mu) == {"bfloat16"}
    assert dtypes(state.opt_state[1][0].nu) == {"float32"}
    assert dtypes(exact.base_params) == dtypes(exact.opt_state[1][0].mu) == {"float32"}
    for name in ("loss", "entropy"):
        assert metrics[name] == pytest.approx(exact_metrics[name], rel=0.1, abs=5e-3), name
    # Steps smaller than a bfloat16 weight can take are not lost.
    policy = jax.tree.leaves(state.params)
    assert any((x != x.astype(jnp.bfloat16).astype(jnp.float32)).any() for x in policy)


@pytest.mark.parametrize("wanted", [(1, 1, 1), (1, 4, 2)], ids=["one device", "mesh"])
def test_anchors_rest_in_host_memory(wanted):
    config = make_config(memory__anchors_on_host=True)
    learner, first = start(config)
    mesh = sharding.make_mesh(wanted)
    params = first.params
    if mesh is not None:
        params = jax.device_put(params, sharding.shardings(params, mesh))
    state = place_state(learner, params, config.seed, mesh)
    before = host(state)
    anchors = jax.tree.leaves((state.base_params, state.prev_params))
    size, on_device = sum(x.nbytes for x in anchors), live_bytes("device")
    # `state` is still there, as a run's first one is.
    resting = move_anchors(config, state, "pinned_host")
    assert live_bytes("device") <= on_device - size, "their device memory is free"
    assert live_bytes("pinned_host") == size
    for x in jax.tree.leaves((resting.base_params, resting.prev_params)):
        assert x.sharding.memory_kind == "pinned_host"
    assert {x.sharding.memory_kind for x in jax.tree.leaves(resting.params)} == {"device"}
    back = move_anchors(config, resting, "device")
    assert live_bytes("pinned_host") == 0
    for x, y in zip(jax.tree.leaves(back), jax.tree.leaves(state), strict=True):
        assert x.sharding == y.sharding
    jax.tree.map(np.testing.assert_array_equal, host(back), before)
    assert move_anchors(make_config(), state, "pinned_host") is state


def live_bytes(kind):
    arrays = (x for x in jax.live_arrays() if x.sharding.memory_kind == kind)
    return sum(x.nbytes for x in arrays if not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key))


def test_parameters_of_too_few_bits_are_not_trained():
    config = make_config(model__dtype="bfloat16")
    with pytest.raises(InputError, match=r"set config\.model\.compute_dtype=bfloat16"):
        start(config)
