"""Rows packed into buffers: each lies in one place, and is scored and trained as it is alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from remix_jax.learner import losses
from remix_jax.models import packing, scoring
from remix_jax.rl import masked, off_policy
from remix_jax.types import batch_of, empty_rows, kept_rows
from tests.learner.tiny import POLICY, P, T, V, grouped, make_config, numbers, start

pack = jax.jit(packing.pack, static_argnums=1)
S = P + T - 1


def drawn_rows(seed, n=8, slots=(P, T)):
    """Ragged rows; the last is invalid, one has a hole in its mask, one the same token all over."""
    rng = np.random.default_rng(seed)
    rows = empty_rows(n, *slots)
    prompt_B, response_B = (rng.integers(1, most - 1, n) for most in slots)
    prompt_B[0], response_B[0] = slots
    tokens_BS = rng.integers(0, V, rows.tokens_BS.shape)
    tokens_BS[1] = 0
    return rows.replace(
        tokens_BS=jnp.asarray(tokens_BS, jnp.int32),
        prompt_len_B=jnp.asarray(prompt_B, jnp.int32),
        response_len_B=jnp.asarray(response_B, jnp.int32),
        loss_mask_BT=rows.loss_mask_BT.at[0, 2].set(0.0),
        reward_B=jnp.asarray(rng.normal(size=n), jnp.float32),
        group_B=jnp.arange(n) // 2,
        valid_B=jnp.arange(n) < n - 1,
    )


@pytest.mark.parametrize("seed", range(6))
def test_every_row_lies_in_one_place(seed):
    n = 12
    rows = drawn_rows(seed, n)
    packed = jax.tree.map(np.asarray, pack(rows, 1))
    used = int(packed.used)
    assert packed.source_NS.shape == (n, S)
    assert (packed.source_NS[used:] == -1).all(), "used buffers come first"
    assert (packed.source_NS[:used] >= 0).any(axis=1).all()
    assert (packed.buffer_B[:-1] >= 0).all()
    assert packed.buffer_B[-1] == -1, "a row that does not count lies nowhere"
    taken = 0
    for b in range(n - 1):
        prompt, response = int(rows.prompt_len_B[b]), int(rows.response_len_B[b])
        where = np.argwhere((packed.source_NS >= 0) & (packed.source_NS // S == b))
        assert (where[:, 0] == packed.buffer_B[b]).all()
        slots = packed.source_NS[tuple(where.T)] % S
        assert slots.tolist() == list(range(P - prompt, P + response - 1)), "in order, each once"
        target = packed.target_BT[b]
        assert (target[response:] == -1).all()
        asked = where[-response:]
        assert (target[:response] == asked[:, 0] * T + asked[:, 1] - (P - 1)).all()
        taken += len(where)
    assert taken == (packed.source_NS >= 0).sum() == packed.tokens
    assert used < n - 1, "rows share buffers"


def test_rows_of_one_pass_are_left_alone_and_full_rows_do_not_share():
    rows = drawn_rows(0)
    assert pack(rows, 8).buffer_B.tolist() == [*range(7), -1]
    full = rows.replace(prompt_len_B=jnp.full(8, P), response_len_B=jnp.full(8, T))
    assert sorted(pack(full, 2).buffer_B.tolist()) == [-1, *range(7)]


def test_buffers_are_well_filled_by_the_lengths_of_reasoning():
    """Responses lognormal with a mean of 2,500, cut at 8,192; prompts of up to 1,024."""
    rng = np.random.default_rng(0)
    prompt, cap, shape = 1024, 8192, (40, 32)
    response = np.clip(rng.lognormal(7.467, 0.962, shape), 1, cap).astype(np.int32)
    prompts = rng.integers(64, 512, shape, dtype=np.int32)
    fit = jax.jit(jax.vmap(packing._first_fit, in_axes=(0, 0, None, None)), static_argnums=(2, 3))
    slots = prompt + cap - 1
    buffers, _, _ = fit(prompts, response, slots, cap)
    assert (prompts + response).sum() / (slots * (np.max(buffers, axis=1) + 1).sum()) > 0.85
    assert 0.25 < (prompts + response).mean() / slots < 0.35, "a row in each"


@functools.partial(jax.jit, static_argnums=(0, 3))
def in_passes(model, params, rows, n):
    """Log-probs and entropies of policies, values of critics [B, T], from passes of `n` buffers."""
    packed = packing.pack(rows, n)

    def of_pass(number):
        held = packing.take(packed, rows, number, n)
        if model.head == "value":
            scores = (scoring.score_values(model, params, held),)
        else:
            scores = scoring.score_responses(model, params, held, 1.0)
        return jnp.stack([packing.to_rows(x_NT, held) for x_NT in scores])

    return jax.lax.map(of_pass, jnp.arange(-(-rows.valid_B.shape[0] // n))).sum(axis=0)


def test_scores_are_those_of_each_row_without_padding():
    learner, state = start(make_config())
    rows = drawn_rows(1)
    logp_BT, entropy_BT = np.asarray(in_passes(POLICY, state.params, rows, 2))
    (value_BT,) = np.asarray(in_passes(learner.critic, state.critic_params, rows, 2))
    both = [(POLICY, state.params), (learner.critic, state.critic_params)]
    # One row from its first token on; what follows its last one no token sees.
    run = jax.jit(
        lambda tokens_1S: [
            model.apply({"params": params}, tokens_1S, jnp.arange(P + T)[None], tokens_1S < V)[0]
            for model, params in both
        ]
    )
    for b in range(7):
        prompt, response = int(rows.prompt_len_B[b]), int(rows.response_len_B[b])
        outputs = run(jnp.roll(rows.tokens_BS[b : b + 1], prompt - P, axis=1))
        logits, values = (x[prompt - 1 : prompt - 1 + response] for x in outputs)
        logp = jax.nn.log_softmax(logits)
        tokens = rows.tokens_BS[b, P : P + response]
        said = jnp.take_along_axis(logp, tokens[:, None], axis=1)[:, 0]
        np.testing.assert_allclose(logp_BT[b, :response], said, atol=2e-6)
        entropy = -(jnp.exp(logp) * logp).sum(axis=1)
        np.testing.assert_allclose(entropy_BT[b, :response], entropy, atol=2e-6)
        np.testing.assert_allclose(value_BT[b, :response], values, atol=2e-6)
        assert not logp_BT[b, response:].any()


CASES = {
    "remix ppo": make_config(kl__coef=0.3),
    "sequences": grouped(objective__method="gspo", objective__aggregation="seq-mean-token-mean"),
    "expert rows": grouped(objective__method="chord_phi", expert__bank="bank"),
}


@pytest.mark.parametrize("case", CASES)
def test_gradients_of_packed_rows_are_those_of_padded_ones(case):
    """Losses and all statistics too; `packing.pack` leaves rows of one pass alone."""
    config = CASES[case]
    learner, state = start(config)
    fresh, rng = drawn_rows(2), np.random.default_rng(2)

    def noise(scale=0.3):
        return jnp.asarray(scale * rng.normal(size=(8, T)), jnp.float32)

    expert_B = jnp.arange(8) % 4 == 3 if config.expert.bank else jnp.zeros(8, bool)
    logp_BT = in_passes(POLICY, state.params, fresh, 8)[0]
    fresh = fresh.replace(behav_logp_BT=jnp.where(expert_B[:, None], jnp.nan, logp_BT + noise()))
    rows = kept_rows(fresh, expert_B=expert_B, base_logp_BT=logp_BT + noise())
    known = {"prox_logp_BT": logp_BT + noise(), "prev_logp_BT": logp_BT + noise()}
    known |= {"adv_BT": noise(1), "value_BT": noise(), "return_BT": noise()}
    batch = off_policy.zero_unknown(batch_of(rows, age_B=jnp.arange(8) % 3, **known))
    count = masked.count(batch.mask_BT, config.objective.aggregation)

    @functools.partial(jax.jit, static_argnums=0)
    def of_pass(n, number):
        terms, mini = losses.minibatch_terms(learner, state.params, batch, numbers(config, 0.1))
        held = packing.take(packing.pack(mini, n), mini, number, n)
        mini = off_policy.zero_unknown(mini.replace(valid_B=mini.valid_B & held.here_B))
        given = (learner, held, mini)
        grads, sums = jax.grad(losses.policy_loss, has_aux=True)(
            state.params, *given, terms, 0.4, count, 3
        )
        if learner.critic is None:
            return grads, sums
        critic = jax.value_and_grad(losses.critic_loss)(state.critic_params, *given, count)
        return (grads, critic), sums

    padded, padded_sums = of_pass(8, 0)
    passes = [of_pass(2, i) for i in range(int(pack(batch, 2).passes(2)))]
    assert 1 < len(passes) < 4, "rows share buffers"
    grads = jax.tree.map(lambda *parts: sum(parts), *(grads for grads, _ in passes))
    largest = max(float(abs(x).max()) for x in jax.tree.leaves(padded))
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, atol=1e-6 * max(largest, 1)), grads, padded
    )
    every = {name: jnp.stack([sums[name] for _, sums in passes]) for name in padded_sums}
    sums = losses.totals(every)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=2e-6), sums, padded_sums
    )
    assert float(sums["max_ratio_A"].max()) > 1
