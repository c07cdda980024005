"""The learning phase against a plain transcription, and the relations that must hold exactly."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from remix_jax.learner.state import fault_names, reincarnate
from remix_jax.learner.step import SHOWN, SHOWN_REPLAYED
from remix_jax.rl import replay, schedules
from remix_jax.types import positions, token_mask
from tests.learner.tiny import (
    POLICY,
    P,
    T,
    advance,
    assert_learned_alike,
    fresh_rows,
    grouped,
    host,
    make_config,
    start,
)


@jax.jit
def plain_logps(params, rows):
    """Log-probs and entropies of response tokens by full logits and log_softmax."""
    mask = token_mask(rows)
    logits = POLICY.apply({"params": params}, rows.tokens_BS, positions(mask), mask)
    logp = jax.nn.log_softmax(logits)[:, P - 1 : P + T - 1]
    entropy = -(jnp.exp(logp) * logp).sum(-1)
    return jnp.take_along_axis(logp, rows.tokens_BS[:, P:, None], axis=2)[..., 0], entropy


@functools.partial(jax.jit, static_argnums=0)
def plain_values(critic, params, rows):
    mask = token_mask(rows)
    values = critic.apply({"params": params}, rows.tokens_BS, positions(mask), mask)
    return values[:, P - 1 : P + T - 1]


def k3(logp, anchor):
    return jnp.exp(anchor - logp) - (anchor - logp) - 1


def plain_step(learner, config, before, rows, age, step):
    """One pass, one mini-batch of the given rows: new policy and critic, from the equations."""
    mask = np.asarray(rows.mask_BT)
    count = mask.sum()
    lam = float(schedules.kl_convex_weight(step, config.kl.start, config.kl.every))
    prox, _ = plain_logps(before.params, rows)
    base, _ = plain_logps(before.base_params, rows)
    prev, _ = plain_logps(before.prev_params, rows)
    prox = jnp.where(jnp.asarray(age)[:, None] == 0, rows.behav_logp_BT, prox)
    adv = returns = value = None

    def kl_convex(logp):
        return lam * k3(logp, base) + (1 - lam) * k3(logp, prev)

    if learner.critic is not None:
        value = plain_values(learner.critic, before.critic_params, rows)
        returns = np.repeat(np.asarray(rows.reward_B)[:, None], T, axis=1)
        if config.kl.in_reward:  # R less the KL of the tokens from t on
            charge = config.kl.coef * np.asarray(kl_convex(prox)) * mask
            returns = returns - charge[:, ::-1].cumsum(axis=1)[:, ::-1]
        adv = (returns - np.asarray(value)) * mask
        mean = adv.sum() / count
        var = (((adv - mean) * mask) ** 2).sum() / (count - 1)
        adv = (adv - mean) / np.sqrt(var + 1e-8)
    else:
        adv = np.zeros((len(age), T))
        for g in np.unique(rows.group_B):
            own = np.asarray(rows.group_B) == g
            r = np.asarray(rows.reward_B)[own]
            adv[own] = ((r - r.mean()) / (r.std(ddof=1) + 1e-6))[:, None]

    def policy_loss(params):
        logp, entropy = plain_logps(params, rows)
        r, c = jnp.exp(logp - rows.behav_logp_BT), jnp.exp(prox - rows.behav_logp_BT)
        eps = config.objective.clip
        clipped = jnp.clip(r, jnp.maximum(c - eps, 0), c + eps)
        surrogate = -jnp.minimum(r * adv, clipped * adv)
        if rows.sampler_weight_BT is not None:
            surrogate *= rows.sampler_weight_BT
        kl = kl_convex(logp) * (r if config.kl.weighted else 1 - config.kl.in_reward)
        total = surrogate - config.objective.entropy_coef * entropy + config.kl.coef * kl
        imitation = -(logp * mask * np.asarray(rows.success_B)[:, None]).sum()
        tokens = mask[np.asarray(rows.success_B)].sum()  # of the one success, if it is imitated
        weight = config.imitation.weight
        return (total * mask).sum() / count + (weight * imitation / tokens if weight else 0.0)

    def critic_loss(params):
        new = plain_values(learner.critic, params, rows)
        near = jnp.clip(new, value - 0.5, value + 0.5)
        loss = 0.5 * jnp.maximum((new - returns) ** 2, (near - returns) ** 2)
        return 0.5 * (loss * mask).sum() / count

    def adam(loss, params, opt_state):
        clip = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2, weight_decay=0.0))
        grads = jax.jit(jax.grad(loss))(params)
        updates, _ = clip.update(grads, opt_state[:2], params)  # the last link is the rate
        return optax.apply_updates(params, updates)

    policy = adam(policy_loss, before.params, before.opt_state)
    if learner.critic is None:
        return policy, None
    return policy, adam(critic_loss, before.critic_params, before.critic_opt_state)


@pytest.mark.parametrize("kl", ["", "weighted", "in_reward"])
def test_learning_phase_is_the_equations(kl):
    """Three steps with replay, KL-Convex below 1 and an anchor that differs from the precedent.

    The clip is so narrow that replayed rows are clipped around the ratio they start the step with.
    """
    switches = {f"kl__{kl}": True} if kl else {}
    make, shift_T = make_config, 0.0
    if kl == "weighted":  # and a sampler that is a little off, corrected for
        make, shift_T = grouped, jnp.where(jnp.arange(T) == 1, -0.2, 0.05)
        switches |= {"sampling__correction": "token_truncate", "sampling__correction_cap": 1.1}
    config = make(
        **switches,
        passes=1,
        mini_batch_size=8,
        micro_batch_size=2,
        score_batch_size=2,
        reincarnation_step=0,
        objective__clip=1e-3,
    )
    learner, state = start(config)
    for step in (1, 2, 3):
        before = jax.tree.map(jnp.copy, state)
        fresh = fresh_rows(config, state, step)
        sampled = fresh.replace(
            behav_logp_BT=fresh.behav_logp_BT + jnp.asarray(shift_T).reshape(1, -1)
        )
        state, metrics = advance(learner, state, config, step, sampled, shown=(3, 1))
        used = np.asarray(state.replay.rows.used_B) > np.asarray(0)
        rows = state.replay.rows
        was = np.asarray(before.replay.rows.used_B)
        same = np.asarray(before.replay.rows.version_B) == np.asarray(rows.version_B)
        in_batch = used & np.asarray(rows.valid_B) & ((np.asarray(rows.used_B) > was) | ~same)
        slots = np.flatnonzero(in_batch)
        chosen = jax.tree.map(lambda x, s=slots: x[s], rows)
        age = step - np.asarray(chosen.version_B)
        if chosen.sampler_weight_BT is not None:
            new_BT = (age == 0)[:, None] * np.asarray(chosen.mask_BT) == 1
            weight_T = np.minimum(np.exp(-shift_T), 1.1)
            weight_BT = np.broadcast_to(weight_T, new_BT.shape)
            np.testing.assert_allclose(chosen.sampler_weight_BT[new_BT], weight_BT[new_BT], 1e-5)
            logp_BT = np.asarray(plain_logps(before.params, chosen)[0])
            behav_BT = np.asarray(chosen.behav_logp_BT)
            np.testing.assert_allclose(behav_BT[new_BT], logp_BT[new_BT], atol=1e-5)
            assert 0.9 < metrics["sampler_weight"] < 1.1
            assert 0 < metrics["sampler_weight_capped"] < 0.5
        assert len(slots) == int(metrics["n_fresh"]) + int(metrics["n_replayed"])
        assert (
            (age > 0).sum()
            == int(metrics["n_replayed"])
            == (0 if step == 1 else 8 - len(age[age == 0]))
        )
        expected, expected_critic = plain_step(learner, config, before, chosen, age, step)
        assert_learned_alike(state.params, expected, atol=2e-4)
        if expected_critic is not None:
            assert_learned_alike(state.critic_params, expected_critic, atol=2e-4)
        chex.assert_trees_all_equal(state.prev_params, before.params)
        check_shown(host(metrics["shown"]), config, fresh, chosen, age, before.params)


def check_shown(shown, config, fresh, chosen, age, params):
    """Rows 3 and 1 of the fresh ones, and the first of each replayed group, with the numbers of
    their tokens under the parameters of the only mini-batch."""
    np.testing.assert_array_equal(shown["tokens_KS"][:2], fresh.tokens_BS[jnp.array([3, 1])])
    logp, entropy = plain_logps(params, chosen)
    ratio = np.exp(np.asarray(logp) - np.asarray(chosen.behav_logp_BT))
    replayed = [k for k in range(SHOWN, SHOWN + SHOWN_REPLAYED) if shown["age_K"][k] > 0]
    assert len(replayed) == min(SHOWN_REPLAYED, (age > 0).sum() // config.group_size)
    for k in (0, 1, *replayed):
        same = (np.asarray(chosen.tokens_BS) == shown["tokens_KS"][k]).all(axis=1)
        (b,), n = np.flatnonzero(same), shown["response_len_K"][k]
        assert shown["age_K"][k] == age[b]
        assert shown["reward_K"][k] == chosen.reward_B[b]
        for name, expected in (
            ("ratio", ratio),
            ("entropy", entropy),
            ("logp", chosen.behav_logp_BT),
        ):
            got = shown[f"{name}_KT"][k, :n]
            np.testing.assert_allclose(got, expected[b, :n], rtol=1e-3, atol=1e-5)


def test_imitation_adds_the_log_likelihood_of_successes():
    """With one success in the replay every draw is that row, and the loss is known."""
    config = grouped(
        passes=1, mini_batch_size=8, micro_batch_size=2, reincarnation_step=0,
        replay__share=0.0, imitation__weight=0.7,
    )  # fmt: skip
    learner, state = start(config)
    rows = fresh_rows(config, state, 1)
    rows = rows.replace(success_B=jnp.zeros(8, bool).at[3].set(True))
    before = jax.tree.map(jnp.copy, state)
    state, metrics = advance(learner, state, config, 1, rows)
    stored = replay.take(state.replay, jnp.arange(8))
    expected, _ = plain_step(learner, config, before, stored, np.zeros(8), 1)
    assert_learned_alike(state.params, expected, atol=2e-4)
    logp, _ = plain_logps(before.params, rows)
    mask = np.asarray(rows.mask_BT)[3]
    assert float(metrics["loss_imitation"]) == pytest.approx(
        -0.7 * float((logp[3] * mask).sum() / mask.sum()), rel=1e-4
    )


def test_imitation_without_a_success_changes_nothing():
    results = []
    for weight in (0.0, 1.0):
        config = grouped(imitation__weight=weight, imitation__window=1, kl__coef=0.0)
        learner, state = start(config)
        rows = fresh_rows(config, state, 1)
        state, _ = advance(
            learner, state, config, 1, rows.replace(success_B=rows.success_B & False)
        )
        results.append(state.params)
    chex.assert_trees_all_equal(*results)


def run_steps(config, steps, wider=(0, 0)):
    learner, state = start(config)
    if wider != (0, 0):
        config_wide = make_config()
        config_wide.data.prompt_tokens += wider[0]
        config_wide.data.response_tokens += wider[1]
        blank = replay.init(state.replay.capacity, 1, P + wider[0], T + wider[1], max_uses=6)
        state = state.replace(replay=blank)
    metrics = {}
    for step in range(1, steps + 1):
        rows = fresh_rows(config, state, step, wider)
        state, metrics = advance(learner, state, config, step, rows)
    return state, host(metrics)


def test_share_0_and_one_pass_is_the_base_method_bitwise():
    base = make_config(replay__share=0.0, passes=1, reincarnation_step=0, kl__convex=False)
    remix = make_config(replay__share=0.0, passes=1, reincarnation_step=0, kl__start=15)
    for make in (lambda c: c,):
        one, _ = run_steps(make(base), 3)
        other, _ = run_steps(make(remix), 3)
        chex.assert_trees_all_equal(host(one.params), host(other.params))
        chex.assert_trees_all_equal(host(one.critic_params), host(other.critic_params))


def test_micro_batches_are_one_batch():
    whole, metrics = run_steps(make_config(), 3)
    parts, part_metrics = run_steps(make_config(micro_batch_size=1, score_batch_size=3), 3)
    assert_learned_alike(whole.params, parts.params, atol=2e-5)
    assert metrics.pop("learn_use") < part_metrics.pop("learn_use"), "rows share buffers"
    chex.assert_trees_all_close(metrics, part_metrics, rtol=2e-3, atol=2e-4)


def test_padding_changes_nothing():
    narrow, metrics = run_steps(make_config(), 3)
    wide, wide_metrics = run_steps(make_config(), 3, wider=(3, 2))
    assert_learned_alike(narrow.params, wide.params, atol=2e-5)
    assert metrics.pop("learn_use") > wide_metrics.pop("learn_use")
    del metrics["shown"], wide_metrics["shown"]  # as wide as the rows
    chex.assert_trees_all_close(metrics, wide_metrics, rtol=2e-3, atol=2e-4)


def test_rows_and_tokens_that_do_not_count_influence_nothing():
    """An empty slot, and a token in the middle of a response that the policy did not write."""
    config = make_config()
    learner, state = start(config)
    rows = fresh_rows(config, state, 1)
    long = int(np.argmax(rows.response_len_B[:-1]))
    rows = rows.replace(loss_mask_BT=rows.loss_mask_BT.at[long, 1].set(0.0))
    assert not bool(rows.valid_B[-1])
    rubbish = rows.replace(
        tokens_BS=rows.tokens_BS.at[-1].set(3),
        behav_logp_BT=rows.behav_logp_BT.at[-1].set(jnp.nan).at[long, 1].set(jnp.nan),
        reward_B=rows.reward_B.at[-1].set(1e9),
        response_len_B=rows.response_len_B.at[-1].set(T),
    )
    (_, other), (_, counted) = start(config), start(config)
    one, _ = advance(learner, state, config, 1, rows)
    two, _ = advance(learner, other, config, 1, rubbish)
    chex.assert_trees_all_equal(host(one.params), host(two.params))
    whole = rows.replace(loss_mask_BT=jnp.ones_like(rows.loss_mask_BT))
    three, _ = advance(learner, counted, config, 1, whole)
    embedding = [host(x.params["embed"]["embedding"]) for x in (one, three)]
    assert np.any(embedding[0] != embedding[1]), "the token counts where the mask says so"


def test_uses_and_fates_add_up():
    config = make_config()
    learner, state = start(config)
    trained = generated = 0
    for step in range(1, 7):
        state, metrics = advance(learner, state, config, step)
        trained += config.passes * (int(metrics["n_fresh"]) + int(metrics["n_replayed"]))
        generated += int(metrics["n_fresh"])
    fates = np.asarray(replay.clear(state.replay).fates_U)
    assert fates.sum() == generated == schedules.planned_units(6, 8, 0.4, 0)
    assert (fates[1:] * np.arange(len(fates) - 1)).sum() == trained


def test_a_value_that_is_not_finite_stops_all_updates():
    """By any optimizer: here Muon and, of the critic, Lion."""
    config = make_config(optimizer__name="muon")
    config.critic.optimizer.name = "lion"
    learner, state = start(config)
    state, _ = advance(learner, state, config, 1)
    good = host((state.params, state.opt_state, state.critic_params, state.critic_opt_state))
    rows = fresh_rows(config, state, 2)
    rows = rows.replace(reward_B=rows.reward_B.at[0].set(jnp.nan))
    state, _ = advance(learner, state, config, 2, rows)
    names = np.array(fault_names(state.params, state.critic_params))
    bad = set(names[np.asarray(state.fault_F)])
    assert "policy loss" in bad
    assert "gradient of policy layers_0/q/kernel" in bad
    now = host((state.params, state.opt_state, state.critic_params, state.critic_opt_state))
    chex.assert_trees_all_equal(good, now)
    first = np.asarray(state.fault_F)
    state, _ = advance(learner, state, config, 3)
    chex.assert_trees_all_equal(good[0], host(state.params))
    np.testing.assert_array_equal(first, state.fault_F)


def test_reincarnation():
    config = make_config(reincarnation_step=3, steps=6)
    learner, state = start(config)
    first_base = host(state.base_params)
    for step in (1, 2, 3):
        state, _ = advance(learner, state, config, step)
    chex.assert_trees_all_equal(first_base, host(state.base_params))
    before, again = host(state), jax.tree.map(jnp.copy, state)
    state = reincarnate(learner, state)
    pi_T = before.params
    for now, was in (
        (state.base_params, pi_T),
        (state.params, pi_T),
        (state.prev_params, before.prev_params),
        (state.opt_state, before.opt_state),
        (state.critic_opt_state, before.critic_opt_state),
    ):
        chex.assert_trees_all_equal(host(now), was)
    assert not state.replay.rows.valid_B.any()
    anew, _ = start(make_config(reincarnation_step=3, steps=6, reset_optimizer=True))
    reset = reincarnate(anew, again)
    assert all(not np.any(x) for x in jax.tree.leaves(host(reset.opt_state)))
    chex.assert_trees_all_equal(host(reset.critic_opt_state), before.critic_opt_state)
    state, metrics = advance(learner, state, config, 4)
    assert int(metrics["n_replayed"]) == 0
    assert int(metrics["n_fresh"]) == 8
    assert float(metrics["kl_weight"]) == pytest.approx(0.7)
    chex.assert_trees_all_equal(pi_T, host(state.base_params))
