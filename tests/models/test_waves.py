"""Rows that are decoded in waves get the responses of one batch, within a bound on the cache."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from launch import hlo, jaxpr_flops
from remix_jax import sharding
from remix_jax.models.decoder import Decoder, Execution
from remix_jax.models.sampling import SamplerSettings, Waves, in_waves
from remix_jax.rollout import sampler
from remix_jax.rollout.sampler import Prompts, Task
from tests.tiny_models import ROWS, decoder_config, random_decoder

P, T = 6, 12  # T: two segments of the cache
SLOTS = P + T
SETTINGS = SamplerSettings(temperature=0.7, top_p=0.9)


@pytest.mark.parametrize("shards", [1, 4, 8, 6])
@pytest.mark.parametrize("group_size", [1, 2, 6, 8])
def test_waves_hold_every_row_and_no_more_than_the_budget(group_size, shards):
    for groups in (1, 3, 8, 13, 154):
        for on_device in (0, 1, 3, 16):
            budget = on_device * SLOTS + 5
            waves = in_waves(groups, group_size, SLOTS, budget if on_device else 0, shards)
            rows = groups * group_size
            assert group_size % waves.group_size == 0, "whole groups, or equal parts of one"
            assert waves.rows % shards == 0, "every device decodes as many"
            assert waves.number * waves.rows >= rows
            assert (waves.number - 1) * waves.rows < rows, "no wave is empty"
            if on_device:
                assert waves.rows // shards <= on_device
            else:
                assert (waves.number, waves.group_size) == (1, group_size)
            if shards == 1 and waves.group_size == group_size:
                most = on_device // group_size or groups
                assert waves.number == math.ceil(groups / most)
                assert waves.groups == math.ceil(groups / waves.number), "equal ones"


def test_waves_of_the_presets():
    # (groups, rows of a group, budget of rows, devices) -> waves
    assert in_waves(256, 1, 8958, 16 * 9216, 16) == Waves(1, 256, 1)
    assert in_waves(154, 1, 8958, 16 * 9216, 16) == Waves(1, 160, 1)
    assert in_waves(154, 1, 8958, 8 * 9216, 8) == Waves(3, 56, 1)
    assert in_waves(256, 8, 8958, 16 * 9216, 16) == Waves(8, 32, 8)
    assert in_waves(128, 8, 15_512, 8 * 15_872, 16) == Waves(8, 16, 8)
    assert in_waves(2, 64, 8958, 16 * 9216, 1) == Waves(8, 1, 16), "parts of a group"
    with pytest.raises(ValueError, match="17 slots have no room for a row of 18"):
        in_waves(4, 1, SLOTS, SLOTS - 1)


def some(Q, G, inactive=()):
    """Prompts, lengths, row ids and active rows."""
    rng = np.random.default_rng(0)
    active_B = np.ones(Q * G, bool)
    active_B[list(inactive)] = False
    ids_B = np.arange(Q * G, dtype=np.int32) + 7
    lengths_Q = rng.integers(1, P + 1, Q).astype(np.int32)
    return Prompts(rng.integers(4, ROWS, (Q, P)).astype(np.int32), lengths_Q, ids_B, active_B)


@pytest.fixture(scope="module")
def decoder():
    """Flat enough that responses of one prompt differ."""
    model, params = random_decoder(decoder_config(tied_embeddings=False, layers=1))
    return model.config, jax.tree.map(lambda x: 0.7 * x, params)


def decoding(sizes, tokens):
    return Decoder(dataclasses.replace(sizes, execution=Execution(decode_tokens=tokens)))


def task(Q, G):
    return Task(Q, P, G, T, SETTINGS, eos_ids=(7, 9, 30), pad_id=0)


def compiled(sizes, Q, G=1, tokens=0, mesh=None):
    return sampler.compiled(decoding(sizes, tokens), task(Q, G), mesh)


def sampled(decoder, given, G, tokens=0, mesh=None):
    sizes, params = decoder
    if mesh is not None:
        params = jax.device_put(params, sharding.shardings(params, mesh))
    draw = compiled(sizes, len(given.prompt_len_Q), G, tokens, mesh)
    return jax.device_get(draw(params, given, jax.random.key(3)))


def assert_same(got, want):
    for name in ("tokens_BS", "prompt_len_B", "response_len_B", "ended_B"):
        np.testing.assert_array_equal(getattr(got, name), getattr(want, name), name)
    np.testing.assert_array_equal(got.loss_mask_BT, want.loss_mask_BT)
    for name in ("behav_logp_BT", "sampled_logp_BT"):
        np.testing.assert_allclose(getattr(got, name), getattr(want, name), atol=2e-5)


# (prompts, rows of a group, rows at once, rows of the waves that follow)
CASES = {
    "groups, the last wave not full": (5, 2, 4, [range(4), range(4, 8), range(8, 10)]),
    "parts of a group": (2, 6, 4, [range(3), range(3, 6), range(6, 9), range(9, 12)]),
}


@pytest.mark.parametrize("case", CASES)
def test_responses_are_those_of_one_batch(case, decoder):
    Q, G, at_once, waves = CASES[case]
    given = some(Q, G, inactive=(1, Q * G - 2, Q * G - 1))
    want = sampled(decoder, given, G)
    got = sampled(decoder, given, G, at_once * SLOTS)
    assert_same(got, want)
    assert 0 < want.response_len_B[[0, *range(2, Q * G - 2)]].min() < T
    assert len({row.tobytes() for row in want.tokens_BS[:, P:]}) > Q * G // 2
    # Each wave ends with the last of its own rows.
    assert got.steps == sum(max(want.response_len_B[list(rows)].max(), 1) for rows in waves)


@pytest.mark.parametrize(
    ("wanted", "Q", "G", "on_device"),
    [((1, 8, 1), 13, 1, 0), ((2, 2, 2), 9, 2, 4), ((1, 8, 1), 3, 4, 1)],
    ids=["13 rows", "waves of groups", "few prompts"],
)
def test_rows_that_do_not_divide_over_eight_devices(wanted, Q, G, on_device, decoder):
    given = some(Q, G, inactive=(4,))
    mesh = sharding.make_mesh(wanted)
    got = sampled(decoder, given, G, on_device * SLOTS, mesh)
    assert_same(got, sampled(decoder, given, G))


def test_rows_that_do_not_divide_cost_no_exchange(decoder):
    """Logits and noise of 13 rows stay where the rows are, as those of 16 do."""
    mesh = sharding.make_mesh((1, 8, 1))
    uneven, even = (
        hlo.Program(compiled(decoder[0], Q, mesh=mesh).program.call.as_text()).traffic(T / 2)
        for Q in (13, 16)
    )
    assert uneven.received == even.received
    assert uneven.calls == even.calls


def test_a_wave_costs_what_a_batch_of_its_size_costs():
    """Memory is that of one wave; products and traffic are those of all."""
    sizes = decoder_config(layers=1, head_dim=128)
    slot = 2 * sizes.layers * sizes.kv_heads * sizes.head_dim * 4
    many, few, trips = 64, 8, 5
    shapes = {"at once": (many, 0), "waves": (many, few * SLOTS), "one wave": (few, few * SLOTS)}
    temporary, traffic, products = {}, {}, {}
    for name, (rows, tokens) in shapes.items():
        program = compiled(sizes, rows, tokens=tokens).program
        temporary[name] = program.temporary_bytes
        traffic[name] = hlo.Program(program.call.as_text()).traffic(trips).memory
        traced = sampler.trace(decoding(sizes, tokens), task(rows, 1))
        products[name] = jaxpr_flops.count(traced.jaxpr, trips)
    assert temporary["at once"] > many * SLOTS * slot
    assert few * SLOTS * slot < temporary["waves"] < 1.2 * temporary["one wave"]
    assert products["waves"] == products["at once"] == many // few * products["one wave"]
    assert traffic["waves"] == pytest.approx(many // few * traffic["one wave"], rel=0.2)
