"""Losses and gradients against verl, TRL and the literal ReMix objectives; see goldens/README.md.

Tolerances: float64 rtol 1e-7; float32 loss 1e-5, gradient 1e-5 of its largest element.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from remix_jax.rl import constraints, masked, objectives, schedules
from tests import reference, vectors
from tests.rl import token_rows

TOKEN_MEAN, _, SEQ_MEAN_TOKEN_MEAN, SUM_NORM = range(4)
"""Positions in reference.MODES, the order of the vectors."""
VERL = vectors.losses("verl_policy")
MISC = vectors.losses("verl_misc")
TRL = vectors.losses("trl_grpo")
OFF_POLICY = vectors.losses("offpolicy_oracles")
LOGITS = vectors.losses("remix_logits")


def inputs(arrays, names, dtype):
    return [arrays[f"in/{name}"].astype(dtype) for name in names]


def assert_matches(actual, expected, dtype):
    (loss, grad), (expected_loss, expected_grad) = actual, expected
    assert loss.dtype == grad.dtype == dtype
    if dtype is np.float64:
        np.testing.assert_allclose(loss, expected_loss, rtol=1e-7, atol=1e-12)
        np.testing.assert_allclose(grad, expected_grad, rtol=1e-7, atol=1e-12)
    else:
        np.testing.assert_allclose(loss, expected_loss, rtol=1e-5, atol=1e-6)
        token_rows.assert_gradient_close(grad, expected_grad, 1e-5)
    zeros = np.broadcast_to(expected_grad == 0, grad.shape)
    assert np.all(grad[zeros] == 0)  # clipped and masked tokens alike


# ---------------------------------------------------------------------------- verl


def verl_loss(logp_BT, old_BT, adv_BT, weight_BT, low, high, dual_clip):
    return weight_BT * objectives.ppo(logp_BT, old_BT, adv_BT, low, high, dual_clip)


@pytest.mark.parametrize("case", VERL)
def test_ppo_is_verls_vanilla_loss(case, dtype):
    arrays, settings = VERL[case]
    *arguments, mask_BT = inputs(arrays, ("logp", "old_logp", "adv", "mask"), dtype)
    weight_BT = arrays.get("in/is_weights", np.ones_like(mask_BT)).astype(dtype)
    clips = [settings["config"][f"clip_ratio_{end}"] for end in ("low", "high", "c")]
    actual = token_rows.losses_and_gradients(verl_loss, [*arguments, weight_BT, *clips], mask_BT)
    assert_matches(actual, (arrays["vanilla/loss"], arrays["vanilla/grad"]), dtype)


@pytest.mark.parametrize("case", MISC)
def test_value_loss_is_verls(case, dtype):
    arrays, settings = MISC[case]
    arguments = [
        arrays[f"value/in/{name}"].astype(dtype) for name in ("vpreds", "values", "returns")
    ]
    actual = token_rows.losses_and_gradients(
        functools.partial(objectives.value_loss, clip=settings["case"]["vclip"]),
        arguments,
        arrays["value/in/mask"].astype(dtype),
    )
    assert_matches(actual, (arrays["value/loss"], arrays["value/grad"]), dtype)


# ---------------------------------------------------------------------------- TRL


def trl_in_our_modes(loss_type, settings, mask_BT):
    """(index of our aggregation, factor): TRL's normaliser in our terms."""
    tokens, (rows, width) = mask_BT.sum(), mask_BT.shape
    return {
        "grpo": (SEQ_MEAN_TOKEN_MEAN, 1.0),
        "bnpo": (TOKEN_MEAN, 1.0),
        "dr_grpo": (SUM_NORM, width / (rows * settings["case"]["maxlen"])),
        "dapo": (TOKEN_MEAN, tokens / settings["num_items_in_batch"]),
    }[loss_type]


def trl_loss(logp_BT, old_BT, adv_BT, ref_BT, low, high, beta, dual_clip=None):
    policy_BT = objectives.ppo(logp_BT, old_BT, adv_BT, low, high, dual_clip)
    return policy_BT + beta * constraints.k3(logp_BT, ref_BT)


@pytest.mark.parametrize("options", ["", "-beta", "-delta", "-beta-delta"])
@pytest.mark.parametrize("case", TRL)
def test_token_level_grpo_is_trls(case, options, dtype):
    arrays, settings = TRL[case]
    config = settings["case"]
    logp_BT, old_BT, ref_BT, mask_BT = inputs(
        arrays, ("logp", "old_logp", "ref_logp", "mask"), dtype
    )
    adv_BT = np.broadcast_to(arrays["in/adv"].astype(dtype)[:, None], mask_BT.shape)
    arguments = [logp_BT, old_BT, adv_BT, ref_BT, config["lo"], config["hi"]]
    arguments.append(config["beta"] if "beta" in options else 0.0)
    if "delta" in options:
        # TRL's delta caps the ratio of both signs; for A > 0 the clip at 1 + high has cut before.
        assert config["delta"] > 1 + config["hi"]
        arguments.append(config["delta"])
    loss, grad = token_rows.losses_and_gradients(trl_loss, arguments, mask_BT)
    compared = 0
    for loss_type in ("grpo", "bnpo", "dr_grpo", "dapo"):
        method = f"{loss_type}-token{options}"
        if f"{method}/loss" not in arrays:
            continue
        mode, factor = trl_in_our_modes(loss_type, settings, arrays["in/mask"])
        factor = dtype(factor)
        expected = (arrays[f"{method}/loss"], arrays[f"{method}/grad"])
        assert_matches((loss[mode] * factor, grad[mode] * factor), expected, dtype)
        compared += 1
    assert compared >= 2


# ---------------------------------------------------------------------------- Mix-PPG


@pytest.mark.parametrize("variant", ["mixppg", "mixppg_seqadv", "mixppg_dual"])
@pytest.mark.parametrize("case", OFF_POLICY)
def test_mix_ppg(case, variant, dtype):
    arrays, settings = OFF_POLICY[case]
    logp_BT, behav_BT, prox_BT, adv_BT, adv_B, mask_BT = inputs(
        arrays, ("logp", "behav_logp", "prox_logp", "adv_tok", "adv_seq", "mask"), dtype
    )
    if variant == "mixppg_seqadv":
        adv_BT = np.broadcast_to(adv_B[:, None], mask_BT.shape)
    clips = [settings["params"]["eps"]]
    if variant == "mixppg_dual":
        clips.append(settings["params"]["dual"])
    actual = token_rows.losses_and_gradients(
        objectives.mix_ppg, [logp_BT, behav_BT, prox_BT, adv_BT, *clips], mask_BT
    )
    assert_matches(actual, (arrays[f"{variant}/loss"], arrays[f"{variant}/grad"]), dtype)


@pytest.mark.parametrize("case", OFF_POLICY)
def test_clip_share(case, dtype):
    arrays, settings = OFF_POLICY[case]
    *arguments, mask_BT = inputs(
        arrays, ("logp", "behav_logp", "prox_logp", "adv_tok", "mask"), dtype
    )
    logp_BT, *others = arguments
    loss = functools.partial(objectives.mix_ppg, clip=settings["params"]["eps"])
    grad_BT = jax.grad(lambda x: loss(x, *others).sum())(jnp.asarray(logp_BT))
    share = masked.mean(((grad_BT == 0) & (others[-1] != 0)).astype(dtype), mask_BT)
    np.testing.assert_allclose(share, arrays["mixppg/clipfrac"], rtol=1e-6)


# ---------------------------------------------------------------------------- ReMix, the whole loss


def remix_loss(logp_BT, entropy_BT, behav_BT, prox_BT, base_BT, prev_BT, adv_BT, *scalars, stage):
    """Token losses of a step: policy - c_H entropy + beta KL-Convex."""
    eps, lam, beta, entropy_coefficient = scalars
    if stage == 1:
        policy_BT = objectives.mix_ppg(logp_BT, behav_BT, prox_BT, adv_BT, eps)
    else:
        policy_BT = objectives.ppo(logp_BT, prox_BT, adv_BT, eps, eps)
    kl_BT = constraints.kl_convex(logp_BT, base_BT, prev_BT, lam)
    return policy_BT - entropy_coefficient * entropy_BT + beta * kl_BT


def remix_loss_of_entropy(entropy_BT, logp_BT, *others, stage):
    """The same, the entropy being the argument that is differentiated."""
    return remix_loss(logp_BT, entropy_BT, *others, stage=stage)


REMIX_LOSSES = {
    stage: [
        functools.partial(function, stage=stage) for function in (remix_loss, remix_loss_of_entropy)
    ]
    for stage in (1, 2)
}
REMIX_INPUTS = (
    "logp",
    "entropy",
    "behav_logp",
    "prox_logp",
    "ref_logp",
    "prev_logp",
    "adv_tok",
    "mask",
)


@pytest.mark.parametrize("part", ["remix0", "remix1", "remix2"])
@pytest.mark.parametrize("case", OFF_POLICY)
def test_remix_total_and_gradients(case, part, dtype):
    arrays, settings = OFF_POLICY[case]
    config = settings[part]
    lam = float(schedules.kl_convex_weight(config["t"]))
    scalars = [settings["params"]["eps"], lam, config["beta"], config["ent_coef"]]
    logp_BT, entropy_BT, *others, mask_BT = inputs(arrays, REMIX_INPUTS, dtype)
    total = arrays[f"{part}/loss_parts"][:, 0]
    of_logp, of_entropy = REMIX_LOSSES[config["stage"]]
    actual = token_rows.losses_and_gradients(
        of_logp, [logp_BT, entropy_BT, *others, *scalars], mask_BT
    )
    assert_matches(actual, (total, arrays[f"{part}/grad"]), dtype)
    actual = token_rows.losses_and_gradients(
        of_entropy, [entropy_BT, logp_BT, *others, *scalars], mask_BT
    )
    assert_matches(actual, (total, arrays[f"{part}/grad_entropy"]), dtype)


@pytest.mark.parametrize("part", ["remix0", "remix1", "remix2"])
@pytest.mark.parametrize("case", OFF_POLICY)
def test_remix_parts(case, part, x64):
    arrays, settings = OFF_POLICY[case]
    eps, stage = settings["params"]["eps"], settings[part]["stage"]
    logp_BT, entropy_BT, behav_BT, prox_BT, base_BT, prev_BT, adv_BT, mask_BT = inputs(
        arrays, REMIX_INPUTS, np.float64
    )
    policy_BT = (
        objectives.mix_ppg(logp_BT, behav_BT, prox_BT, adv_BT, eps)
        if stage == 1
        else objectives.ppo(logp_BT, prox_BT, adv_BT, eps, eps)
    )
    parts = (
        policy_BT,
        jnp.asarray(entropy_BT),
        constraints.k3(logp_BT, base_BT),
        constraints.k3(logp_BT, prev_BT),
    )
    for i, mode in enumerate(reference.MODES):
        actual = [masked.aggregate(part_BT, mask_BT, mode) for part_BT in parts]
        np.testing.assert_allclose(actual, arrays[f"{part}/loss_parts"][i, 1:], rtol=1e-9)


@pytest.mark.parametrize("part", ["remix0", "remix1", "remix2"])
@pytest.mark.parametrize("case", OFF_POLICY)
def test_the_reference_agrees_with_the_vectors(case, part):
    """tests/reference.py is independent of both; so it is checked as well."""
    arrays, settings = OFF_POLICY[case]
    config = settings[part]
    rows = {name: arrays[f"in/{name}"] for name in REMIX_INPUTS}
    rows = token_rows.without_garbage(
        rows | {"base_logp": rows["ref_logp"], "adv": rows["adv_tok"]}
    )
    for i, mode in enumerate(reference.MODES):
        parts = reference.remix_loss(
            rows,
            mode,
            lam=reference.kl_convex_weight(config["t"]),
            beta=config["beta"],
            entropy_coefficient=config["ent_coef"],
            clip=settings["params"]["eps"],
            stage=config["stage"],
            entropy_BT=rows["entropy"],
            mask_BT=rows["mask"],
        )
        np.testing.assert_allclose(parts, arrays[f"{part}/loss_parts"][i], rtol=1e-12)


@pytest.mark.parametrize("estimator", sorted(constraints.ESTIMATORS))
@pytest.mark.parametrize("case", LOGITS)
def test_remix_from_logits(case, estimator, dtype):
    """The gradient that reaches the network, through log-softmax and the exact entropy."""
    arrays, settings = LOGITS[case]
    config = settings["case"]
    behav_BT, prox_BT, base_BT, prev_BT, adv_BT, mask_BT = inputs(
        arrays, ("behav_logp", "prox_logp", "ref_logp", "prev_logp", "adv", "mask"), dtype
    )
    tokens_BT = arrays["in/tokens"]

    def losses(logits_BTV):
        logp_BTV = jax.nn.log_softmax(logits_BTV)
        logp_BT = jnp.take_along_axis(logp_BTV, tokens_BT[..., None], axis=-1)[..., 0]
        entropy_BT = -(jnp.exp(logp_BTV) * logp_BTV).sum(axis=-1)
        policy_BT = objectives.mix_ppg(logp_BT, behav_BT, prox_BT, adv_BT, config["eps"])
        lam = schedules.kl_convex_weight(config["t"])
        kl_BT = constraints.kl_convex(logp_BT, base_BT, prev_BT, lam, estimator)
        loss_BT = policy_BT - config["ent_coef"] * entropy_BT + config["beta"] * kl_BT
        return jnp.stack([masked.aggregate(loss_BT, mask_BT, mode) for mode in reference.MODES])

    @jax.jit
    def run(logits_BTV):
        loss, pull_back = jax.vjp(losses, logits_BTV)
        return loss, pull_back((jnp.arange(4) == TOKEN_MEAN).astype(loss.dtype))[0]

    logits_BTV = jnp.asarray(arrays["in/logits"], dtype)
    loss, grad_BTV = run(logits_BTV)
    expected_grad = arrays[f"{estimator}/grad_logits_token_mean"]
    rtol = 1e-7 if dtype is np.float64 else 1e-5
    np.testing.assert_allclose(loss, arrays[f"{estimator}/loss"], rtol=rtol)
    token_rows.assert_gradient_close(grad_BTV, expected_grad, rtol)
    assert not np.any(np.asarray(grad_BTV)[mask_BT == 0])
