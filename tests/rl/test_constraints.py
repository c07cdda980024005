"""KL estimators and KL-Convex."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from remix_jax.rl import constraints, objectives
from tests import reference, vectors
from tests.rl import token_rows

MISC = vectors.losses("verl_misc")
ESTIMATORS = {"k1": reference.k1, "k2": reference.k2, "k3": reference.k3}
estimator = pytest.mark.parametrize("estimator", ESTIMATORS)


def kl_of(name):
    return getattr(constraints, name)


def value_and_gradient(kl, *arguments):
    """kl and its elementwise derivative with respect to the first argument."""
    kl_BT, pull_back = jax.vjp(lambda logp_BT: kl(logp_BT, *arguments[1:]), arguments[0])
    return kl_BT, pull_back(jnp.ones_like(kl_BT))[0]


# ---------------------------------------------------------------------------- k1, k2, k3


def test_every_estimator_is_listed():
    assert {name: kl_of(name) for name in ESTIMATORS} == constraints.ESTIMATORS


@estimator
def test_by_hand(estimator, compiled):
    logp_BT = jnp.log(jnp.array([[0.5, 0.5, 0.5]]))
    anchor_BT = jnp.log(jnp.array([[0.5, 0.25, 1.0]]))
    log2 = np.log(2)
    value, derivative = {
        "k1": ([0, log2, -log2], [1, 1, 1]),
        "k2": ([0, log2**2 / 2, log2**2 / 2], [0, log2, -log2]),
        "k3": ([0, 0.5 + log2 - 1, 2 - log2 - 1], [0, 0.5, -1]),
    }[estimator]
    run = compiled(functools.partial(value_and_gradient, kl_of(estimator)))
    kl_BT, grad_BT = run(logp_BT, anchor_BT)
    assert kl_BT.dtype == jnp.float32
    np.testing.assert_allclose(kl_BT, [value], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(grad_BT, [derivative], rtol=1e-6, atol=1e-7)


@estimator
def test_by_the_equation(estimator, compiled, x64):
    rows = token_rows.make_rows()
    clean = token_rows.without_garbage(rows)
    logp_BT, anchor_BT = clean["logp"], clean["base_logp"]
    derivative_BT = {
        "k1": np.ones_like(logp_BT),
        "k2": logp_BT - anchor_BT,
        "k3": 1 - np.exp(anchor_BT - logp_BT),
    }[estimator]
    expected = token_rows.expected_losses_and_gradients(
        ESTIMATORS[estimator](logp_BT, anchor_BT), derivative_BT, rows["mask"]
    )
    actual = token_rows.losses_and_gradients(
        kl_of(estimator), [rows["logp"], rows["base_logp"]], rows["mask"], compiled
    )
    for actual_part, expected_part in zip(actual, expected, strict=True):
        np.testing.assert_allclose(actual_part, expected_part, rtol=1e-11, atol=1e-15)
    assert np.all(actual[1][:, rows["mask"] == 0] == 0)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_times_the_ratio_it_is_the_exact_kl_under_any_sampler(estimator, x64):
    """Over a vocabulary of 7: sum_v mu (pi / mu) k = KL(pi || anchor), and its gradient."""
    logits_V, anchor_V, mu_V = np.random.default_rng(3).normal(size=(3, 7))
    anchor_V, mu_V = jax.nn.log_softmax(anchor_V), jax.nn.log_softmax(mu_V)

    def expected(weighted, logits_V):
        logp_V = jax.nn.log_softmax(logits_V)
        kl_V = kl_of(estimator)(logp_V, anchor_V)
        return (jnp.exp(mu_V) * (objectives.ratio(logp_V, mu_V) if weighted else 1) * kl_V).sum()

    def exact(logits_V):
        logp_V = jax.nn.log_softmax(logits_V)
        return (jnp.exp(logp_V) * (logp_V - anchor_V)).sum()

    wanted = jax.value_and_grad(exact)(logits_V)
    found, plain = (
        jax.value_and_grad(functools.partial(expected, weighted))(logits_V)
        for weighted in (True, False)
    )
    for actual, right, biased in zip(found, wanted, plain, strict=True):
        np.testing.assert_allclose(actual, right, rtol=1e-12, atol=1e-15)
        assert not np.allclose(biased, right, rtol=0.1)


@estimator
@pytest.mark.parametrize("case", MISC)
def test_goldens(case, estimator, compiled, dtype):
    """verl's values and gradients, the extreme ones where its k3 is cut off included."""
    arrays, _ = MISC[case]
    logp_BT, ref_BT = (arrays[f"kl/in/{name}"].astype(dtype) for name in ("logp", "ref_logp"))
    run = compiled(functools.partial(value_and_gradient, kl_of(estimator)))
    kl_BT, grad_BT = run(logp_BT, ref_BT)
    assert kl_BT.dtype == grad_BT.dtype == dtype
    expected_BT, expected_grad_BT = (arrays[f"kl/{estimator}/{x}"] for x in ("value", "grad"))
    tolerance = {"rtol": 1e-7, "atol": 1e-12}
    if dtype is np.float32:
        tolerance = {"rtol": 2e-5, "atol": 2e-6}
    np.testing.assert_allclose(kl_BT, expected_BT, **tolerance)
    np.testing.assert_allclose(grad_BT, expected_grad_BT, **tolerance)


def test_k3_is_bounded_and_flat_beyond(compiled):
    """exp(d) - d - 1 reaches 10 near d = 2.6; further out a token has weight 10 and no pull."""
    d_BT = jnp.array([[-30.0, -9.0, -1.0, 2.5, 2.7, 19.0, 30.0, 1e30]])
    logp_BT = jnp.full_like(d_BT, -1.0)
    run = compiled(functools.partial(value_and_gradient, constraints.k3))
    kl_BT, grad_BT = run(logp_BT, logp_BT + d_BT)
    expected = [10, np.exp(-9) + 8, np.exp(-1), np.exp(2.5) - 3.5, 10, 10, 10, 10]
    np.testing.assert_allclose(kl_BT, [expected], rtol=1e-5)
    slope = [0, 1 - np.exp(-9), 1 - np.exp(-1), 1 - np.exp(2.5), 0, 0, 0, 0]
    np.testing.assert_allclose(grad_BT, [slope], rtol=1e-5)


def test_k3_near_its_minimum(compiled):
    """Where a healthy run stays: d^2 / 2 and not rounding noise, which naively would be 1e-7."""
    d_BT = np.float32([[1e-3, -1e-3, 1e-4, -1e-4, 0.0]])
    kl_BT = np.asarray(compiled(constraints.k3)(np.zeros_like(d_BT), d_BT))
    np.testing.assert_allclose(kl_BT, d_BT.astype(np.float64) ** 2 / 2, rtol=5e-3)
    assert np.all(kl_BT >= 0)


def test_estimators_in_expectation(x64):
    """Over the policy's own distribution k1 and k3 are the KL, and k2 has its gradient."""
    rng = np.random.default_rng(0)
    logits_V, anchor_V = jnp.asarray(rng.normal(size=(2, 11)))
    anchor_logp_V = jax.nn.log_softmax(anchor_V)
    logp_V = jax.nn.log_softmax(logits_V)
    pi_V = jnp.exp(logp_V)

    def exact_kl(logits_V):
        logp_V = jax.nn.log_softmax(logits_V)
        return (jnp.exp(logp_V) * (logp_V - anchor_logp_V)).sum()

    for kl in (constraints.k1, constraints.k3):
        estimate = (pi_V * kl(logp_V, anchor_logp_V)).sum()
        np.testing.assert_allclose(estimate, exact_kl(logits_V), rtol=1e-12)

    def mean_of(kl):
        return lambda logits_V: (pi_V * kl(jax.nn.log_softmax(logits_V), anchor_logp_V)).sum()

    gradient_V = jax.grad(exact_kl)(logits_V)
    np.testing.assert_allclose(jax.grad(mean_of(constraints.k2))(logits_V), gradient_V, rtol=1e-9)
    np.testing.assert_allclose(jax.grad(mean_of(constraints.k1))(logits_V), 0.0, atol=1e-12)
    # Descent on k3 pulls towards the anchor as well: the term belongs into the loss with a plus.
    assert jnp.vdot(jax.grad(mean_of(constraints.k3))(logits_V), gradient_V) > 0


@estimator
def test_the_anchor_has_no_gradient(estimator):
    rows = token_rows.without_garbage(token_rows.make_rows(dtype=np.float32))
    grad_BT = jax.grad(lambda anchor: kl_of(estimator)(rows["logp"], anchor).sum())(
        rows["base_logp"]
    )
    assert not np.any(grad_BT)


@estimator
def test_garbage_influences_nothing(estimator, compiled):
    rows = token_rows.make_rows(dtype=np.float32)  # k2 of garbage overflows here
    clean = token_rows.without_garbage(rows)
    actual, expected = (
        token_rows.losses_and_gradients(
            kl_of(estimator), [some["logp"], some["base_logp"]], rows["mask"], compiled
        )
        for some in (rows, clean)
    )
    for actual_part, expected_part in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(actual_part, expected_part)


@estimator
def test_wrong_shapes_are_refused(estimator):
    with pytest.raises(AssertionError):
        kl_of(estimator)(jnp.zeros((2, 3)), jnp.zeros((2, 1)))


# ---------------------------------------------------------------------------- KL-Convex

CONVEX_INPUTS = ("logp", "base_logp", "prev_logp")


@pytest.mark.parametrize("lam", [1.0, 0.7, 0.0])
def test_kl_convex_by_the_equation(lam, compiled, x64):
    rows = token_rows.make_rows()
    actual = token_rows.losses_and_gradients(
        constraints.kl_convex,
        [*(rows[name] for name in CONVEX_INPUTS), lam],
        rows["mask"],
        compiled,
    )
    logp_BT, base_BT, prev_BT = (token_rows.without_garbage(rows)[name] for name in CONVEX_INPUTS)
    derivative_BT = lam * (1 - np.exp(base_BT - logp_BT)) + (1 - lam) * (
        1 - np.exp(prev_BT - logp_BT)
    )
    expected = token_rows.expected_losses_and_gradients(
        reference.kl_convex(logp_BT, base_BT, prev_BT, lam), derivative_BT, rows["mask"]
    )
    for actual_part, expected_part in zip(actual, expected, strict=True):
        np.testing.assert_allclose(actual_part, expected_part, rtol=1e-11, atol=1e-15)


@estimator
@pytest.mark.parametrize(("lam", "anchor"), [(1.0, "base_logp"), (0.0, "prev_logp")])
def test_the_ends_are_the_plain_terms_bitwise(lam, anchor, estimator, compiled):
    rows = token_rows.without_garbage(token_rows.make_rows(dtype=np.float32))
    convex = functools.partial(constraints.kl_convex, estimator=estimator)
    plain = compiled(functools.partial(value_and_gradient, kl_of(estimator)))(
        rows["logp"], rows[anchor]
    )
    for weight in (lam, jnp.float32(lam)):  # a constant, or the schedule's array
        both = compiled(functools.partial(value_and_gradient, convex))(
            *(rows[name] for name in CONVEX_INPUTS), weight
        )
        for convex_BT, plain_BT in zip(both, plain, strict=True):
            np.testing.assert_array_equal(convex_BT, plain_BT)


def test_one_anchor_twice_is_that_anchor(x64):
    rows = token_rows.without_garbage(token_rows.make_rows())
    logp_BT, anchor_BT = rows["logp"], rows["base_logp"]
    np.testing.assert_allclose(
        constraints.kl_convex(logp_BT, anchor_BT, anchor_BT, 0.3),
        constraints.k3(logp_BT, anchor_BT),
        rtol=1e-14,
    )


def test_default_estimator_is_k3():
    rows = token_rows.without_garbage(token_rows.make_rows(dtype=np.float32))
    arguments = [rows[name] for name in CONVEX_INPUTS]
    np.testing.assert_array_equal(
        constraints.kl_convex(*arguments, 0.6),
        constraints.kl_convex(*arguments, 0.6, estimator="k3"),
    )


def test_the_constraint_pulls_the_policy_back():
    """Plus sign: descending policy loss + beta KL lowers a log-prob above the anchors, and back."""
    anchor_BT = jnp.full((1, 2), -1.0)
    logp_BT = anchor_BT + jnp.array([[0.5, -0.5]])
    nothing_BT = jnp.zeros_like(logp_BT)

    def loss(logp_BT):
        policy_BT = objectives.mix_ppg(logp_BT, anchor_BT, anchor_BT, nothing_BT)
        return (policy_BT + constraints.kl_convex(logp_BT, anchor_BT, anchor_BT, 0.5)).sum()

    step_BT = -jax.grad(loss)(logp_BT)
    assert step_BT[0, 0] < 0 < step_BT[0, 1]


# ---------------------------------------------------------------------------- a whole step


@pytest.mark.parametrize("stage", [1, 2])
def test_loss_of_a_remix_step(stage, compiled, x64):
    """Policy - c_H entropy + beta KL-Convex, the sum that the learner minimises."""
    rows = token_rows.make_rows()
    lam, beta, entropy_coefficient = 0.7, 0.05, 0.01
    entropy_BT = np.abs(rows["value"])
    names = ("logp", "behav_logp", "prox_logp", "adv", "base_logp", "prev_logp")

    def token_loss(logp_BT, behav_BT, prox_BT, adv_BT, base_BT, prev_BT, entropy_BT):
        if stage == 1:
            policy_BT = objectives.mix_ppg(logp_BT, behav_BT, prox_BT, adv_BT)
        else:
            policy_BT = objectives.ppo(logp_BT, prox_BT, adv_BT)
        kl_BT = constraints.kl_convex(logp_BT, base_BT, prev_BT, lam)
        return policy_BT - entropy_coefficient * entropy_BT + beta * kl_BT

    loss, _ = token_rows.losses_and_gradients(
        token_loss, [*(rows[name] for name in names), entropy_BT], rows["mask"], compiled
    )
    clean = token_rows.without_garbage(rows)
    for i, mode in enumerate(reference.MODES):
        parts = reference.remix_loss(
            clean,
            mode,
            lam=lam,
            beta=beta,
            entropy_coefficient=entropy_coefficient,
            clip=0.2,
            stage=stage,
            entropy_BT=np.abs(clean["value"]),
            mask_BT=rows["mask"],
        )
        np.testing.assert_allclose(loss[i], parts[0], rtol=1e-12)
