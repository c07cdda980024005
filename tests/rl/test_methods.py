"""METHODS as the learner calls them: coefficients, masks, limits, splitting, padding, numbers.

One batch of rows, every entry of the dict through every test. The equations' own tests are in
test_family.py; here it is what each entry makes of them, with what it finds of the mini-batch.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from remix_jax.rl import advantages, family, masked, off_policy
from remix_jax.types import Batch
from tests.rl import family_reference, token_rows

EXPERT_B = np.array([False, True, False, False, True, True, False])
GROUP_B = np.array([0, 0, 0, 1, 1, 2, 2])
AGE_B = np.array([0, 0, 1, 2, 0, 3, 1])
REWARD_B = np.array([1.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0])
TERMS = token_rows.TERMS
TESTED = {
    "bapo": ("target=0.6",),
    "m2po": ("bound=0.1",),
    "gspo": ("low=0.1", "high=0.15"),
    "decoupled_ppo": ("cap=1.5",),
    "tis": ("cap=1.2",),
    "masked_is": ("cap=1.2",),
}
"""Numbers at which these rows have tokens on either side of every bound; else the default."""

every_method = pytest.mark.parametrize("name", family.METHODS)


def numbers_of(name):
    """In the second pass of the second step."""
    scheduled = family.scheduled(name, TESTED.get(name, ()), 2, 9, 2)
    return {key: float(x_M[1]) for key, x_M in scheduled.items()}


class Case(NamedTuple):
    """What a loss is given."""

    logp_BT: jax.Array
    batch: Batch
    terms: off_policy.Terms

    def replace(self, **fields):
        return self._replace(batch=self.batch.replace(**fields))


def make_batch(name, seed=0, garbage=None, dtype=np.float64, columns=0, rows=0):
    """A case of seven rows; under the mask `garbage`; more masked columns and rows beside them."""
    drawn = token_rows.without_garbage(token_rows.make_rows(seed, dtype=dtype))
    experts = family.METHODS[name].experts
    expert_B = EXPERT_B if experts != "refused" else np.zeros(7, bool)
    fresh_B1 = (AGE_B == 0)[:, None]
    drawn["prox_logp"] = np.where(fresh_B1, drawn["behav_logp"], drawn["prox_logp"])
    unknown = np.where(expert_B[:, None], np.nan, drawn["behav_logp"])
    fields = {
        "logp_BT": drawn["logp"],
        "behav_logp_BT": unknown,
        "prox_logp_BT": np.where(expert_B[:, None] & fresh_B1, np.nan, drawn["prox_logp"]),
        "base_logp_BT": drawn["base_logp"],
        "adv_BT": drawn["adv"],
    }
    live_BT = drawn["mask"] == 1
    if garbage is not None:
        fields = {k: np.where(live_BT, x_BT, garbage) for k, x_BT in fields.items()}
    fields["mask_BT"] = drawn["mask"]
    widths = ((0, rows), (0, columns))
    fields = {
        k: np.pad(x, widths, constant_values=0 if k == "mask_BT" else np.nan)
        for k, x in fields.items()
    }
    by_row = {"reward_B": REWARD_B, "group_B": GROUP_B, "age_B": AGE_B, "expert_B": expert_B}
    fields |= {k: np.pad(x, (0, rows)) for k, x in by_row.items()}
    fields["reward_B"] = fields["reward_B"].astype(dtype)
    logp_BT, batch = jnp.asarray(fields.pop("logp_BT")), token_rows.batch(**fields)
    logp_BT = masked.zero_masked(logp_BT, batch.mask_BT)
    numbers = {key: jnp.asarray(x, dtype) for key, x in numbers_of(name).items()}
    return Case(logp_BT, batch, TERMS._replace(params=numbers))


def known(name, t):
    """The case with what the method finds of the whole of it."""
    method = family.METHODS[name]
    arguments = (t.logp_BT if method.forward else None, t.batch, t.terms)
    stats = method.stats and method.stats(*arguments)
    per_row_B = method.row_stats and method.row_stats(*arguments)
    return t._replace(terms=t.terms._replace(stats=stats)).replace(per_row_B=per_row_B)


@functools.cache
def _run(name):
    method = family.METHODS[name]

    def run(logp_BT, batch, params):
        t = known(name, Case(logp_BT, batch, TERMS._replace(params=params)))

        def loss(logp_BT):
            loss_BT = method.loss(logp_BT, t.batch, t.terms)
            total, _ = masked.sum_and_count(loss_BT, t.batch.mask_BT)
            return total, loss_BT

        (_, loss_BT), grad_BT = jax.value_and_grad(loss, has_aux=True)(t.logp_BT)
        return masked.zero_masked(loss_BT, t.batch.mask_BT), grad_BT

    return jax.jit(run)


def losses_and_gradient(name, t):
    """The token losses and -c of each token, from the method as the learner calls it."""
    return [np.asarray(x_BT) for x_BT in _run(name)(t.logp_BT, t.batch, t.terms.params)]


# ---------------------------------------------------------------------------- coefficients


def clean(t):
    """The batch as the NumPy reference takes it."""
    b = t.batch
    mask_BT = np.asarray(b.mask_BT)
    arrays = {"logp": t.logp_BT, "behav_logp": b.behav_logp_BT, "prox_logp": b.prox_logp_BT}
    arrays["adv"] = b.adv_BT
    rows = {k: np.where(mask_BT == 1, np.asarray(x_BT), 0) for k, x_BT in arrays.items()}
    return rows | {"mask": mask_BT, "expert": np.asarray(b.expert_B)}


def per_token(formula):
    def coefficient(t):
        rows, c_BT = clean(t), np.zeros(t.logp_BT.shape)
        for b, i in np.argwhere(rows["mask"] == 1):
            c_BT[b, i] = formula(t, rows, b, i)
        return c_BT

    return coefficient


def clipped(ratio, adv, low, high):
    return 0.0 if (adv > 0 and ratio > high) or (adv < 0 and ratio < low) else ratio * adv


def ratio_of(rows, b, i, of="logp", to="behav_logp"):
    return math.exp(rows[of][b, i] - rows[to][b, i])


def ppo(t, rows, b, i, low=0.2, high=0.2):
    return clipped(ratio_of(rows, b, i), rows["adv"][b, i], 1 - low, 1 + high)


def mix_ppg(t, rows, b, i, clip=0.2):
    centre = ratio_of(rows, b, i, "prox_logp")
    low = max(centre - clip, 0)
    return clipped(ratio_of(rows, b, i), rows["adv"][b, i], low, centre + clip)


def geppo(t, rows, b, i):
    """nu = .4, .3, .2, .1 by age over its mean of the rows with tokens; eps' = .2 / 2."""
    nu_B = np.array([0.4, 0.3, 0.2, 0.1])[AGE_B]
    live_B = rows["mask"].any(axis=1)
    return nu_B[b] / nu_B[live_B].mean() * mix_ppg(t, rows, b, i, 0.1)


def bapo(t, rows, b, i):
    low, high = (float(x) for x in known("bapo", t).terms.stats)
    return ppo(t, rows, b, i, 1 - low, high - 1)


def masked_is(t, rows, b, i):
    weight = ratio_of(rows, b, i, "prox_logp")
    ratio = ratio_of(rows, b, i, "logp", "prox_logp")
    kept = weight <= 1.2
    return weight * clipped(ratio, rows["adv"][b, i], 0.8, 1.2) if kept else 0.0


def chord(imitate):
    def coefficient(t, rows, b, i):
        mu, mask = float(t.terms.params["mu"]), rows["mask"]
        experts = mask[rows["expert"]].sum()
        if rows["expert"][b]:
            return mu * mask.sum() / experts * imitate(math.exp(rows["logp"][b, i]))
        return (1 - mu) * mask.sum() / (mask.sum() - experts) * ppo(t, rows, b, i)

    return coefficient


def agro(t, rows, b, i):
    live_B = rows["mask"].any(axis=1)
    base_BT = np.where(rows["mask"] == 1, np.asarray(t.batch.base_logp_BT), 0)
    regularised_B = REWARD_B - 0.1 * (rows["logp"] - base_BT).sum(axis=1)
    return regularised_B[b] - regularised_B[live_B & (GROUP_B[b] == GROUP_B)].mean()


def m2po(t, rows, b, i):
    bound = family_reference.m2po_threshold(rows, 0.1)
    log_ratio, adv = math.log(ratio_of(rows, b, i)), rows["adv"][b, i]
    outlier = log_ratio * adv > 0 and log_ratio**2 > bound * (1 + 1e-9)
    return 0.0 if outlier else math.exp(log_ratio) * adv


def p3o(t, rows, b, i):
    if AGE_B[b] == 0:
        return rows["adv"][b, i]
    old = dict(rows, mask=rows["mask"] * (AGE_B > 0)[:, None])
    ess = family_reference.effective_sample_size(old)
    return min(ratio_of(rows, b, i), ess) * rows["adv"][b, i] + 1 - ess


def of_reference(name, **options):
    def coefficient(t):
        return getattr(family_reference, name)(clean(t), **options)

    return coefficient


PLAIN = of_reference("reinforce")
COEFFICIENTS = {
    "mix_ppg": per_token(mix_ppg),
    "ppo": per_token(ppo),
    "dr_grpo": per_token(ppo),
    "off_policy_grpo": per_token(ppo),
    "toppo": per_token(ppo),
    "reinforce": PLAIN,
    "rloo": PLAIN,
    "asymre": PLAIN,
    "sft": PLAIN,
    "geppo": per_token(geppo),
    "topr": of_reference("topr"),
    "bapo": per_token(bapo),
    "luffy": of_reference("luffy"),
    "chord_mu": per_token(chord(lambda p: 1.0)),
    "chord_phi": per_token(chord(lambda p: p * (1 - p))),
    "agro": per_token(agro),
    "decoupled_ppo": of_reference("decoupled_ppo", cap=1.5),
    "tis": of_reference("decoupled_ppo", cap=1.2),
    "masked_is": per_token(masked_is),
    "gspo": of_reference("gspo", low=0.1, high=0.15),
    "cispo": of_reference("cispo"),
    "m2po": per_token(m2po),
    "opmd": of_reference("opmd"),
    "p3o": per_token(p3o),
    "bppo": per_token(lambda t, rows, b, i: ppo(t, rows, b, i, 0.18, 0.18)),
}


@every_method
def test_gradient_is_the_coefficient_form(name, x64):
    t = make_batch(name)
    _, grad_BT = losses_and_gradient(name, t)
    np.testing.assert_allclose(-grad_BT, COEFFICIENTS[name](t), rtol=1e-6, atol=1e-9)


@every_method
@pytest.mark.parametrize("garbage", [np.nan, np.inf])
def test_what_lies_under_the_mask_influences_nothing(name, garbage, x64):
    expected = losses_and_gradient(name, make_batch(name))
    t = make_batch(name, garbage=garbage)
    for actual_BT, expected_BT in zip(losses_and_gradient(name, t), expected, strict=True):
        np.testing.assert_array_equal(actual_BT, expected_BT)
        assert not np.any(actual_BT[np.asarray(t.batch.mask_BT) == 0])


@every_method
def test_padding_changes_nothing(name, x64):
    expected = losses_and_gradient(name, make_batch(name))
    wide = losses_and_gradient(name, make_batch(name, columns=3, rows=2))
    for wide_BT, expected_BT in zip(wide, expected, strict=True):
        np.testing.assert_allclose(wide_BT[:7, :-3], expected_BT, rtol=1e-12, atol=1e-15)
        assert not np.any(wide_BT[7:])
        assert not np.any(wide_BT[:, -3:])


@every_method
def test_micro_batches_are_one_batch_given_the_whole(name, x64):
    """What is found of the mini-batch goes along; rows are never divided."""
    t = known(name, make_batch(name))
    loss = family.METHODS[name].loss
    expected_BT = np.asarray(loss(*t))
    for part in (slice(0, 3), slice(3, 7)):
        logp_BT, piece = jax.tree.map(lambda x, part=part: x[part], (t.logp_BT, t.batch))
        actual_BT = loss(logp_BT, piece, t.terms)
        live_BT = np.asarray(piece.mask_BT) == 1
        np.testing.assert_allclose(
            np.asarray(actual_BT)[live_BT], expected_BT[part][live_BT], rtol=1e-12
        )


@every_method
def test_on_policy_limit(name, x64):
    """At ratio 1, fresh, the gradient is A's; what differs is no ratio, and is named."""
    t = make_batch(name)
    own = t.logp_BT
    t = t.replace(
        behav_logp_BT=own, prox_logp_BT=own, base_logp_BT=own, age_B=jnp.zeros(7, jnp.int32),
        expert_B=jnp.zeros(7, bool),
    )  # fmt: skip
    adv_BT = np.asarray(t.batch.adv_BT)
    live_B = np.asarray(t.batch.mask_BT).any(axis=1)
    if name == "agro":
        mean_B = [REWARD_B[live_B & (g == GROUP_B)].mean() for g in GROUP_B]
        adv_BT = np.where(np.asarray(t.batch.mask_BT) == 1, (REWARD_B - mean_B)[:, None], 0)
    if name.startswith("chord"):
        adv_BT = (1 - float(t.terms.params["mu"])) * adv_BT
    _, grad_BT = losses_and_gradient(name, t)
    np.testing.assert_allclose(-grad_BT, adv_BT, rtol=1e-12, atol=1e-12)


# ---------------------------------------------------------------------------- numbers, advantages


def test_params_by_hand():
    def params(name, *given, step=1):
        return family.scheduled(name, given, step, 11, 3)

    def assert_are(actual, **expected):
        assert actual.keys() == expected.keys()
        for key, x_M in actual.items():
            np.testing.assert_allclose(x_M, np.full(3, expected[key]), rtol=1e-6)

    assert_are(params("decoupled_ppo"), cap=5)
    assert_are(params("chord_phi", "mu = 0.3"), mu=0.3)
    assert_are(params("gspo"), low=3e-4, high=4e-4)
    assert_are(params("gspo", "high=1e-3"), low=3e-4, high=1e-3)
    assert_are(params("bppo", "factor=0.5"), scale=[1, 0.5, 0.25])
    assert_are(params("mix_ppg"))
    for step, mu in ((1, 0.9), (6, 0.475), (11, 0.05)):
        assert_are(params("chord_mu", step=step), mu=mu)
    assert_are(params("chord_mu", "first=0.5", "last=0.5", step=3), mu=0.5)


@every_method
def test_a_method_reads_the_clips_that_it_says(name, x64):
    """Of each of the three another value changes some token's loss, or all leave it as it is."""
    t = known(name, make_batch(name))
    losses = [
        np.asarray(family.METHODS[name].loss(t.logp_BT, t.batch, t.terms._replace(**clips)))
        for clips in ({}, {"clip": 0.01}, {"clip_high": 0.9}, {"dual_clip": 1.01})
    ]
    differ = [bool(np.any(loss_BT != losses[0])) for loss_BT in losses[1:]]
    assert differ == [family.METHODS[name].clips] * 3


def test_advantages_of_single_methods():
    reward_B = jnp.asarray([1.0, 0.0, 1.0, 1.0], jnp.float32)
    group_B, mask_B = jnp.asarray([0, 0, 1, 1]), jnp.asarray([1.0, 1.0, 1.0, 0.0], jnp.float32)

    def own(name):
        advantage = family.METHODS[name].own_advantage
        assert advantage is not None
        return advantage(reward_B, group_B, mask_B, numbers_of(name))

    np.testing.assert_allclose(own("topr"), [1, -1, 1, 0])
    np.testing.assert_allclose(own("asymre"), [0.55, -0.45, 0.05, 0], rtol=1e-6)
    np.testing.assert_allclose(own("sft"), [1, 1, 1, 0])


def test_every_advantage_aggregation_and_number_is_possible():
    for name, method in family.METHODS.items():
        assert not (method.advantage and method.own_advantage), name
        assert method.advantage in ("", *advantages.ESTIMATORS), name
        assert method.aggregation in ("", *masked.AGGREGATIONS), name
        assert method.experts in ("refused", "taken", "needed"), name
        for key, param in method.params.items():
            assert param.low <= param.default <= param.high, (name, key)


def test_reference_is_used():
    assert set(COEFFICIENTS) == set(family.METHODS)
