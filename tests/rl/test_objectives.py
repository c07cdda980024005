"""Policy-gradient objectives and the value loss: equations, relations, hostile inputs.

The vectors of peers are in test_objectives_goldens.py. Loss and gradient are checked for the four
aggregations at once; see token_rows.losses_and_gradients.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from remix_jax.rl import masked, objectives
from tests import reference
from tests.rl import token_rows

PPO_INPUTS = ("behav_logp", "adv")
MIX_INPUTS = ("behav_logp", "prox_logp", "adv")
METHODS = {
    "ppo": (objectives.ppo, PPO_INPUTS, {}),
    "ppo_dapo": (objectives.ppo, PPO_INPUTS, {"clip_low": 0.1, "clip_high": 0.3}),
    "ppo_dual": (objectives.ppo, PPO_INPUTS, {"dual_clip": 1.5}),
    "mix_ppg": (objectives.mix_ppg, MIX_INPUTS, {}),
    "mix_ppg_wide": (objectives.mix_ppg, MIX_INPUTS, {"clip": 0.4}),
}
TOKEN_LOSSES = {
    name: functools.partial(function, **options) for name, (function, _, options) in METHODS.items()
}
EQUATIONS = {
    objectives.ppo: (reference.ppo, reference.ppo_coefficient),
    objectives.mix_ppg: (reference.mix_ppg, reference.mix_ppg_coefficient),
}
CRITIC_INPUTS = ("value", "old_value", "returns")
CRITIC_LOSS = functools.partial(objectives.value_loss, clip=0.5)
method = pytest.mark.parametrize("method", METHODS)


def run(method, rows, compiled=jax.jit):
    """Loss and gradient of a method on rows, for the four aggregations."""
    arguments = [rows[name] for name in ("logp", *METHODS[method][1])]
    return token_rows.losses_and_gradients(TOKEN_LOSSES[method], arguments, rows["mask"], compiled)


def expected(method, rows):
    """The same by the equations. The gradient is that of -aggregate(sg(c) logp)."""
    function, inputs, options = METHODS[method]
    clean = token_rows.without_garbage(rows)
    arguments = [clean[name] for name in ("logp", *inputs)]
    equation, coefficient = EQUATIONS[function]
    coefficient_BT = coefficient(*arguments, **options)
    # Clipped tokens of either sign, or the test would not see a clip on the wrong side.
    for sign in (1, -1):
        assert np.sum((coefficient_BT == 0) & (sign * clean["adv"] > 0)) >= 2
    return token_rows.expected_losses_and_gradients(
        equation(*arguments, **options), -coefficient_BT, rows["mask"]
    )


# ---------------------------------------------------------------------------- the surrogates


def check_by_hand(token_loss, table, compiled):
    """table: columns ratio, centre, A, loss, c. The behaviour policy has logp -2 everywhere."""
    ratio, centre, adv, loss, coefficient = np.array(table, np.float32).T[:, None, :]
    behav_logp_BT = np.full_like(ratio, -2.0)

    @compiled
    def run(logp_BT, *others):
        loss_BT, pull_back = jax.vjp(lambda logp_BT: token_loss(logp_BT, *others), logp_BT)
        return loss_BT, pull_back(jnp.ones_like(loss_BT))[0]

    prox_logp_BT = behav_logp_BT + np.log(centre)
    loss_BT, grad_BT = run(behav_logp_BT + np.log(ratio), behav_logp_BT, prox_logp_BT, adv)
    np.testing.assert_allclose(loss_BT, loss, rtol=1e-6)
    np.testing.assert_allclose(grad_BT, -coefficient, rtol=1e-6)


def test_ppo_by_hand(compiled):
    table = [
        (1.0, 1.0, 2.0, -2.0, 2.0),
        (1.0, 1.0, -2.0, 2.0, -2.0),
        (1.1, 1.0, 2.0, -2.2, 2.2),
        (1.5, 1.0, 2.0, -2.4, 0.0),  # gained enough: clipped above
        (1.5, 1.0, -2.0, 3.0, -3.0),  # got worse: not clipped
        (0.5, 1.0, 2.0, -1.0, 1.0),  # got worse: not clipped
        (0.5, 1.0, -2.0, 1.6, 0.0),  # gained enough: clipped below
        (4.0, 1.0, -2.0, 8.0, -8.0),
        (1.0, 1.0, 0.0, 0.0, 0.0),
    ]
    check_by_hand(lambda logp, behav, prox, adv: objectives.ppo(logp, behav, adv), table, compiled)


def test_mix_ppg_by_hand(compiled):
    table = [
        (3.0, 3.0, 1.0, -3.0, 3.0),  # PPO would have clipped this row before the first update
        (3.1, 3.0, 1.0, -3.1, 3.1),
        (3.5, 3.0, 1.0, -3.2, 0.0),
        (3.5, 3.0, -1.0, 3.5, -3.5),
        (0.5, 0.5, -1.0, 0.5, -0.5),  # nor this one
        (0.2, 0.5, -1.0, 0.3, 0.0),
        (0.2, 0.5, 1.0, -0.2, 0.2),
        (0.01, 0.15, -1.0, 0.01, -0.01),  # the lower edge is 0: never reached
    ]
    check_by_hand(objectives.mix_ppg, table, compiled)


def test_defaults_are_the_papers():
    rows = token_rows.make_rows()
    logp_BT, behav_BT, prox_BT, adv_BT = (rows["logp"], *(rows[name] for name in MIX_INPUTS))
    np.testing.assert_array_equal(
        objectives.ppo(logp_BT, behav_BT, adv_BT),
        objectives.ppo(logp_BT, behav_BT, adv_BT, 0.2, 0.2, None),
    )
    np.testing.assert_array_equal(
        objectives.mix_ppg(logp_BT, behav_BT, prox_BT, adv_BT),
        objectives.mix_ppg(logp_BT, behav_BT, prox_BT, adv_BT, 0.2),
    )


@method
@pytest.mark.parametrize("seed", [0, 1])
def test_value_and_gradient_by_the_equations(method, seed, compiled, x64):
    rows = token_rows.make_rows(seed)
    expected_loss, expected_grad = expected(method, rows)
    loss, grad = run(method, rows, compiled)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(grad, expected_grad, rtol=1e-12, atol=1e-15)
    assert np.all(grad[:, rows["mask"] == 0] == 0)


@method
def test_single_precision(method):
    expected_loss, expected_grad = expected(method, token_rows.make_rows())
    loss, grad = run(method, token_rows.make_rows(dtype=np.float32))
    assert loss.dtype == grad.dtype == np.float32
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5, atol=1e-6)
    token_rows.assert_gradient_close(grad, expected_grad, 1e-5)


@method
def test_garbage_influences_nothing(method, compiled):
    rows = token_rows.make_rows(dtype=np.float32)
    loss, grad = run(method, rows, compiled)
    clean_loss, clean_grad = run(method, token_rows.without_garbage(rows), compiled)
    np.testing.assert_array_equal(loss, clean_loss)
    np.testing.assert_array_equal(grad, clean_grad)
    assert np.all(grad[:, rows["mask"] == 0] == 0)


@method
def test_no_token_no_loss(method):
    rows = token_rows.make_rows(dtype=np.float32)
    loss, grad = run(method, rows | {"mask": np.zeros_like(rows["mask"])})
    assert np.all(loss == 0)
    assert np.all(grad == 0)


@pytest.mark.parametrize("method", ["ppo_dual", "mix_ppg"])
def test_padding_changes_nothing(method, x64):
    rows = token_rows.make_rows()
    wide = token_rows.padded(rows)
    loss, grad = run(method, rows)
    wide_loss, wide_grad = run(method, wide)
    # The fourth mode divides by the width of the array, which the padding has raised.
    widening = np.array([1, 1, 1, wide["mask"].shape[1] / rows["mask"].shape[1]])
    np.testing.assert_allclose(wide_loss * widening, loss, rtol=1e-12)
    inner = wide_grad[:, :-2, 1:-2] * widening[:, None, None]
    np.testing.assert_allclose(inner, grad, rtol=1e-12, atol=1e-15)
    assert np.all(wide_grad[:, wide["mask"] == 0] == 0)


@pytest.mark.parametrize("mode", reference.MODES)
def test_micro_batches_add_up_to_the_batch(mode, x64):
    rows = token_rows.make_rows()
    count = masked.count(rows["mask"], mode)

    @jax.jit
    def part(rows):
        def loss(logp_BT):
            loss_BT = objectives.mix_ppg(logp_BT, *(rows[name] for name in MIX_INPUTS))
            return masked.sum_and_count(loss_BT, rows["mask"], mode)[0] / count

        return jax.value_and_grad(loss)(rows["logp"])

    whole_loss, whole_grad_BT = part(rows)
    for size in (1, 3):
        micro = [
            part({name: x_BT[i : i + size] for name, x_BT in rows.items()})
            for i in range(0, len(rows["mask"]), size)
        ]
        np.testing.assert_allclose(sum(loss for loss, _ in micro), whole_loss, rtol=1e-12)
        grad_BT = np.concatenate([grad_BT for _, grad_BT in micro])
        np.testing.assert_allclose(grad_BT, whole_grad_BT, rtol=1e-12, atol=1e-18)


@pytest.mark.parametrize("correction", objectives.CORRECTIONS)
def test_sampler_weights_are_trls(correction, x64):
    """Its lines on torch tensors: sum over the response, exp, clamp or fill; NaN under the mask."""
    rows = token_rows.without_garbage(token_rows.make_rows(spread=0.4))
    mask_BT = rows["mask"]
    gap_BT = torch.tensor((rows["prox_logp"] - rows["behav_logp"]) * mask_BT)
    if correction.startswith("sequence"):
        gap_BT = gap_BT.sum(dim=-1, keepdim=True)
    expected_BT = torch.exp(gap_BT)
    assert 0 < (expected_BT > 1.2).sum() < expected_BT.numel()
    if correction.endswith("truncate"):
        expected_BT = torch.clamp(expected_BT, max=1.2)
    else:
        expected_BT = expected_BT.masked_fill(expected_BT > 1.2, 0.0)
    sampler_BT = np.where(mask_BT == 1, rows["behav_logp"], np.nan)
    found_BT = objectives.sampler_weight(rows["prox_logp"], sampler_BT, mask_BT, correction, 1.2)
    np.testing.assert_allclose(found_BT, expected_BT.expand(mask_BT.shape), rtol=1e-12)


@pytest.mark.parametrize("dual_clip", [None, 1.5])
def test_mix_ppg_on_fresh_rows_is_ppo_bitwise(dual_clip, compiled):
    rows = token_rows.make_rows(seed=2, dtype=np.float32)
    logp_BT, behav_BT, adv_BT = rows["logp"], rows["behav_logp"], rows["adv"]
    ppo = token_rows.losses_and_gradients(
        functools.partial(objectives.ppo, dual_clip=dual_clip),
        [logp_BT, behav_BT, adv_BT],
        rows["mask"],
        compiled,
    )
    mix = token_rows.losses_and_gradients(
        functools.partial(objectives.mix_ppg, dual_clip=dual_clip),
        [logp_BT, behav_BT, behav_BT.copy(), adv_BT],
        rows["mask"],
        compiled,
    )
    for ppo_result, mix_result in zip(ppo, mix, strict=True):
        np.testing.assert_array_equal(mix_result, ppo_result)


def test_on_policy_is_the_plain_policy_gradient(compiled):
    """Ratio exactly 1: loss -A and gradient -A, for every method."""
    rows = token_rows.make_rows(dtype=np.float32)
    logp_BT, adv_BT = rows["logp"], rows["adv"]
    live = rows["mask"] == 1
    for token_loss in (
        lambda x: objectives.ppo(x, logp_BT, adv_BT),
        lambda x: objectives.mix_ppg(x, logp_BT, logp_BT, adv_BT),
    ):
        loss_BT = np.asarray(compiled(token_loss)(logp_BT))
        grad_BT = np.asarray(compiled(jax.grad(lambda x, f=token_loss: f(x).sum()))(logp_BT))
        np.testing.assert_array_equal(loss_BT[live], -adv_BT[live])
        np.testing.assert_allclose(grad_BT[live], -adv_BT[live], rtol=1e-6)


def test_old_rows_enter_a_step_unclipped(x64):
    """At pi_theta = pi_k the gradient is -r A on every token, however old the row."""
    rows = token_rows.make_rows(spread=2.0)
    logp_BT = rows["prox_logp"]
    arguments = [rows[name] for name in MIX_INPUTS]
    grad_BT = jax.grad(lambda x: objectives.mix_ppg(x, *arguments).sum())(logp_BT)
    live = rows["mask"] == 1
    ratio_BT = np.exp(np.where(live, logp_BT - rows["behav_logp"], 0.0))
    assert ratio_BT[live].max() > 5
    np.testing.assert_allclose(
        np.asarray(grad_BT)[live], -(ratio_BT * rows["adv"])[live], rtol=1e-12
    )


@method
def test_gradient_flows_through_logp_only(method):
    rows = token_rows.without_garbage(token_rows.make_rows(dtype=np.float32))
    function, inputs, options = METHODS[method]
    arguments = [rows[name] for name in ("logp", *inputs)]
    grads = jax.grad(
        lambda *arguments: function(*arguments, **options).sum(),
        argnums=tuple(range(len(arguments))),
    )(*arguments)
    assert np.any(grads[0])
    for name, grad_BT in zip(inputs, grads[1:], strict=True):
        assert not np.any(grad_BT), name


def test_dual_clip_bounds_the_loss_of_bad_tokens_only(x64):
    rows = token_rows.make_rows(spread=1.5)
    arguments = [rows[name] for name in ("logp", *PPO_INPUTS)]
    plain_BT = objectives.ppo(*arguments)
    dual_BT = objectives.ppo(*arguments, dual_clip=1.5)
    live = rows["mask"] == 1
    plain, dual, adv = (np.asarray(x)[live] for x in (plain_BT, dual_BT, rows["adv"]))
    np.testing.assert_array_equal(dual[adv >= 0], plain[adv >= 0])
    np.testing.assert_array_equal(dual[adv < 0], np.minimum(plain, -1.5 * adv)[adv < 0])
    assert np.any(dual < plain)


def test_a_clip_per_row(x64):
    """GePPO's trust region by age is an eps of [B, 1]."""
    rows = token_rows.make_rows()
    arguments = [rows[name] for name in ("logp", *MIX_INPUTS)]
    clip_B1 = np.linspace(0.05, 0.6, len(rows["mask"]))[:, None]
    actual_BT = objectives.mix_ppg(*arguments, clip=clip_B1)
    for b, clip in enumerate(clip_B1[:, 0]):
        row = [x_BT[b : b + 1] for x_BT in arguments]
        np.testing.assert_array_equal(actual_BT[b : b + 1], objectives.mix_ppg(*row, clip=clip))


def test_extreme_ratios_stay_finite_and_have_no_gradient(compiled):
    log_ratio_BT = np.array([[-1e30, -200.0, -25.0, 25.0, 200.0, 1e30]] * 2, np.float32)
    adv_BT = np.array([[1.0] * 6, [-1.0] * 6], np.float32)
    behav_BT = np.full_like(adv_BT, -1.0)
    for token_loss in (
        objectives.ppo,
        lambda logp, behav, adv: objectives.mix_ppg(logp, behav, behav, adv),
    ):
        loss, grad = token_rows.losses_and_gradients(
            token_loss, [behav_BT + log_ratio_BT, behav_BT, adv_BT], np.ones_like(adv_BT), compiled
        )
        assert np.all(np.isfinite(loss))
        assert not np.any(grad)


def test_no_gradient_where_the_ratio_left_the_trust_region(x64):
    """A > 0 and r > c + eps, or A < 0 and r < c - eps or r > the dual clip: nowhere else."""
    rows = token_rows.without_garbage(token_rows.make_rows(spread=1.5))
    arguments = [rows[name] for name in ("logp", *MIX_INPUTS)]
    logp_BT, behav_BT, prox_BT, adv_BT = arguments
    ratio_BT, centre_BT = np.exp(logp_BT - behav_BT), np.exp(prox_BT - behav_BT)
    for options in ({}, {"clip_high": 0.6}, {"dual_clip": 1.5}, {"dual_clip": 2, "clip_high": 0.3}):
        high, dual = options.get("clip_high", 0.2), options.get("dual_clip", np.inf)
        loss = functools.partial(objectives.mix_ppg, **options)
        grad_BT = jax.grad(lambda x, loss=loss: loss(x, *arguments[1:]).sum())(logp_BT)
        live = (rows["mask"] == 1) & (adv_BT != 0)
        above_BT = (adv_BT > 0) & (ratio_BT > centre_BT + high)
        below_BT = (adv_BT < 0) & ((ratio_BT < centre_BT - 0.2) | (ratio_BT > dual))
        np.testing.assert_array_equal(np.asarray(grad_BT)[live] == 0, (above_BT | below_BT)[live])
    fresh_BT = objectives.mix_ppg(logp_BT, behav_BT, behav_BT, adv_BT, 0.2, None, 0.28)
    np.testing.assert_allclose(fresh_BT, objectives.ppo(logp_BT, behav_BT, adv_BT, 0.2, 0.28))


def test_ratio(compiled):
    rows = token_rows.without_garbage(token_rows.make_rows(dtype=np.float32))
    ratio_BT = compiled(objectives.ratio)(rows["logp"], rows["behav_logp"])
    np.testing.assert_allclose(ratio_BT, np.exp(rows["logp"] - rows["behav_logp"]), rtol=1e-6)


@method
def test_wrong_shapes_are_refused(method):
    function, inputs, options = METHODS[method]
    arguments = [jnp.zeros((2, 3)) for _ in ("logp", *inputs)]
    arguments[-1] = jnp.zeros((2, 1))
    with pytest.raises(AssertionError):
        function(*arguments, **options)


# ---------------------------------------------------------------------------- the critic


def run_critic(rows, compiled):
    """Loss and gradient of the value loss with clip 0.5, for the four aggregations."""
    arguments = [rows[name] for name in CRITIC_INPUTS]
    return token_rows.losses_and_gradients(CRITIC_LOSS, arguments, rows["mask"], compiled)


def test_value_loss_by_the_equation(compiled, x64):
    rows = token_rows.make_rows()
    clean = token_rows.without_garbage(rows)
    value, old, returns = (clean[name] for name in CRITIC_INPUTS)
    clipped = np.clip(value, old - 0.5, old + 0.5)
    flat = (value - returns) ** 2 < (clipped - returns) ** 2
    assert 3 <= flat[rows["mask"] == 1].sum() < rows["mask"].sum()
    expected_loss, expected_grad = token_rows.expected_losses_and_gradients(
        reference.value_loss(value, old, returns, 0.5),
        np.where(flat, 0.0, value - returns),
        rows["mask"],
    )
    loss, grad = run_critic(rows, compiled)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-12)
    np.testing.assert_allclose(grad, expected_grad, rtol=1e-12, atol=1e-15)
    assert np.all(grad[:, rows["mask"] == 0] == 0)


def test_first_update_of_the_critic_is_plain_regression(compiled):
    rows = token_rows.without_garbage(token_rows.make_rows(dtype=np.float32))
    value_BT, return_BT = rows["value"], rows["returns"]
    loss_and_grad = jax.value_and_grad(
        lambda x: objectives.value_loss(x, value_BT, return_BT, 0.5).sum()
    )
    loss, grad_BT = compiled(loss_and_grad)(value_BT)
    np.testing.assert_allclose(loss, 0.5 * np.square(value_BT - return_BT).sum(), rtol=1e-6)
    np.testing.assert_allclose(grad_BT, value_BT - return_BT, rtol=1e-6)


def test_value_loss_ignores_garbage(compiled):
    rows = token_rows.make_rows(dtype=np.float32)  # garbage squared overflows here
    clean = token_rows.without_garbage(rows)
    for actual, wanted in zip(run_critic(rows, compiled), run_critic(clean, compiled), strict=True):
        np.testing.assert_array_equal(actual, wanted)


def test_no_gradient_through_the_critics_targets():
    rows = token_rows.without_garbage(token_rows.make_rows(dtype=np.float32))
    grads = jax.grad(
        lambda v, old, ret: objectives.value_loss(v, old, ret, 0.5).sum(), argnums=(1, 2)
    )(rows["value"], rows["old_value"], rows["returns"])
    assert not np.any(grads[0])
    assert not np.any(grads[1])
