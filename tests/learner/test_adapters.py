"""Adapters in the learner: what moves, what the anchors are, every method, a start from float32."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from remix_jax.errors import InputError
from remix_jax.learner import batch as batches
from remix_jax.learner import losses
from remix_jax.learner.state import abstract_state, init_state, make_learner, reincarnate
from remix_jax.models import lora, packing, scoring
from remix_jax.models.decoder import Decoder
from remix_jax.models.lora import Lora
from remix_jax.rl import family, off_policy
from remix_jax.types import batch_of, kept_rows
from tests.learner.test_family_step import config_of
from tests.learner.test_packed import drawn_rows
from tests.learner.tiny import (
    DEEPER,
    POLICY,
    advance,
    assert_learned_alike,
    fresh_rows,
    grouped,
    host,
    make_config,
    numbers,
    score,
    stage_of,
    start,
)

FIELDS = {"lora__rank": 2, "lora__alpha": 4.0}


def of_full_model(state, adapters, rows, config):
    """Log-probs [B, T] under the plain model that the adapters make."""
    merged = lora.merged(Lora(2, 4.0), state.whole(adapters))
    return np.asarray(score(POLICY, merged, rows, config.sampling.temperature))


@pytest.mark.parametrize(("critic", "steps"), [("adapter", 4), ("full", 1)])
def test_only_adapters_move_and_the_anchors_are_the_models_that_they_stand_for(critic, steps):
    """Over replay, KL-Convex, reincarnation and the on-policy stage."""
    config = make_config(**FIELDS, lora__critic=critic, reincarnation_step=3)
    learner, state = start(config)
    frozen, base = host(state.frozen), host(state.params)
    assert {path[-1] for path in flat(base)} == {"lora_a", "lora_b"}
    names = {path[0] for path in flat(host(state.critic_params))}
    assert ("embed" in names) == (critic == "full")
    for number in range(1, steps + 1):
        if number == 4:
            state = reincarnate(learner, state)
            base = host(state.params)
        rows, began = fresh_rows(config, state, number), host(state.params)
        state, metrics = advance(learner, state, config, number, rows)
        jax.tree.map(np.testing.assert_array_equal, host(state.frozen), frozen)
        jax.tree.map(np.testing.assert_array_equal, host(state.base_params), base)
        jax.tree.map(np.testing.assert_array_equal, host(state.prev_params), began)
        ring = state.replay.rows
        written = (np.asarray(ring.version_B) == number)[:, None] & (np.asarray(ring.mask_BT) > 0)
        assert written.any()
        expected = of_full_model(state, base, ring, config)
        np.testing.assert_allclose(ring.base_logp_BT[written], expected[written], atol=2e-5)
        assert np.isfinite(metrics["loss"])
        moved = jax.tree.map(lambda x, y: np.any(x != y), host(state.params), began)
        assert all(jax.tree.leaves(moved)), "A and B of every matrix"


def test_the_precedent_is_the_model_of_the_step_before():
    """Its log-probs, as the loss reads them, and the critic's values."""
    config = make_config(**FIELDS)
    learner, state = start(config)
    shift = jax.tree.map(lambda x: x + 0.05, state.params)
    state = state.replace(prev_params=shift)
    rows = kept_rows(fresh_rows(config, state, 1))
    rows = jax.tree.map(lambda x: jnp.resize(x, (8, *x.shape[1:])), rows)
    scored = batches.score(learner, stage_of(config, 1), state, batch_of(rows), jnp.zeros(()))
    real = np.asarray(rows.mask_BT) > 0
    expected = of_full_model(state, shift, rows, config)
    np.testing.assert_allclose(scored.prev_logp_BT[real], expected[real], atol=2e-5)
    merged = lora.merged(Lora(2, 4.0), state.whole(state.critic_params))
    critic = Decoder(POLICY.config, head="value")
    held = packing.alone(rows)
    values = packing.to_rows(scoring.score_values(critic, merged, held), held)
    np.testing.assert_allclose(scored.value_BT[real], values[real], atol=2e-5)


def flat(tree):
    return [tuple(k.key for k in path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def test_frozen_layers_that_lie_in_one_array_are_the_same_model():
    """As scanned layers take them: state, metrics and what merges."""
    found = []
    for scanned in (False, True):
        config = grouped(**FIELDS, memory__scan_layers=scanned, kl__convex=False)
        learner, state = start(config, policy=DEEPER)
        if scanned:
            params = lora.held(learner.policy.config, state.whole(state.params))
            state = init_state(learner, params, config.seed)
            assert set(state.frozen) == {"layers", "embed", "final_norm"}
            shapes = jax.tree.map(lambda x: x.shape, (state.frozen, state.params))
            planned = abstract_state(learner)
            assert shapes == jax.tree.map(lambda x: x.shape, (planned.frozen, planned.params))
        rows = fresh_rows(config, state, 1, policy=DEEPER)
        state, metrics = advance(learner, state, config, 1, rows)
        merged = lora.merged(Lora(2, 4.0), state.whole(state.params))
        found.append((host(state.params), host(merged), host(metrics)))
    apart, together = found
    for one, other in zip(apart[:2], together[:2], strict=True):
        assert_learned_alike(other, one, atol=1e-4)
    chex.assert_trees_all_close(together[2], apart[2], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", family.METHODS)
def test_every_method_has_a_gradient_of_adapters(name):
    """Of rows of all ages, an expert's where it takes them; every A and B gets a finite one."""
    config = config_of(name, **FIELDS, lora__targets="/(q|down)$")
    learner, state = start(config)
    fresh, rng = drawn_rows(2), np.random.default_rng(2)

    def noise(scale=0.3):
        return jnp.asarray(scale * rng.normal(size=fresh.mask_BT.shape), jnp.float32)

    expert_B = jnp.arange(8) % 2 == 1 if config.expert_rows else jnp.zeros(8, bool)
    drawn_BT = jnp.where(expert_B[:, None], jnp.nan, noise() - 2)
    fresh = fresh.replace(behav_logp_BT=drawn_BT, sampled_logp_BT=drawn_BT)
    known = {"prox_logp_BT": noise() - 2, "prev_logp_BT": noise() - 2, "adv_BT": noise(1)}
    known |= {"value_BT": noise(), "return_BT": noise(), "age_B": jnp.arange(8) % 3}
    rows = kept_rows(fresh, expert_B=expert_B, base_logp_BT=noise() - 2)
    batch = off_policy.zero_unknown(batch_of(rows, **known))

    @jax.jit
    def gradient(adapters, frozen):
        whole = functools.partial(lora.joined, frozen)
        terms, mini = losses.minibatch_terms(learner, whole(adapters), batch, numbers(config, 0.5))
        given = learner, packing.alone(mini), mini, terms, 1.0, 8.0, 4
        return jax.grad(lambda own: losses.policy_loss(whole(own), *given)[0])(adapters)

    for path, grad in flatten_dict(gradient(state.params, state.frozen)).items():
        assert np.isfinite(grad).all(), path
        assert abs(grad).max() > 0, path


def test_frozen_weights_may_be_bfloat16_or_int8_and_adapters_are_float32():
    config = make_config(**FIELDS, model__dtype="bfloat16", memory__frozen_dtype="int8")
    learner = make_learner(config, POLICY)
    _, plain = start(make_config())
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), plain.params)
    state = init_state(learner, lora.quantized(params), config.seed)
    kinds = {x.dtype.name for x in jax.tree.leaves(state.frozen)}
    assert kinds == {"int8", "bfloat16", "float32"}, "float32: the scales"
    for part in (state.params, state.critic_params, state.base_params, state.prev_params):
        assert {x.dtype.name for x in jax.tree.leaves(part)} == {"float32"}
    rows = fresh_rows(config, state, 1)
    state, metrics = advance(learner, state, config, 1, rows)
    assert np.isfinite(metrics["loss"])
    assert {x.dtype.name for x in jax.tree.leaves(state.params)} == {"float32"}


def test_what_the_model_cannot_have_is_refused_before_anything_is_computed():
    with pytest.raises(InputError, match="targets = 'mlp': matches no matrix"):
        make_learner(make_config(lora__rank=2, lora__targets="mlp"), POLICY)
    sizes = dataclasses.replace(POLICY.config, width=8)
    with pytest.raises(InputError, match="rank = 9"):
        make_learner(make_config(lora__rank=9), type(POLICY)(sizes))
