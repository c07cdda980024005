"""The off-policy family: coefficients, limits, hostile inputs, splitting and padding.

One table of methods, every method through every test. Vectors of peers: test_family_goldens.py;
quantities of the whole mini-batch: test_bounds.py.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from remix_jax.rl import advantages, constraints, masked, objectives, off_policy
from tests import reference
from tests.rl import family_reference as family
from tests.rl import token_rows

INPUTS = ("logp", "behav_logp", "prox_logp", "adv", "mask", "expert")
EXPERT_B = np.array([False, True, False, False, True, True, False])
THRESHOLD, ESS = 0.1, 0.6


def of(equation, all_experts=False, **numbers):
    """A function of `off_policy` on INPUTS. Only LUFFY and CHORD tell an expert's rows apart."""

    def method(logp, behav, prox, adv, mask, expert_B):
        known = all_experts | (expert_B if equation is off_policy.luffy else expert_B & False)
        columns = {"behav_logp_BT": behav, "prox_logp_BT": prox, "adv_BT": adv, "expert_B": known}
        columns["age_B"] = np.ones(len(mask), int)
        return token_rows.call(equation, logp, mask, **numbers, **columns)

    return method


METHODS = {
    "reinforce": of(off_policy.reinforce),
    "cispo": of(off_policy.cispo, params={"low": 1.0, "high": 0.2}),
    "cispo_both_ends": of(off_policy.cispo, params={"low": 0.3, "high": 0.4}),
    "decoupled_ppo": of(off_policy.decoupled_ppo, params={"cap": 1.5}),
    "m2po": of(off_policy.m2po, stats=THRESHOLD),
    "p3o": of(off_policy.p3o, stats=ESS),
    "topr": of(off_policy.topr),
    "gspo": of(off_policy.gspo, params={"low": 0.1, "high": 0.15}),
    "opmd": of(off_policy.opmd, params={"tau": 0.1}),
    "luffy": of(off_policy.luffy, params={"gamma": 0.1}),
    "chord_phi": of(off_policy.chord_phi, all_experts=True, stats=(1.0, 1.0)),
}
COEFFICIENTS = {
    "reinforce": family.reinforce,
    "cispo": family.cispo,
    "cispo_both_ends": functools.partial(family.cispo, low=0.7, high=1.4),
    "decoupled_ppo": functools.partial(family.decoupled_ppo, cap=1.5),
    "m2po": functools.partial(family.m2po, threshold=THRESHOLD),
    "p3o": functools.partial(family.p3o, ess=ESS),
    "topr": family.topr,
    "gspo": functools.partial(family.gspo, low=0.1, high=0.15),
    "opmd": family.opmd,
    "luffy": family.luffy,
    "chord_phi": family.chord_phi,
}
DROPPING = ("decoupled_ppo", "m2po", "gspo", "luffy")
method = pytest.mark.parametrize("method", METHODS)


def make_rows(seed=0, dtype=np.float64, **options):
    return token_rows.make_rows(seed, dtype=dtype, **options) | {"expert": EXPERT_B}


def clean_rows(rows):
    tokens = {name: x for name, x in rows.items() if name != "expert"}
    return token_rows.without_garbage(tokens) | {"expert": rows["expert"]}


def run(method, rows, compiled=jax.jit):
    """Loss and gradient for the four aggregations."""
    arguments = [rows[name] for name in INPUTS]
    return token_rows.losses_and_gradients(METHODS[method], arguments, rows["mask"], compiled)


@method
@pytest.mark.parametrize("seed", [0, 1])
def test_gradient_is_the_coefficient_form(method, seed, x64):
    rows = make_rows(seed)
    coefficient_BT = COEFFICIENTS[method](clean_rows(rows))
    if method in DROPPING:  # of either sign, or a clip on the wrong side would pass
        for sign in (1, -1):
            live = (rows["mask"] == 1) & (sign * rows["adv"] > 0)
            assert 0 < np.sum(coefficient_BT[live] == 0) < np.sum(live)
    _, grad = run(method, rows)
    weights = [reference.aggregation_weights(rows["mask"], mode) for mode in reference.MODES]
    expected = np.array([-w_BT * coefficient_BT for w_BT in weights])
    np.testing.assert_allclose(grad, expected, rtol=1e-12, atol=1e-15)
    assert np.all(grad[:, rows["mask"] == 0] == 0)


@method
def test_single_precision_and_no_jit(method):
    rows = make_rows(dtype=np.float32)
    clean = clean_rows(make_rows())
    loss, grad = run(method, rows, token_rows.eager)
    assert loss.dtype == grad.dtype == np.float32
    weight_BT = reference.aggregation_weights(rows["mask"], reference.MODES[0])
    expected_BT = -weight_BT * COEFFICIENTS[method](clean)
    token_rows.assert_gradient_close(grad[0], expected_BT, 1e-5)


@method
@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf])
def test_what_lies_under_the_mask_influences_nothing(method, garbage, x64):
    rows = make_rows()
    dirty = {
        name: np.where(rows["mask"] == 1, x, garbage) if name not in ("mask", "expert") else x
        for name, x in rows.items()
    }
    for actual, expected in zip(run(method, dirty), run(method, clean_rows(rows)), strict=True):
        np.testing.assert_array_equal(actual, expected)
        assert np.all(np.isfinite(actual))


@method
def test_on_policy_limit(method, x64):
    """Ratio 1 everywhere: c = A, the plain policy gradient, up to what is no ratio at all."""
    rows = clean_rows(make_rows())
    rows |= {"behav_logp": rows["logp"], "prox_logp": rows["logp"]}
    adv_BT = rows["adv"]
    expected_BT = {
        "p3o": ESS * adv_BT + 1 - ESS,  # ESS is an argument; at its on-policy value below
        "luffy": np.where(EXPERT_B[:, None], family.luffy(rows), adv_BT),
        "chord_phi": family.chord_phi(rows),
    }.get(method, adv_BT)
    _, grad = run(method, rows)
    weight_BT = reference.aggregation_weights(rows["mask"], reference.MODES[0])
    np.testing.assert_allclose(grad[0], -weight_BT * expected_BT, rtol=1e-12, atol=1e-15)


def test_p3o_on_policy(x64):
    rows = clean_rows(make_rows())
    columns = {"behav_logp_BT": rows["logp"], "adv_BT": rows["adv"], "age_B": np.ones(7, int)}
    loss_BT = token_rows.call(off_policy.p3o, rows["logp"], rows["mask"], stats=1.0, **columns)
    np.testing.assert_allclose(loss_BT, -rows["adv"] * rows["logp"], rtol=1e-12)


@method
def test_gradient_flows_through_logp_only(method):
    rows = clean_rows(make_rows(dtype=np.float32))
    arguments = [rows[name] for name in INPUTS[:4]]
    grads = jax.grad(
        lambda *arguments: METHODS[method](*arguments, rows["mask"], rows["expert"]).sum(),
        argnums=(0, 1, 2, 3),
    )(*arguments)
    assert np.any(grads[0])
    for name, grad_BT in zip(INPUTS[1:4], grads[1:], strict=True):
        assert not np.any(grad_BT), name


@method
def test_padding_changes_nothing(method, x64):
    rows = clean_rows(make_rows())
    tokens = {name: x for name, x in rows.items() if name != "expert"}
    wide = token_rows.padded(tokens, garbage=np.nan)
    wide["expert"] = np.append(EXPERT_B, [True, False])
    loss, grad = run(method, rows)
    wide_loss, wide_grad = run(method, wide, token_rows.eager)
    np.testing.assert_allclose(wide_loss[:3], loss[:3], rtol=1e-12)
    np.testing.assert_allclose(wide_grad[:3, :-2, 1:-2], grad[:3], rtol=1e-12, atol=1e-15)
    assert np.all(wide_grad[:, wide["mask"] == 0] == 0)


@method
def test_micro_batches_add_up_to_the_batch(method, x64):
    rows = clean_rows(make_rows())
    mode = "token-mean"
    count = masked.count(rows["mask"], mode)

    def part(rows):
        def loss(logp_BT):
            loss_BT = METHODS[method](logp_BT, *(rows[name] for name in INPUTS[1:]))
            return masked.sum_and_count(loss_BT, rows["mask"], mode)[0] / count

        return jax.value_and_grad(loss)(rows["logp"])

    loss, grad = run(method, rows)
    pieces = [part({k: x[i : i + 3] for k, x in rows.items()}) for i in range(0, 7, 3)]
    np.testing.assert_allclose(sum(x for x, _ in pieces), loss[0], rtol=1e-12)
    np.testing.assert_allclose(
        np.concatenate([g_BT for _, g_BT in pieces]), grad[0], rtol=1e-12, atol=1e-18
    )


# ---------------------------------------------------------------------------- facts of one method


def test_topr_tapers_by_the_product_of_the_whole_response():
    """1,000 tokens at ratio 0.99: the product is 4.3e-5, a token or geometric ratio 0.99."""
    logp_BT = np.full((3, 1000), np.log(0.99), np.float32)
    mask_BT = np.ones_like(logp_BT)
    mask_BT[1, 10:] = 0
    adv_BT = np.ones_like(logp_BT) * np.array([[-1.0], [-1.0], [1.0]], np.float32)
    columns = {"behav_logp_BT": np.zeros_like(logp_BT), "adv_BT": adv_BT}
    grad_BT = jax.grad(lambda x: token_rows.call(off_policy.topr, x, mask_BT, **columns).sum())(
        jnp.asarray(logp_BT)
    )
    np.testing.assert_allclose(grad_BT[0], 0.99**1000, rtol=1e-4)
    np.testing.assert_allclose(grad_BT[1, :10], 0.99**10, rtol=1e-5)
    np.testing.assert_array_equal(grad_BT[2], -1.0)


def test_topr_of_a_very_likely_bad_response_is_bounded():
    logp_BT = np.full((1, 400), -0.1, np.float32)
    columns = {"behav_logp_BT": np.full_like(logp_BT, -9.0), "adv_BT": -np.ones_like(logp_BT)}
    loss_BT = token_rows.call(off_policy.topr, logp_BT, np.ones_like(logp_BT), **columns)
    np.testing.assert_array_equal(loss_BT, logp_BT)


def test_gspo_is_the_sequence_objective(x64):
    """Value and gradient of mean_B -min(s A, clip(s) A), differentiated as it stands."""
    rows = clean_rows(make_rows())
    logp_BT, behav_BT, mask_BT = (rows[name] for name in ("logp", "behav_logp", "mask"))
    adv_B = np.array([1.0, -1.0, 0.5, -2.0, 3.0, -0.5, 2.0])
    adv_BT = np.broadcast_to(adv_B[:, None], mask_BT.shape)

    def literal(logp_BT):
        length_B = np.maximum(mask_BT.sum(axis=1), 1)
        s_B = jnp.exp(((logp_BT - behav_BT) * mask_BT).sum(axis=1) / length_B)
        loss_B = -jnp.minimum(s_B * adv_B, jnp.clip(s_B, 0.9, 1.15) * adv_B)
        live_B = mask_BT.any(axis=1)
        return (loss_B * live_B).sum() / live_B.sum()

    def ours(logp_BT):
        numbers = {"params": {"low": 0.1, "high": 0.15}}
        columns = {"behav_logp_BT": behav_BT, "adv_BT": adv_BT}
        loss_BT = token_rows.call(off_policy.gspo, logp_BT, mask_BT, **numbers, **columns)
        return masked.aggregate(loss_BT, mask_BT, "seq-mean-token-mean")

    for actual, expected in zip(
        jax.value_and_grad(ours)(logp_BT), jax.value_and_grad(literal)(logp_BT), strict=True
    ):
        np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-16)


def test_opmd_is_the_squared_log_ratio_of_the_response(x64):
    """-A l + tau / 2 (log r(y))^2 summed over rows, differentiated as it stands."""
    rows = clean_rows(make_rows())
    behav_BT, adv_BT, mask_BT = (rows[name] for name in ("behav_logp", "adv", "mask"))

    def literal(logp_BT):
        log_ratio_B = ((logp_BT - behav_BT) * mask_BT).sum(axis=1)
        return (-adv_BT * logp_BT * mask_BT).sum() + 0.15 * jnp.square(log_ratio_B).sum()

    def ours(logp_BT):
        columns = {"behav_logp_BT": behav_BT, "adv_BT": adv_BT}
        return token_rows.call(
            off_policy.opmd, logp_BT, mask_BT, params={"tau": 0.3}, **columns
        ).sum()

    expected_BT = jax.grad(literal)(rows["logp"])
    np.testing.assert_allclose(jax.grad(ours)(rows["logp"]), expected_BT, rtol=1e-12, atol=1e-15)


def test_opmd_of_single_tokens_is_reinforce_and_k2(x64):
    """The token form that the docstring names: c = A - tau log r."""
    logp_BT, behav_BT, adv_BT = np.random.default_rng(0).normal(size=(3, 6, 1))
    mask_BT = np.ones((6, 1))

    def composed(logp_BT):
        return (-adv_BT * logp_BT + 0.3 * constraints.k2(logp_BT, behav_BT)).sum()

    expected_BT = jax.grad(composed)(logp_BT)
    columns = {"params": {"tau": 0.3}, "behav_logp_BT": behav_BT, "adv_BT": adv_BT}
    actual_BT = jax.grad(lambda x: token_rows.call(off_policy.opmd, x, mask_BT, **columns).sum())(
        logp_BT
    )
    np.testing.assert_allclose(actual_BT, expected_BT, rtol=1e-12)


@pytest.mark.parametrize("shift", [-0.1, -0.5, 0.05])
def test_asymre_limit_policy_on_a_bandit(shift, x64):
    """dV < 0: (mu A - tau)^+ / -dV, more than one arm; dV > 0: one arm alone."""
    count_K, reward_K = np.array([1, 2, 3, 4]), np.array([1.0, 0.9, 0.8, -1.0])
    arm_B = np.repeat(np.arange(4), count_K)
    adv_B = advantages.asymre(reward_K[arm_B], np.zeros(len(arm_B), np.int32), shift)
    adv_K = np.asarray(adv_B)[np.searchsorted(arm_B, np.arange(4))]
    one_B1 = np.ones((len(arm_B), 1))

    def loss(logit_K):
        logp_B1 = jax.nn.log_softmax(logit_K)[arm_B][:, None]
        loss_B1 = token_rows.call(off_policy.reinforce, logp_B1, one_B1, adv_BT=adv_B[:, None])
        return masked.aggregate(loss_B1, one_B1)

    @jax.jit
    def descend(logit_K):
        step = lambda _, x_K: x_K - 5.0 * jax.grad(loss)(x_K)  # noqa: E731
        return jax.lax.fori_loop(0, 4000, step, logit_K)

    policy_K = jax.nn.softmax(descend(jnp.zeros(4)))
    if shift > 0:
        assert np.max(policy_K) > 0.999
        return
    limit_K = family.asymre_limit(count_K / 10, adv_K)
    assert np.sum(limit_K > 0) > 1
    np.testing.assert_allclose(policy_K, limit_K, atol=1e-3)


def test_asymre_advantage():
    reward_B = np.array([1.0, -1.0, 1.0, 1.0, 7.0], np.float32)
    group_B = np.array([0, 1, 0, 1, 2])
    mask_B = np.array([1.0, 1.0, 1.0, 1.0, 0.0], np.float32)
    adv_B = advantages.asymre(reward_B, group_B, -0.1, mask_B)
    np.testing.assert_allclose(adv_B, [0.1, -0.9, 0.1, 1.1, 0.0], rtol=1e-6)


def test_agro_vanishes_at_the_optimum_of_the_regularised_problem(x64):
    """pi proportional to pi_ref exp(R / b): R_b is the same for all responses."""
    reward_B = np.array([1.0, 0.0, 0.5, 2.0])
    ref_logp_B1 = np.log([[0.4], [0.3], [0.2], [0.1]])
    logp_B1 = ref_logp_B1 + reward_B[:, None] / 0.5
    logp_B1 = logp_B1 - np.log(np.exp(logp_B1).sum())
    group_B = np.zeros(4, np.int32)
    ones_B1 = np.ones((4, 1))
    columns = {"base_logp_BT": ref_logp_B1, "reward_B": reward_B, "group_B": group_B}
    columns |= {"params": {"beta": 0.5}}
    advantage = functools.partial(token_rows.call, off_policy.agro_advantage, **columns)
    np.testing.assert_allclose(advantage(logp_B1, ones_B1), 0.0, atol=1e-12)
    off_B = advantage(ref_logp_B1, ones_B1)
    np.testing.assert_allclose(off_B, reward_B - reward_B.mean(), rtol=1e-12)


def test_luffy_reads_no_behaviour_of_an_expert(x64):
    rows = clean_rows(make_rows())
    unknown = rows["behav_logp"].copy()
    unknown[EXPERT_B] = np.nan
    loss, grad = run("luffy", rows | {"behav_logp": unknown})
    expected_loss, expected_grad = run("luffy", rows)
    np.testing.assert_array_equal(loss, expected_loss)
    np.testing.assert_array_equal(grad, expected_grad)


def test_importance_weights_by_hand():
    weight_BT = np.array([[0.5, 1.0, 2.0, 3.0, 9.0]], np.float32)
    mask_BT = np.array([[1.0, 1.0, 1.0, 1.0, 0.0]], np.float32)
    prox_BT = np.log(weight_BT) - 1.0
    columns = {"behav_logp_BT": np.full_like(weight_BT, -1.0), "prox_logp_BT": prox_BT}
    columns |= {
        "adv_BT": -np.ones_like(weight_BT),
        "params": {"cap": 2.5},
    }  # at ratio 1 the loss is w
    truncated_BT = token_rows.call(off_policy.decoupled_ppo, prox_BT, mask_BT, **columns)
    np.testing.assert_allclose(truncated_BT, [[0.5, 1.0, 2.0, 2.5, 0.0]], rtol=1e-6)
    masked_BT = token_rows.call(off_policy.masked_is, prox_BT, mask_BT, **columns)
    np.testing.assert_allclose(masked_BT, [[0.5, 1.0, 2.0, 0.0, 0.0]], rtol=1e-6)


@pytest.mark.parametrize("weighted", [off_policy.decoupled_ppo, off_policy.masked_is])
@pytest.mark.parametrize("dual_clip", [None, 1.1])
def test_weighted_ppo_of_fresh_rows_is_ppo(weighted, dual_clip, x64):
    rows = clean_rows(make_rows())
    logp_BT, prox_BT, adv_BT, mask_BT = (rows[k] for k in ("logp", "prox_logp", "adv", "mask"))
    columns = {"behav_logp_BT": prox_BT, "prox_logp_BT": prox_BT, "adv_BT": adv_BT}
    columns |= {"params": {"cap": 5.0}}
    actual_BT = token_rows.call(weighted, logp_BT, mask_BT, dual_clip=dual_clip, **columns)
    expected_BT = objectives.ppo(logp_BT, prox_BT, adv_BT, dual_clip=dual_clip)
    np.testing.assert_array_equal(actual_BT, expected_BT)
    if dual_clip:
        assert np.any(expected_BT != objectives.ppo(logp_BT, prox_BT, adv_BT)), "it binds somewhere"
