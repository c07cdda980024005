"""The off-policy family against verl, TRL, GePPO's code and literal torch objectives.

Tolerances as in test_objectives_goldens.py. The small copy of the vectors holds some of the cases.
"""

import json

import jax
import numpy as np
import pytest

from remix_jax.rl import advantages, masked, objectives, off_policy
from tests import vectors
from tests.rl import token_rows
from tests.rl.test_objectives_goldens import (
    OFF_POLICY,
    SEQ_MEAN_TOKEN_MEAN,
    TOKEN_MEAN,
    TRL,
    VERL,
    assert_matches,
    inputs,
)

EXPERT = 2
RATIO_INPUTS = ("logp", "behav_logp", "mask")
VTRACE = vectors.losses("geppo_vtrace")
WEIGHTS = json.loads((vectors.GOLDENS / "losses" / "geppo_weights.json").read_text())


@pytest.fixture
def dtype(x64):
    """Double precision only: test_family.py has single precision."""
    return np.float64


def cases(table, method):
    """The cases of a file that hold a method; a golden that is nowhere is an error."""
    found = [case for case in table if f"{method}/grad" in table[case][0]]
    assert found, method
    return found


def per_token(x_B, mask_BT):
    """A number a row, as an array of the mask's shape and dtype."""
    return np.broadcast_to(x_B[:, None], mask_BT.shape).astype(mask_BT.dtype)


def loss_of(equation, mask_BT, **known):
    """(logp, behav, adv) -> token losses of a function of `off_policy`."""

    def loss(logp_BT, behav_logp_BT, adv_BT):
        columns = {"behav_logp_BT": behav_logp_BT, "adv_BT": adv_BT}
        return token_rows.call(equation, logp_BT, mask_BT, **columns, **known)

    return loss


def results(arrays, method):
    return arrays[f"{method}/loss"], arrays[f"{method}/grad"]


# ---------------------------------------------------------------------------- verl, TRL


@pytest.mark.parametrize("case", cases(VERL, "cispo"))
def test_cispo_is_verls(case, dtype):
    arrays, settings = VERL[case]
    *arguments, mask_BT = inputs(arrays, ("logp", "old_logp", "adv", "mask"), dtype)
    weight_BT = arrays.get("in/is_weights", np.ones_like(mask_BT)).astype(dtype)
    low, high = (settings["config"][f"clip_ratio_{end}"] for end in ("low", "high"))

    cispo = loss_of(off_policy.cispo, mask_BT, params={"low": low, "high": high})
    actual = token_rows.losses_and_gradients(lambda *x: weight_BT * cispo(*x), arguments, mask_BT)
    assert_matches(actual, results(arrays, "cispo"), dtype)


@pytest.mark.parametrize("case", cases(TRL, "cispo-token"))
def test_cispo_is_trls(case, dtype):
    """TRL: an absolute cap, no lower bound."""
    arrays, settings = TRL[case]
    logp_BT, old_BT, mask_BT = inputs(arrays, ("logp", "old_logp", "mask"), dtype)
    adv_BT = per_token(arrays["in/adv"], mask_BT)
    high = settings["case"]["cispo_hi"] - 1
    loss = loss_of(off_policy.cispo, mask_BT, params={"low": 1.0, "high": high})
    loss, grad = token_rows.losses_and_gradients(loss, [logp_BT, old_BT, adv_BT], mask_BT)
    scale = dtype(mask_BT.sum() / settings["num_items_in_batch"])
    actual = (loss[TOKEN_MEAN] * scale, grad[TOKEN_MEAN] * scale)
    assert_matches(actual, results(arrays, "cispo-token"), dtype)


def gspo_result(arrays, names, adv_BT, clips, dtype, weight_BT=1.0):
    logp_BT, old_BT, mask_BT = inputs(arrays, names, dtype)

    params = dict(zip(("low", "high"), clips, strict=True))
    gspo = loss_of(off_policy.gspo, mask_BT, params=params)
    loss, grad = token_rows.losses_and_gradients(
        lambda *x: weight_BT * gspo(*x), [logp_BT, old_BT, adv_BT], mask_BT
    )
    return loss[SEQ_MEAN_TOKEN_MEAN], grad[SEQ_MEAN_TOKEN_MEAN]


@pytest.mark.parametrize("case", cases(VERL, "gspo"))
def test_gspo_is_verls(case, dtype):
    arrays, settings = VERL[case]
    clips = [settings["config"][f"clip_ratio_{end}"] for end in ("low", "high")]
    weight_BT = arrays.get("in/is_weights", np.ones_like(arrays["in/mask"])).astype(dtype)
    adv_BT = arrays["in/adv"].astype(dtype)
    names = ("logp", "old_logp", "mask")
    actual = gspo_result(arrays, names, adv_BT, clips, dtype, weight_BT)
    assert_matches(actual, results(arrays, "gspo"), dtype)


@pytest.mark.parametrize("case", cases(TRL, "grpo-sequence"))
def test_gspo_is_trls_sequence_level(case, dtype):
    arrays, settings = TRL[case]
    clips = [settings["case"][end] for end in ("lo", "hi")]
    adv_BT = per_token(arrays["in/adv"], arrays["in/mask"].astype(dtype))
    actual = gspo_result(arrays, ("logp", "old_logp", "mask"), adv_BT, clips, dtype)
    assert_matches(actual, results(arrays, "grpo-sequence"), dtype)


# ---------------------------------------------------------------------------- GePPO


def geppo(arrays, settings, weight_B, dtype):
    """Mix-PPG times a weight a row."""
    *arguments, mask_BT = inputs(
        arrays, ("logp", "behav_logp", "prox_logp", "adv_tok", "mask"), dtype
    )
    weight_B1 = np.asarray(weight_B).astype(dtype)[:, None]
    clip = settings["params"]["eps"]
    return token_rows.losses_and_gradients(
        lambda *x: weight_B1 * objectives.mix_ppg(*x, clip), arguments, mask_BT
    )


@pytest.mark.parametrize("case", cases(OFF_POLICY, "mixppg_nu"))
def test_age_weights_of_mix_ppg(case, dtype):
    arrays, settings = OFF_POLICY[case]
    age_B, nu_M = arrays["in/age"], arrays["in/nu"].astype(dtype)
    one_BT = np.ones((len(age_B), 1))
    weight_B = token_rows.call(
        off_policy.age_weight, one_BT, one_BT, {"weights": nu_M}, age_B=age_B
    )
    np.testing.assert_allclose(weight_B, arrays["in/nu_weight"], rtol=1e-6)
    actual = geppo(arrays, settings, weight_B, dtype)
    assert_matches(actual, results(arrays, "mixppg_nu"), dtype)


@pytest.mark.parametrize("case", cases(OFF_POLICY, "geppo0"))
def test_geppos_own_loss(case, dtype):
    """Its code normalises the weights to a mean of 1 over tokens, not rows."""
    arrays, settings = OFF_POLICY[case]
    weight_B, mask_BT = arrays["in/nu_weight"], arrays["in/mask"]
    weight_B = weight_B * mask_BT.sum() / (weight_B[:, None] * mask_BT).sum()
    loss, grad = geppo(arrays, settings, weight_B, dtype)
    assert_matches((loss[TOKEN_MEAN], grad[TOKEN_MEAN]), results(arrays, "geppo0"), dtype)


@pytest.mark.parametrize("entry", WEIGHTS, ids=lambda entry: f"B{entry['B']}")
def test_geppo_weights_solve_its_quadratic_program(entry):
    nu_M = off_policy.geppo_weights(3 * entry["B"] - 3)
    np.testing.assert_allclose(nu_M, entry["weights"], rtol=1e-12)
    np.testing.assert_allclose(off_policy.geppo_clip(1.0, nu_M), entry["eps_mult"], rtol=1e-12)


@pytest.mark.parametrize("case", VTRACE)
@pytest.mark.parametrize("holes", [False, True])
def test_vtrace_is_geppos(case, holes, x64, compiled):
    arrays, settings = VTRACE[case]
    reward, value, done = (arrays[f"in/{name}"].copy() for name in ("r", "V", "done"))
    # No value follows the last token: the bootstrap of an unfinished trajectory is a reward.
    reward[-1] += settings["gamma"] * (1 - done[-1]) * arrays["in/Vnext"][-1]
    ratio = np.exp(arrays["in/logp_pik"] - arrays["in/logp_behav"])
    at = np.arange(len(reward)) * (2 if holes else 1) + holes
    width = at[-1] + 1 + holes

    def spread(x):
        row_BT = np.full((3, width), np.nan)
        row_BT[:, at] = x
        return row_BT

    mask_BT = np.zeros((3, width))
    mask_BT[:, at] = 1.0
    gamma, lam, cap = (settings[name] for name in ("gamma", "lam", "trunc"))
    adv_BT, return_BT = compiled(advantages.vtrace)(
        spread(reward), spread(value), spread(ratio), mask_BT, gamma, lam, cap
    )
    for row in (0, 2):
        np.testing.assert_allclose(adv_BT[row, at], arrays["vtrace/adv"], rtol=1e-5)
        target = np.asarray(return_BT)[row, at]
        np.testing.assert_allclose(target, arrays["vtrace/target"], rtol=1e-5, atol=1e-6)
    assert not np.any(np.asarray(adv_BT)[mask_BT == 0])
    on_policy = advantages.vtrace(
        spread(reward), spread(value), np.ones_like(mask_BT), mask_BT, gamma, lam
    )
    plain = advantages.gae(spread(reward), spread(value), mask_BT, gamma, lam)
    for actual, expected in zip(on_policy, plain, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-15)


# ---------------------------------------------------------------------------- literal objectives


@pytest.mark.parametrize("variant", ["topr0", "topr1"])
@pytest.mark.parametrize("case", cases(OFF_POLICY, "topr0"))
def test_topr(case, variant, dtype):
    arrays, _ = OFF_POLICY[case]
    logp_BT, behav_BT, mask_BT = inputs(arrays, RATIO_INPUTS, dtype)
    ratio_B = np.exp(((logp_BT - behav_BT) * mask_BT).sum(axis=1))
    np.testing.assert_allclose(ratio_B, arrays[f"{variant}/seq_ratio"], rtol=1e-5)
    adv_BT = per_token(arrays[f"{variant}/adv"], mask_BT)
    actual = token_rows.losses_and_gradients(
        loss_of(off_policy.topr, mask_BT), [logp_BT, behav_BT, adv_BT], mask_BT
    )
    assert_matches(actual, results(arrays, variant), dtype)


@pytest.mark.parametrize("case", cases(OFF_POLICY, "asymre"))
def test_asymre(case, dtype):
    arrays, settings = OFF_POLICY[case]
    logp_BT, mask_BT = inputs(arrays, ("logp", "mask"), dtype)
    reward_B = (2 * arrays["in/reward"] - 1).astype(dtype)
    adv_B = advantages.asymre(reward_B, arrays["in/group"], settings["asymre"]["dV"])
    np.testing.assert_allclose(adv_B, arrays["asymre/adv"], rtol=1e-6)
    adv_BT = per_token(np.asarray(adv_B), mask_BT)
    actual = token_rows.losses_and_gradients(
        loss_of(off_policy.reinforce, mask_BT), [logp_BT, logp_BT, adv_BT], mask_BT
    )
    assert_matches(actual, results(arrays, "asymre"), dtype)


@pytest.mark.parametrize("variant", ["bapo", "bapo_mid"])
@pytest.mark.parametrize("case", cases(OFF_POLICY, "bapo"))
def test_bapo(case, variant, dtype):
    arrays, settings = OFF_POLICY[case]
    config = settings[variant]
    *arguments, mask_BT = inputs(arrays, ("logp", "behav_logp", "adv_tok", "mask"), dtype)
    ends = {
        "low": (config["a_minus"], config["b_minus"], config["d2"]),
        "high": (config["a_plus"], config["b_plus"], config["d1"]),
    }
    params = {"target": config["rho0"]}
    search = loss_of(off_policy.bapo_bounds, mask_BT, params=params, options=ends)
    c_low, c_high = search(*arguments)
    np.testing.assert_allclose((c_low, c_high), arrays[f"{variant}/bounds"], rtol=1e-6)
    actual = token_rows.losses_and_gradients(
        objectives.ppo, [*arguments, 1 - c_low, c_high - 1], mask_BT
    )
    assert_matches(actual, results(arrays, variant), dtype)


@pytest.mark.parametrize("case", cases(OFF_POLICY, "luffy"))
def test_luffy(case, dtype):
    arrays, settings = OFF_POLICY[case]
    logp_BT, behav_BT, mask_BT = inputs(arrays, RATIO_INPUTS, dtype)
    adv_B = advantages.asymre(arrays["in/reward"].astype(dtype), arrays["in/group"], shift=0.0)
    np.testing.assert_allclose(adv_B, arrays["luffy/adv"], rtol=1e-6, atol=1e-7)
    expert_B = arrays["in/source"] == EXPERT
    assert expert_B.any()
    behav_BT = np.where(expert_B[:, None], dtype(np.nan), behav_BT)
    gamma, eps = (settings["luffy"][name] for name in ("gamma", "eps"))
    actual = token_rows.losses_and_gradients(
        loss_of(off_policy.luffy, mask_BT, expert_B=expert_B, params={"gamma": gamma}, clip=eps),
        [logp_BT, behav_BT, per_token(np.asarray(adv_B), mask_BT)],
        mask_BT,
    )
    assert_matches(actual, results(arrays, "luffy"), dtype)


@pytest.mark.parametrize("variant", ["phi", "mu"])
@pytest.mark.parametrize("case", cases(OFF_POLICY, "chord_phi"))
def test_chord(case, variant, dtype):
    """Two parts, each with its own mask and denominator."""
    arrays, settings = OFF_POLICY[case]
    config = settings["chord"]
    mu, eps = config[f"mu_{variant}"], config["eps"]
    logp_BT, behav_BT, mask_BT = inputs(arrays, RATIO_INPUTS, dtype)
    expert_B = arrays["in/source"] == EXPERT
    adv_BT = per_token(arrays["chord/adv"], mask_BT)
    known = {"expert_B": expert_B, "clip": eps, "stats": (1.0, 1.0)}
    loss = loss_of(getattr(off_policy, f"chord_{variant}"), mask_BT, **known)
    masks = (mask_BT * expert_B[:, None], mask_BT * ~expert_B[:, None])
    parts = [
        (weight, token_rows.losses_and_gradients(loss, [logp_BT, behav_BT, adv_BT], part_BT))
        for weight, part_BT in zip((mu, 1 - mu), masks, strict=True)
    ]
    loss, grad = (sum(dtype(w) * part[i] for w, part in parts) for i in (0, 1))
    assert_matches((loss, grad), results(arrays, f"chord_{variant}"), dtype)


@pytest.mark.parametrize("case", cases(OFF_POLICY, "agro"))
def test_agro(case, dtype):
    """b times the gradient of `reinforce`, over the rows, is autograd of the squared objective."""
    arrays, settings = OFF_POLICY[case]
    beta = settings["agro"]["beta"]
    logp_BT, ref_BT, mask_BT = inputs(arrays, ("logp", "ref_logp", "mask"), dtype)
    logp_BT, ref_BT = (np.where(mask_BT == 1, x_BT, np.nan) for x_BT in (logp_BT, ref_BT))
    columns = {"reward_B": arrays["in/reward"].astype(dtype), "group_B": arrays["in/group"]}
    columns |= {"base_logp_BT": ref_BT, "params": {"beta": beta}}
    adv_B = token_rows.call(off_policy.agro_advantage, logp_BT, mask_BT, **columns)
    loss = 0.5 * np.mean(np.square(np.asarray(adv_B)))
    np.testing.assert_allclose(loss, arrays["agro/loss"], rtol=1e-5)

    def total(logp_BT):
        loss_BT = token_rows.call(off_policy.agro, logp_BT, mask_BT, per_row_B=adv_B)
        return masked.zero_masked(loss_BT, mask_BT).sum() / len(mask_BT)

    grad_BT = jax.grad(total)(logp_BT)
    token_rows.assert_gradient_close(grad_BT, arrays["agro/grad_over_beta"], 1e-9)
    token_rows.assert_gradient_close(beta * grad_BT, arrays["agro/grad"], 1e-9)
