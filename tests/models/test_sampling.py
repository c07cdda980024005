"""Sampled responses: their log-probs, their distribution, their independence, their ends."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from remix_jax.models import drawing, huggingface
from remix_jax.models.sampling import Prompts, SamplerSettings, Task, draw, sample
from remix_jax.types import positions
from tests.tiny_models import ROWS, decoder_config, random_decoder

VARIANTS = {
    "qwen2": {},
    "qwen3-untied": {
        "architecture": "qwen3",
        "qkv_bias": False,
        "qk_norm": True,
        "tied_embeddings": False,
    },
    "llama-bf16": {"architecture": "llama", "qkv_bias": False, "dtype": "bfloat16"},
}
CUTS = [
    SamplerSettings(top_k=3),
    SamplerSettings(top_p=0.7),
    SamplerSettings(min_p=0.2),
    SamplerSettings(temperature=1.3, top_k=9, top_p=0.8),
    SamplerSettings(temperature=0.8, top_k=12, top_p=0.95, min_p=0.1),
    SamplerSettings(top_k=4, min_p=0.001),
    SamplerSettings(top_p=0.6, min_p=0.001),
    SamplerSettings(top_p=1e-6),
    SamplerSettings(min_p=1.0),
    SamplerSettings(top_k=10_000, top_p=0.9),
]
P, T = 6, 20  # T: three segments of the cache
GREEDY = SamplerSettings(temperature=0.0)


@pytest.fixture(scope="module")
def decoder():
    """Flat enough that responses of one prompt differ."""
    model, params = random_decoder(decoder_config(layers=1))
    return model, jax.tree.map(lambda x: 0.7 * x, params)


def left_padded(lengths, slots=P, seed=0):
    rng = np.random.default_rng(seed)
    prompts_QP = np.zeros((len(lengths), slots), np.int32)
    for q, n in enumerate(lengths):
        prompts_QP[q, slots - n :] = rng.integers(0, ROWS, n)
    return prompts_QP


def run(model, params, prompts_QP, lengths, *, rows=None, active=None, **changes):
    defaults = {"group_size": 1, "response_slots": T, "eos_ids": (), "pad_id": 0}
    options = {**defaults, "settings": SamplerSettings(), **changes}
    task = Task(*np.shape(prompts_QP), **options)
    prompts = Prompts(
        jnp.asarray(prompts_QP),
        jnp.asarray(lengths),
        jnp.arange(task.rows) if rows is None else jnp.asarray(rows),
        jnp.ones(task.rows, bool) if active is None else jnp.asarray(active),
    )
    return jax.device_get(sample(model, params, prompts, jax.random.key(5), task))


def row_mask(sampled):
    slots = np.arange(sampled.tokens_BS.shape[1])[None]
    first = sampled.tokens_BS.shape[1] - sampled.behav_logp_BT.shape[1]
    begin, end = first - sampled.prompt_len_B[:, None], first + sampled.response_len_B[:, None]
    return (slots >= begin) & (slots < end)


def teacher_forced(model, params, sampled, temperature=1.0):
    """float64 log-softmax at the response tokens [B, T], garbage beyond the length."""
    mask_BS = jnp.asarray(row_mask(sampled))
    inputs = (jnp.asarray(sampled.tokens_BS), positions(mask_BS), mask_BS)
    logits = np.asarray(jax.jit(model.apply)({"params": params}, *inputs), np.float64) / temperature
    slots = sampled.behav_logp_BT.shape[1]
    logits, tokens = logits[:, -slots - 1 : -1], sampled.tokens_BS[:, -slots:]
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return np.take_along_axis(logp, tokens[:, :, None], axis=2)[:, :, 0]


def response_mask(sampled):
    return np.arange(sampled.behav_logp_BT.shape[1])[None] < sampled.response_len_B[:, None]


def kept_probabilities(logits_V, settings):
    """The truncated distribution by an explicit walk down the ranking, float64."""
    logits_V = np.asarray(logits_V, np.float64) / settings.temperature
    p = np.exp(logits_V - logits_V.max())
    ranking = np.argsort(-p, kind="stable")
    if settings.top_k:
        ranking = ranking[: settings.top_k]
    share, total, kept = 0.0, p[ranking].sum(), []
    for token in ranking:
        if share < settings.top_p:
            kept.append(token)
        share += p[token] / total
    kept = [token for token in kept if p[token] >= settings.min_p * p.max()]
    out = np.zeros_like(p)
    out[kept] = p[kept] / p[kept].sum()
    return out


@pytest.mark.parametrize("variant", VARIANTS)
def test_decoding_agrees_with_teacher_forcing(variant):
    model, params = random_decoder(decoder_config(**VARIANTS[variant]))
    lengths, tolerance = [6, 1, 3], 2e-2 if "bf16" in variant else 1e-4
    # pad_id is one of the end tokens: only lengths can tell padding from an end.
    sampled = run(
        model,
        params,
        left_padded(lengths),
        lengths,
        group_size=4,
        settings=SamplerSettings(temperature=0.8),
        eos_ids=(0, 7),
    )
    mask_BT = response_mask(sampled)
    assert len(set(sampled.response_len_B)) > 1
    want_BT = teacher_forced(model, params, sampled, temperature=0.8)
    np.testing.assert_allclose(sampled.behav_logp_BT[mask_BT], want_BT[mask_BT], atol=tolerance)
    np.testing.assert_array_equal(sampled.sampled_logp_BT, sampled.behav_logp_BT)


def test_a_group_shares_a_prefill_without_effect(decoder):
    lengths = [6, 2]
    prompts_QP = left_padded(lengths)
    shared = run(*decoder, prompts_QP, lengths, group_size=3)
    alone = run(*decoder, np.repeat(prompts_QP, 3, axis=0), np.repeat(lengths, 3))
    np.testing.assert_array_equal(shared.tokens_BS, alone.tokens_BS)
    np.testing.assert_array_equal(shared.prompt_len_B, alone.prompt_len_B)
    np.testing.assert_allclose(shared.behav_logp_BT, alone.behav_logp_BT, atol=1e-5)
    responses = shared.tokens_BS[:, P:]
    assert len({tuple(row) for row in responses}) == 6


def test_a_response_depends_on_its_prompt_and_its_row_id_only(decoder):
    lengths = [6, 2, 4]
    prompts_QP = left_padded(lengths)
    together = run(*decoder, prompts_QP, lengths, rows=[10, 11, 12])
    wider = np.pad(prompts_QP[2:], ((0, 0), (5, 0)), constant_values=9)
    apart = run(*decoder, wider, lengths[2:], rows=[12])
    np.testing.assert_array_equal(apart.tokens_BS[0, P + 5 :], together.tokens_BS[2, P:])
    np.testing.assert_allclose(apart.behav_logp_BT[0], together.behav_logp_BT[2], atol=1e-5)
    other = run(*decoder, wider, lengths[2:], rows=[13])
    assert (other.tokens_BS != apart.tokens_BS).any()


def test_responses_end_at_any_end_token(decoder):
    lengths, eos_ids, pad_id = [6, 2, 4], (3, 41), 59
    prompts_QP = left_padded(lengths)
    free = run(*decoder, prompts_QP, lengths, group_size=8)
    ended = run(*decoder, prompts_QP, lengths, group_size=8, eos_ids=eos_ids, pad_id=pad_id)
    ends = {"eos": set(), "limit": 0}
    for b in range(24):
        response = free.tokens_BS[b, P:]
        hits = np.flatnonzero(np.isin(response, eos_ids))
        n = hits[0] + 1 if len(hits) else T
        assert ended.response_len_B[b] == n
        assert ended.ended_B[b] == bool(len(hits))
        np.testing.assert_array_equal(ended.tokens_BS[b, P : P + n], response[:n])
        np.testing.assert_array_equal(ended.tokens_BS[b, P + n :], np.full(T - n, pad_id))
        np.testing.assert_array_equal(ended.behav_logp_BT[b, n:], np.zeros(T - n))
        np.testing.assert_array_equal(ended.sampled_logp_BT[b, n:], np.zeros(T - n))
        ends["eos"] |= set(response[hits[:1]])
        ends["limit"] += not len(hits)
    assert ends["eos"] == set(eos_ids)
    assert ends["limit"] > 0


def test_the_loop_stops_with_the_last_row(decoder):
    lengths = [6, 2]
    every_token = tuple(range(ROWS))
    at_once = run(*decoder, left_padded(lengths), lengths, eos_ids=every_token)
    assert at_once.steps == 1
    some = run(*decoder, left_padded(lengths), lengths, eos_ids=tuple(range(0, ROWS, 3)))
    assert some.steps == some.response_len_B.max() < T


def test_inactive_rows_get_nothing_and_change_nothing(decoder):
    lengths, options = [6, 2], {"group_size": 2, "eos_ids": (3,), "pad_id": 59}
    prompts_QP = left_padded(lengths)
    full = run(*decoder, prompts_QP, lengths, **options)
    part = run(*decoder, prompts_QP, lengths, active=[True, False, False, True], **options)
    np.testing.assert_array_equal(part.response_len_B[1:3], [0, 0])
    np.testing.assert_array_equal(part.ended_B[1:3], [False, False])
    np.testing.assert_array_equal(part.tokens_BS[1:3, P:], np.full((2, T), 59))
    np.testing.assert_array_equal(part.behav_logp_BT[1:3], np.zeros((2, T)))
    for b in (0, 3):
        np.testing.assert_array_equal(part.tokens_BS[b], full.tokens_BS[b])
        assert part.response_len_B[b] == full.response_len_B[b] > 0


def test_greedy_takes_the_most_probable_token(decoder):
    model, params = decoder
    lengths = [6, 2]
    sampled = run(*decoder, left_padded(lengths), lengths, settings=GREEDY)
    mask_BS = jnp.asarray(row_mask(sampled))
    inputs = (jnp.asarray(sampled.tokens_BS), positions(mask_BS), mask_BS)
    logits_BSV = jax.jit(model.apply)({"params": params}, *inputs)
    np.testing.assert_array_equal(sampled.tokens_BS[:, P:], logits_BSV.argmax(-1)[:, P - 1 : -1])
    want_BT = teacher_forced(model, params, sampled)
    np.testing.assert_allclose(sampled.behav_logp_BT, want_BT, atol=1e-4)
    np.testing.assert_array_equal(sampled.sampled_logp_BT, sampled.behav_logp_BT)
    cut = SamplerSettings(temperature=0.0, top_k=2, top_p=0.5, min_p=0.1)
    assert not cut.truncates


@pytest.mark.parametrize("name", ["qwen2_tied", "qwen3_untied_sharded", "llama_tied_rope3"])
def test_greedy_equals_torch(goldens, name):
    vectors = np.load(goldens / "models" / f"{name}.npz")
    model, params = huggingface.load(str(goldens / "models" / name))
    pad_id = json.loads((goldens / "models" / name / "config.json").read_text())["pad_token_id"]
    prompts, mask = vectors["gen/input_ids"], vectors["gen/attention_mask"]
    options = {"response_slots": 32, "settings": GREEDY, "pad_id": pad_id}
    free = run(model, params, prompts, mask.sum(1), **options)
    np.testing.assert_array_equal(free.tokens_BS[:, -32:], vectors["gen/greedy32"])
    np.testing.assert_allclose(free.behav_logp_BT, vectors["gen/greedy32_logp"], atol=1e-4)
    eos_ids = (int(vectors["gen/stop_eos_id"]),)
    stopped = run(model, params, prompts, mask.sum(1), eos_ids=eos_ids, **options)
    np.testing.assert_array_equal(stopped.tokens_BS[:, -32:], vectors["gen/greedy32_stop"])
    np.testing.assert_array_equal(stopped.response_len_B, vectors["gen/stop_lengths"])


@pytest.mark.parametrize("settings", CUTS, ids=str)
def test_truncated_draws_lie_in_the_allowed_set(settings):
    logits_BV = 2.0 * np.random.default_rng(0).normal(size=(5, 24)).astype(np.float32)
    repeats = 300
    keys_N = jax.random.split(jax.random.key(1), 5 * repeats)
    token_N, logp_N, sampled_logp_N = jax.device_get(
        draw(jnp.repeat(logits_BV, repeats, axis=0), keys_N, settings)
    )
    for b, logits_V in enumerate(logits_BV):
        here = slice(b * repeats, (b + 1) * repeats)
        tokens, kept_V = token_N[here], kept_probabilities(logits_V, settings)
        full_V = kept_probabilities(logits_V, SamplerSettings(settings.temperature))
        assert set(tokens) <= set(np.flatnonzero(kept_V))
        assert set(np.flatnonzero(kept_V > 0.05)) <= set(tokens)
        np.testing.assert_allclose(sampled_logp_N[here], np.log(kept_V[tokens]), atol=1e-5)
        np.testing.assert_allclose(logp_N[here], np.log(full_V[tokens]), atol=1e-5)


def test_a_gpu_s_one_reduction_finds_the_same():
    """Ties go to the first token, what is cut away (-inf) never wins, large logits do not spill."""
    logits_BV = 40.0 * np.random.default_rng(0).normal(size=(6, 515)).astype(np.float32)
    score_BV = np.round(logits_BV / 20)
    score_BV[1, 100:] = -np.inf
    logits_BV[2] += 1e4
    given = jnp.asarray(score_BV), jnp.asarray(logits_BV)
    got, want = (jax.jit(f)(*given) for f in (drawing._in_one_pass, drawing._by_elements))
    assert (score_BV == score_BV.max(1, keepdims=True)).sum(1).max() > 1
    np.testing.assert_array_equal(got[0], score_BV.argmax(1))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), got, want)


def test_tied_logits_are_kept_together():
    logits_BV = jnp.asarray([[2.0, 1.0, 1.0, 1.0, 0.0]])
    keys = jax.random.split(jax.random.key(0), 200)
    token_N, _, _ = draw(jnp.repeat(logits_BV, 200, axis=0), keys, SamplerSettings(top_k=2))
    assert set(np.asarray(token_N)) == {0, 1, 2, 3}


@pytest.mark.parametrize(
    "settings", [SamplerSettings(), SamplerSettings(0.7), SamplerSettings(1.2, top_k=6, top_p=0.9)]
)
def test_frequencies_match_probabilities(settings):
    n = 20_000
    logits_V = np.random.default_rng(3).normal(size=10).astype(np.float32)
    keys_N = jax.random.split(jax.random.key(2), n)
    token_N, _, _ = draw(jnp.tile(logits_V, (n, 1)), keys_N, settings)
    expected_V = n * kept_probabilities(logits_V, settings)
    counts_V = np.bincount(token_N, minlength=10)
    kept = expected_V > 0
    assert counts_V[~kept].sum() == 0
    chi_square = ((counts_V - expected_V)[kept] ** 2 / expected_V[kept]).sum()
    degrees = kept.sum() - 1
    assert chi_square < degrees + 4 * np.sqrt(2 * degrees)  # 4 standard deviations


def test_tokens_of_a_row_are_drawn_independently():
    # A model without a say: all logits are zero, so that only the random streams decide.
    model, params = random_decoder(decoder_config(vocab_size=4, layers=1))
    params = jax.tree.map(jnp.zeros_like, params)
    B = 400
    sampled = run(model, params, np.zeros((B, 2), np.int32), [2] * B, response_slots=8)
    tokens_BT = sampled.tokens_BS[:, 2:]
    for first, second in (
        (tokens_BT[:, :-1], tokens_BT[:, 1:]),  # successive tokens of a row
        (tokens_BT[:-1], tokens_BT[1:]),  # the same token of neighbours
    ):
        counts = np.bincount((4 * first + second).ravel(), minlength=16)
        expected = first.size / 16
        assert ((counts - expected) ** 2 / expected).sum() < 15 + 4 * np.sqrt(30)


def test_no_sort_is_compiled_unless_something_is_cut():
    logits_BV, keys_B = jnp.zeros((2, 8)), jax.random.split(jax.random.key(0), 2)

    def program(settings):
        return str(jax.make_jaxpr(lambda x, k: draw(x, k, settings))(logits_BV, keys_B))

    assert " sort[" in program(SamplerSettings(top_p=0.9))
    for settings in (SamplerSettings(0.7), GREEDY, SamplerSettings(min_p=0.1)):
        assert " sort[" not in program(settings)
        assert "top_k[" not in program(settings)
