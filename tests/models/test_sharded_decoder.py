"""Sampling and scoring on a mesh give what one device gives, also where rows do not divide."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from remix_jax import sharding
from remix_jax.models import packing
from remix_jax.models.decoder import Decoder, Execution
from remix_jax.models.sampling import SamplerSettings
from remix_jax.models.scoring import score_responses
from remix_jax.rollout import sampler
from remix_jax.rollout.sampler import Prompts, Task
from tests.learner.tiny import P, T, fresh_rows, make_config, start
from tests.tiny_models import decoder_config, random_decoder

CUT = Execution(scan_layers=True, remat=True, logit_slots=4, logit_entries=16)


def onto(tree, mesh):
    return tree if mesh is None else jax.device_put(tree, sharding.shardings(tree, mesh))


@pytest.mark.parametrize("wanted", [(2, 2, 2)])
def test_responses_are_those_of_one_device(wanted):
    """Three prompts of two rows each: neither divides over four devices."""
    policy, params = random_decoder(decoder_config(tied_embeddings=False))
    rng = np.random.default_rng(0)
    prompts = rng.integers(4, 50, (3, P)).astype(np.int32)
    active_B = np.array([1, 1, 1, 1, 1, 0], bool)
    lengths = np.array([5, 2, 4], np.int32)
    given = Prompts(prompts, lengths, np.arange(6, dtype=np.int32), active_B)
    task = Task(3, P, 2, T, SamplerSettings(temperature=0.7, top_p=0.9), eos_ids=(7,), pad_id=0)
    drawn = []
    for mesh in (None, sharding.make_mesh(wanted)):
        draw = sampler.compiled(policy, task, mesh)
        drawn.append(draw(onto(params, mesh), given, jax.random.key(3)))
    alone, spread = drawn
    for name in ("tokens_BS", "response_len_B", "ended_B"):
        np.testing.assert_array_equal(getattr(alone, name), getattr(spread, name))
    np.testing.assert_allclose(alone.behav_logp_BT, spread.behav_logp_BT, atol=2e-5)
    np.testing.assert_allclose(alone.sampled_logp_BT, spread.sampled_logp_BT, atol=2e-5)
    assert len(set(np.asarray(alone.tokens_BS)[:, P])) > 2, "rows differ"
    assert spread.tokens_BS.sharding.is_fully_replicated


@pytest.mark.parametrize("execution", [Execution(), CUT], ids=["plain", "cut"])
def test_scores_and_gradients_are_those_of_one_device(execution):
    policy, params = random_decoder(decoder_config())
    policy = Decoder(dataclasses.replace(policy.config, execution=execution))
    config = make_config()
    rows = fresh_rows(config, start(config)[1], 1)
    rows = jax.tree.map(lambda x: x[:4], rows)

    def total(params, rows):
        held = packing.alone(rows)
        scores = score_responses(policy, params, held, 0.8)
        logp_BT, entropy_BT = (packing.to_rows(x_NT, held) for x_NT in scores)
        return (logp_BT - 0.1 * entropy_BT).mean(), (logp_BT, entropy_BT)

    found = []
    for mesh in (None, sharding.make_mesh((2, 2, 2))):
        given = jax.tree.map(lambda x, mesh=mesh: sharding.put(x, mesh), rows)
        with sharding.over(mesh):
            grads, scores = jax.jit(jax.grad(total, has_aux=True))(onto(params, mesh), given)
        found.append((grads, scores))
    jax.tree.map(
        lambda one, eight: np.testing.assert_allclose(one, eight, rtol=2e-4, atol=2e-5), *found
    )
    assert float(jnp.abs(found[0][0]["layers_0"]["q"]["kernel"]).max()) > 1e-3
