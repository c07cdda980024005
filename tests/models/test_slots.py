"""Rows that take turns in few slots get the responses of one batch, within a bound on the cache."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from launch import hlo
from remix_jax import sharding
from remix_jax.models import attention, flash_decoding
from remix_jax.models.decoder import Decoder, Execution
from remix_jax.models.sampling import Begun, SamplerSettings
from remix_jax.models.slots import in_slots
from remix_jax.rollout import sampler
from remix_jax.rollout.sampler import Prompts, Task
from tests.tiny_models import ROWS, decoder_config, random_decoder

P, T = 6, 18  # T: five segments of the cache, the last not whole
SLOTS = P + T
SETTINGS = SamplerSettings(temperature=0.7, top_p=0.9)


@pytest.mark.parametrize("shards", [1, 4, 8, 6])
@pytest.mark.parametrize("group_size", [1, 2, 6, 8])
def test_slots_hold_every_row_and_no_more_than_the_budget(group_size, shards):
    for groups in (1, 3, 8, 13, 154):
        for on_device in (0, 1, 3, 16):
            budget = on_device * SLOTS + 5
            plan = in_slots(groups, group_size, P, T, budget if on_device else 0, shards)
            rows = groups * group_size
            assert plan.devices * plan.rows >= rows
            assert group_size % plan.group_size == 0, "whole groups, or equal parts of one"
            assert plan.group_size == group_size or groups < shards
            assert plan.prompts % plan.pieces == 0
            assert plan.loops[-1].slots >= 1
            assert plan.loops[-1].enough == 0
            if on_device:
                assert plan.number <= on_device


def test_slots_of_the_presets():
    paper = in_slots(256, 1, 766, 8192, 64 * 9216)
    assert (paper.segment, [loop.slots for loop in paper.loops]) == (128, [65, 32, 16, 8])
    assert (paper.prompts, paper.pieces) == (260, 13), "pieces of 16,384 slots at most"
    assert in_slots(154, 1, 766, 8192, 16 * 9216, 16).number == 10, "no more than there are rows"
    few = in_slots(2, 64, 766, 8192, 16 * 9216, 8)
    assert (few.prompts, few.group_size, few.rows) == (1, 16, 16), "parts of a group"
    with pytest.raises(ValueError, match="23 slots have no room for a row of 24"):
        in_slots(4, 1, P, T, SLOTS - 1)


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


def task(Q, G, budget=0):
    return Task(Q, P, G, T, SETTINGS, eos_ids=(7, 9, 30), pad_id=0, budget=budget)


def compiled(sizes, Q, G=1, budget=0, mesh=None):
    return sampler.compiled(Decoder(sizes), task(Q, G, budget), mesh)


def sampled(decoder, given, G, budget=0, mesh=None):
    sizes, params = decoder
    if mesh is not None:
        params = jax.device_put(params, sharding.shardings(params, mesh))
    draw = compiled(sizes, len(given.prompt_len_Q), G, budget, mesh)
    return jax.device_get(draw(params, given, jax.random.key(3)))


def assert_same(got, want):
    for name in ("tokens_BS", "prompt_len_B", "response_len_B", "ended_B"):
        np.testing.assert_array_equal(getattr(got, name), getattr(want, name), name)
    np.testing.assert_array_equal(got.loss_mask_BT, want.loss_mask_BT)
    for name in ("behav_logp_BT", "sampled_logp_BT"):
        np.testing.assert_allclose(getattr(got, name), getattr(want, name), atol=2e-5)


# (prompts, rows of a group, slots)
CASES = [(5, 2, 4), (2, 6, 3), (9, 1, 1)]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_responses_are_those_of_one_batch(case, decoder):
    Q, G, number = case
    given = some(Q, G, inactive=(1, Q * G - 2, Q * G - 1))
    want = sampled(decoder, given, G)
    got = sampled(decoder, given, G, number * SLOTS)
    assert_same(got, want)
    length_B = want.response_len_B
    assert 0 < length_B[given.active_B].min() < length_B.max() == T
    assert len({row.tobytes() for row in want.tokens_BS[:, P:]}) > Q * G // 2
    assert (got.steps, got.slot_steps, got.drain_slot_steps) == run_through(
        length_B[given.active_B], in_slots(Q, G, P, T, number * SLOTS)
    )


@pytest.mark.parametrize("kind", ["splash", "cudnn"])
def test_a_kernel_finds_what_each_slot_has_filled(kind, decoder, monkeypatch):
    """Those of TPUs and GPUs, in JAX's interpreter, in a cache that is longer for it."""
    given = some(9, 1, inactive=(1, 7, 8))
    want = sampled(decoder, given, 1)
    name = {"splash": "tpu", "cudnn": "gpu"}[kind]
    kernel = functools.partial(getattr(flash_decoding, name), interpret=True)
    monkeypatch.setattr(flash_decoding, name, kernel)
    sizes = dataclasses.replace(decoder[0], execution=Execution(attention=kind))
    monkeypatch.setattr(attention, "for_slots", lambda kind, slots: ("plain", slots))
    monkeypatch.setattr(attention, "LONG", 8)
    assert_same(sampled((sizes, decoder[1]), given, 1, 3 * SLOTS), want)


def run_through(lengths, plan):
    """(steps, slot-steps, those of the drain) by a queue that is worked off on paper."""
    waiting, live, steps, slot_steps, drained = list(lengths), [], 0, 0, 0
    for loop in plan.loops:
        while waiting or len(live) > loop.enough:
            while waiting and len(live) < loop.slots:
                live.append(waiting.pop(0))
            taken = min(plan.segment, max(live))
            steps, slot_steps = steps + taken, slot_steps + taken * loop.slots
            drained += 0 if waiting else taken * loop.slots
            live = [left - taken for left in live if left > taken]
    return steps, slot_steps, drained


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
        hlo.Program(compiled(decoder[0], Q, mesh=mesh).program.call.as_text()).traffic(2, T / 2)
        for Q in (13, 16)
    )
    assert uneven.received == even.received
    assert uneven.calls == even.calls


@pytest.mark.parametrize("mesh", [None, (1, 8, 1)], ids=["one device", "eight"])
def test_what_is_carried_over_goes_on_as_if_nothing_had_been(decoder, mesh):
    """With the same policy and key: step after step, the tokens of one batch."""
    Q, G, sizes = 6, 2, decoder[0]
    given = some(Q, G, inactive=(1,))
    want = sampled(decoder, given, G)
    mesh = mesh and sharding.make_mesh(mesh)
    params = decoder[1]
    if mesh is not None:
        params = jax.device_put(params, sharding.shardings(params, mesh))
    carrying = dataclasses.replace(task(Q, G, 4 * SLOTS), carry=True)
    draw = sampler.compiled(Decoder(sizes), carrying, mesh)
    nothing_BT = np.zeros((Q * G, T), np.float32)
    length_B = np.zeros(Q * G, np.int32)
    begun = Begun(nothing_BT.astype(np.int32), nothing_BT, nothing_BT, length_B, length_B > 0)
    finished, before = [], 0
    for _ in range(Q):
        done_B = np.asarray(begun.ended_B) | (np.asarray(begun.length_B) >= T)
        left = given._replace(active_B=given.active_B & ~done_B, begun=begun)
        whole = (done_B | ~given.active_B).reshape(Q, G).all(axis=1).sum()
        got = jax.device_get(
            draw(params, left._replace(groups=np.int32(whole + 2)), jax.random.key(3))
        )
        begun = Begun(got.tokens_BS[:, P:], *got[3:5], got.response_len_B, got.ended_B)
        assert got.response_len_B.sum() >= before
        before = got.response_len_B.sum()
        finished.append((got.ended_B | (got.response_len_B >= T)).reshape(Q, G).all(axis=1).sum())
        if finished[-1] == Q - 1:  # the group with an empty row never counts
            break
    assert len(finished) > 1, "it ended early at least once"
    assert_same(got, want)


def test_no_cache_moves_between_devices(decoder):
    """The loops exchange predicates alone; caches, queues and results stay where they are."""
    sizes, mesh = decoder[0], sharding.make_mesh((1, 8, 1))
    program = compiled(sizes, 16, budget=SLOTS, mesh=mesh).program
    moved = hlo.Program(program.call.as_text()).traffic(1, 1)
    a_row_of_cache = 2 * sizes.layers * sizes.kv_heads * sizes.head_dim * 4 * SLOTS
    whole_results = 16 * (SLOTS + 4 * T + 4) * 4
    weights = sum(x.size * 4 for x in jax.tree.leaves(decoder[1]))
    assert sum(moved.received.values()) < whole_results + weights + a_row_of_cache


def test_few_slots_take_little_memory():
    sizes = decoder_config(layers=1, head_dim=128)
    row = 2 * sizes.layers * sizes.kv_heads * sizes.head_dim * 4
    taken = {
        number: compiled(sizes, 64, budget=number * SLOTS).program.temporary_bytes
        for number in (8, 64)
    }
    assert taken[64] - taken[8] > 56 * SLOTS * row
    assert 8 * SLOTS * row + 64 * P * row < taken[8] < 0.5 * taken[64]
