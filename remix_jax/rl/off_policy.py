"""The objectives that `objective.method` selects, one function a method, its equation with it.

Each is (logp_BT, batch, terms) -> loss_BT, to be reduced by `masked.aggregate`; `family.METHODS`
lists them. l = log pi_theta of a token, mu the policy that sampled it, r = pi_theta / mu, A the
advantage, sg the stop of gradients; of a response y, r(y) is the product of the ratios, s(y) =
r(y)^(1 / |y|); other names are the method's own numbers (`terms.params`). A loss has the gradient
of -aggregate(sg(c) l) for the coefficient c that its docstring names; none flows but through
logp_BT.

Log-probs and advantages are 0 where nothing counts: `zero_unknown` for the batch, as for logp_BT.
Rows are whole: no response is split over micro-batches. What a method needs of the whole
mini-batch is found once, before its micro-batches and at the parameters that it starts from: found
per micro-batch it is another algorithm.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from remix_jax.rl import advantages, masked, objectives
from remix_jax.types import Batch

Params = Mapping[str, Array | float]


class Terms(NamedTuple):
    """The numbers of a loss: constants of the program, and what the mini-batch gives."""

    clip: float
    clip_high: float | None  # of the upper side; None: as the lower
    dual_clip: float | None
    window: int  # oldest age of a replayed row
    aggregation: str
    params: Params  # of the method, as scheduled
    stats: Any = None  # what `Method.stats` found of the whole mini-batch

    @property
    def high(self) -> float:
        """Half-width of the clip's upper side."""
        return self.clip if self.clip_high is None else self.clip_high


def zero_unknown(batch: Batch) -> Batch:
    """The batch with 0 under its mask, and for mu of an expert's rows: 0 * NaN is no 0."""
    masks = dict.fromkeys(("behav_logp_BT", "prox_logp_BT"), batch.own_BT)
    masks |= dict.fromkeys(("base_logp_BT", "adv_BT"), batch.mask_BT)
    known = {name: masked.zero_masked(getattr(batch, name), m_BT) for name, m_BT in masks.items()}
    return batch.replace(**known)


def _surrogate(c_BT: Array, logp_BT: Array) -> Array:
    """-sg(c) l."""
    return -jax.lax.stop_gradient(c_BT) * logp_BT


def _log_ratio(logp_BT: Array, behav_logp_BT: Array) -> Array:
    """log r(y), [B]; 0 for a row without tokens."""
    return (logp_BT - behav_logp_BT).sum(axis=1)


def mix_ppg(logp_BT: Array, b: Batch, t: Terms) -> Array:
    """ReMix's objective: `objectives.mix_ppg`."""
    policies = (logp_BT, b.behav_logp_BT, b.prox_logp_BT)
    return objectives.mix_ppg(*policies, b.adv_BT, t.clip, t.dual_clip, t.clip_high)


def ppo(logp_BT: Array, b: Batch, t: Terms) -> Array:
    """`objectives.ppo` around mu; Dr.GRPO, off-policy GRPO, ToPPO."""
    return objectives.ppo(logp_BT, b.behav_logp_BT, b.adv_BT, t.clip, t.high, t.dual_clip)


def bppo(logp_BT: Array, b: Batch, t: Terms) -> Array:
    """BPPO (Zhuang et al. 2023): PPO, its clip times a `scale` that is smaller in each pass."""
    low, high = (clip * t.params["scale"] for clip in (t.clip, t.high))
    return objectives.ppo(logp_BT, b.behav_logp_BT, b.adv_BT, low, high, t.dual_clip)


def decoupled_ppo(logp_BT: Array, b: Batch, t: Terms) -> Array:
    """Decoupled PPO (Hilton et al. 2022; AReaL, arXiv 2505.24298), TIS.

        loss = w PPO(pi_theta / pi_k),      w = min(pi_k / mu, cap)
        c = w 1[unclipped] (pi_theta / pi_k) A

    The trust region lies around pi_k; what separates that from the sampler is a weight.
    """
    weight_BT = jnp.minimum(_sampler_weight(b), t.params["cap"])
    clips = (t.clip, t.high, t.dual_clip)
    return weight_BT * objectives.ppo(logp_BT, b.prox_logp_BT, b.adv_BT, *clips)


def masked_is(logp_BT: Array, b: Batch, t: Terms) -> Array:
    """Masked importance sampling: `decoupled_ppo` with w 1[w <= cap], w = pi_k / mu."""
    weight_BT = _sampler_weight(b)
    weight_BT = jnp.where(weight_BT <= t.params["cap"], weight_BT, jnp.zeros_like(weight_BT))
    clips = (t.clip, t.high, t.dual_clip)
    return weight_BT * objectives.ppo(logp_BT, b.prox_logp_BT, b.adv_BT, *clips)


def _sampler_weight(b: Batch) -> Array:
    """w = pi_k / mu."""
    return jax.lax.stop_gradient(objectives.ratio(b.prox_logp_BT, b.behav_logp_BT))


def geppo(logp_BT: Array, b: Batch, t: Terms) -> Array:
    """GePPO (Queeney et al. 2021): nu_age `mix_ppg` with the clip eps' (`geppo_clip`).

    nu_age is the row's `geppo_weights` over their mean in the mini-batch (`age_weight`).
    """
    assert b.per_row_B is not None
    low, high = (geppo_clip(clip, geppo_weights(t.window)) for clip in (t.clip, t.high))
    return b.per_row_B[:, None] * mix_ppg(logp_BT, b, t._replace(clip=low, clip_high=high))


def geppo_weights(window: int) -> np.ndarray:
    """GePPO's weights nu_i of policies of age i = 0 .. window = 3 B - 3.

        nu_i = 2 (M - i) / (M (M + 1)),      i = 0 .. M - 1,  M = 3 B - 2

    The nu >= 0 of least sum of squares with sum nu = 1 and sum nu_i (i + 1) = B, the batches that
    PPO would have collected for one update. B = 2: (.4, .3, .2, .1).
    """
    ages = window + 1
    return 2.0 * (ages - np.arange(ages)) / (ages * (ages + 1))


def geppo_clip(clip: float, weights: np.ndarray) -> float:
    """GePPO's eps' = eps / sum_i nu_i (i + 1): PPO's trust region, spread over the ages."""
    return float(clip / np.sum(weights * (np.arange(len(weights)) + 1)))


def age_weight(logp_BT: Array | None, b: Batch, t: Terms, weights: Any = None) -> Array:
    """nu of each row's age over its mean over the rows with tokens, [B]; 0 beyond the last age.

    `weights` are nu by age, `geppo_weights` by default.
    """
    nu_A = jnp.asarray(geppo_weights(t.window) if weights is None else weights, jnp.float32)
    live_B, last = b.mask_BT.any(axis=1), nu_A.shape[0] - 1
    nu_B = jnp.where(live_B & (b.age_B <= last), nu_A[jnp.minimum(b.age_B, last)], 0.0)
    return masked.divide(nu_B * live_B.sum().astype(nu_B.dtype), nu_B.sum())


def bapo(logp_BT: Array, b: Batch, t: Terms) -> Array:
    """BAPO (arXiv 2510.18927): PPO with the clip of `bapo_bounds`."""
    low, high = t.stats
    return objectives.ppo(logp_BT, b.behav_logp_BT, b.adv_BT, 1 - low, high - 1)


def bapo_bounds(logp_BT: Array, b: Batch, t: Terms, low=(0.6, 0.9, 0.02), high=(1.2, 3.0, 0.05)):
    """BAPO's bounds of the ratio, c_low for tokens of A < 0 and c_high for A >= 0 (algorithm 1).

        until P / (P + N) >= target:  raise c_high by its step, at its end c_low by its own
        P = sum over A >= 0 of A min(r, c_high),      N = sum over A < 0 of |A| max(r, c_low)

    target is the share of the loss that tokens of A >= 0 should have. Both at their ends, the
    search stops short of it; without any signal it does not start. `low` and `high`: first and last
    value, and step, of c_low and of c_high.
    """
    ratio_BT, adv_BT = objectives.ratio(logp_BT, b.behav_logp_BT), b.adv_BT
    low_steps, high_steps = (round((end - begin) / step) for begin, end, step in (low, high))

    def after(steps):
        c_high = high[0] + high[2] * jnp.minimum(steps, high_steps)
        c_low = low[0] + low[2] * jnp.maximum(steps - high_steps, 0)
        return c_low.astype(ratio_BT.dtype), c_high.astype(ratio_BT.dtype)

    def short_of_target(steps):
        c_low, c_high = after(steps)
        gain = (jnp.maximum(adv_BT, 0) * jnp.minimum(ratio_BT, c_high)).sum()
        cost = (jnp.maximum(-adv_BT, 0) * jnp.maximum(ratio_BT, c_low)).sum()
        return (gain < t.params["target"] * (gain + cost)) & (steps < high_steps + low_steps)

    return after(jax.lax.while_loop(short_of_target, lambda steps: steps + 1, jnp.int32(0)))


def gspo(logp_BT: Array, b: Batch, t: Terms) -> Array:
    """Group sequence policy optimisation (GSPO, arXiv 2507.18071), in its token form.

        loss = -min(s A, clip(s, 1 - low, 1 + high) A),      s = sg(s(y)) pi / sg(pi)
        c = 1[s(y) unclipped] s(y) A

    Reduced by seq-mean-token-mean and with one A a row it is the sequence form, value and gradient.
    """
    mean_B = masked.divide(_log_ratio(logp_BT, b.behav_logp_BT), b.mask_BT.sum(axis=1))
    # l - sg(l) is 0 with the gradient of l: `ppo` sees the log ratio log s(y), exactly.
    moving_BT = logp_BT - jax.lax.stop_gradient(logp_BT)
    behav_BT = jnp.broadcast_to(-mean_B[:, None], logp_BT.shape)
    return objectives.ppo(moving_BT, behav_BT, b.adv_BT, t.params["low"], t.params["high"])


def reinforce(logp_BT: Array, b: Batch, t: Terms) -> Array:
    """The plain policy gradient (Williams 1992): loss = -sg(A) l, c = A.

    For rows of any policy, also of an unknown one. With `advantages.asymre` it is AsymRE, with
    A = 1 on expert rows the negative log-likelihood.
    """
    return _surrogate(b.adv_BT, logp_BT)


def cispo(logp_BT: Array, b: Batch, t: Terms) -> Array:
    """CISPO (MiniMax-M1, arXiv 2506.13585): the weight is clipped, no token is dropped.

        loss = -sg(clip(r, 1 - low, 1 + high) A) l,      c = clip(r, ..) A

    low = 1 is no lower bound, the paper's setting.
    """
    ratio_BT = objectives.ratio(logp_BT, b.behav_logp_BT)
    near_BT = jnp.clip(ratio_BT, 1 - t.params["low"], 1 + t.params["high"])
    return _surrogate(near_BT * b.adv_BT, logp_BT)


def p3o(logp_BT: Array, b: Batch, t: Terms) -> Array:
    """P3O (arXiv 1905.01756): on replayed rows; fresh ones have `reinforce`.

        loss = -sg(min(r, ESS) A) l + (1 - ESS) (log mu - l),      c = min(r, ESS) A + 1 - ESS

    ESS is `effective_sample_size`; the second term estimates KL(mu || pi_theta).
    """
    ess = t.stats
    weight_BT = jnp.minimum(objectives.ratio(logp_BT, b.behav_logp_BT), ess)
    kl_BT = jax.lax.stop_gradient(b.behav_logp_BT) - logp_BT
    old_BT = _surrogate(weight_BT * b.adv_BT, logp_BT) + (1 - ess) * kl_BT
    return jnp.where((b.age_B > 0)[:, None], old_BT, reinforce(logp_BT, b, t))


def effective_sample_size(logp_BT: Array, b: Batch, t: Terms) -> Array:
    """ESS = (sum r)^2 / (n sum r^2) over the tokens of replayed rows, in (0, 1].

    1 when all ratios are equal, 1 / n when one outweighs the rest, 1 without a token.
    """
    bound, old_BT = objectives.LOG_RATIO_BOUND, b.mask_BT * (b.age_B > 0)[:, None]
    log_ratio_BT = jnp.clip(logp_BT - b.behav_logp_BT, -bound, bound)
    # The quotient is the same for r / max r, whose squares cannot overflow.
    largest = jnp.where(old_BT > 0, log_ratio_BT, -jnp.inf).max()
    ratio_BT = masked.zero_masked(jnp.exp(log_ratio_BT - largest), old_BT)
    tokens = old_BT.sum()
    ess = masked.divide(jnp.square(ratio_BT.sum()), tokens * jnp.square(ratio_BT).sum())
    return jnp.where(tokens > 0, ess, jnp.ones_like(ess))


def m2po(logp_BT: Array, b: Batch, t: Terms) -> Array:
    """M2PO (arXiv 2510.01161): no clip; the outliers of the second moment are dropped.

    loss = -1[kept] r A,      c = 1[kept] r A
    dropped: (A > 0 and r > 1, or A < 0 and r < 1) and (log r)^2 > `m2po_threshold`
    """
    log_ratio_BT = jax.lax.stop_gradient(logp_BT - b.behav_logp_BT)
    dropped_BT = (jnp.sign(b.adv_BT) * log_ratio_BT > 0) & (jnp.square(log_ratio_BT) > t.stats)
    loss_BT = -jax.lax.stop_gradient(b.adv_BT) * objectives.ratio(logp_BT, b.behav_logp_BT)
    return jnp.where(dropped_BT, jnp.zeros_like(loss_BT), loss_BT)


def m2po_threshold(logp_BT: Array, b: Batch, t: Terms) -> Array:
    """M2PO's threshold on (log r)^2, which keeps their mean <= bound.

    Over the tokens that PPO's clip would concern: A > 0 and r > 1, or A < 0 and r < 1. Tokens above
    it are dropped, as few as possible; equal ones are kept or dropped together. The threshold
    lies midway between the largest that is kept and the smallest that is dropped, where the
    rounding of another forward pass does not matter; inf if none is dropped.
    """
    log_ratio_BT = logp_BT - b.behav_logp_BT
    concerned_BT = jnp.sign(b.adv_BT) * log_ratio_BT > 0
    # The others sort to the end, where no mean is small enough.
    square_n = jnp.sort(jnp.where(concerned_BT, jnp.square(log_ratio_BT), jnp.inf).reshape(-1))
    mean_n = jnp.cumsum(square_n) / jnp.arange(1, square_n.size + 1)
    last_of_equals_n = jnp.append(square_n[1:] > square_n[:-1], True)
    kept = jnp.where(
        (mean_n <= t.params["bound"]) & last_of_equals_n, square_n, -1.0
    ).max()  # -1: not one
    next_up = jnp.where(square_n > kept, square_n, jnp.inf).min()
    return (jnp.maximum(kept, 0.0) + next_up) / 2


def topr(logp_BT: Array, b: Batch, t: Terms) -> Array:
    """Tapered off-policy REINFORCE (TOPR, arXiv 2503.14286), A of -1 or +1, without a baseline.

        loss = -sg(w A) l,      w = 1 if A >= 0 else min(r(y), 1),      c = w A

    A bad response that the policy has left behind pushes no further. s(y) would hardly taper (0.99
    against 4.5e-5 at 1,000 tokens).
    """
    # exp(min(log r, 0)) instead of min(exp(log r), 1): a sum over 10^4 tokens may be large.
    taper_B = jnp.exp(jnp.minimum(_log_ratio(logp_BT, b.behav_logp_BT), 0.0))
    return _surrogate(jnp.where(b.adv_BT < 0, taper_B[:, None] * b.adv_BT, b.adv_BT), logp_BT)


def opmd(logp_BT: Array, b: Batch, t: Terms) -> Array:
    """Online policy mirror descent (Kimi k1.5, arXiv 2501.12599): loss = -sg(c) l.

        c = A - tau log r(y)

    The second part is the gradient of tau / 2 (log r(y))^2, a pull back to the sampler mu.
    """
    log_ratio_B = _log_ratio(logp_BT, b.behav_logp_BT)
    return _surrogate(b.adv_BT - t.params["tau"] * log_ratio_B[:, None], logp_BT)


def agro(logp_BT: Array, b: Batch, t: Terms) -> Array:
    """AGRO (arXiv 2503.19612): loss = -sg(A) l with `agro_advantage`, c = A.

    The gradient of mean_B (R_b - mean R_b)^2 / (2 beta), for rows of any policy: it vanishes where
    R_b is the same for all responses to a prompt, as under the optimum of the KL-regularised
    problem.
    """
    assert b.per_row_B is not None
    return _surrogate(b.per_row_B[:, None], logp_BT)


def agro_advantage(logp_BT: Array, b: Batch, t: Terms) -> Array:
    """AGRO's advantage, the regularised reward against the mean of its whole group, [B].

        A = R_b - mean_group(R_b),      R_b = R - beta log(pi_theta(y) / pi_base(y))

    A row alone in its group gets 0; rows without a token are in nobody's.
    """
    regularised_B = b.reward_B - t.params["beta"] * _log_ratio(logp_BT, b.base_logp_BT)
    group_B = jnp.where(b.mask_BT.any(axis=1), b.group_B, -1)
    return advantages.asymre(regularised_B, group_B, shift=0.0)


def luffy(logp_BT: Array, b: Batch, t: Terms) -> Array:
    """LUFFY's mixed-policy GRPO with policy shaping (arXiv 2504.14945), g = gamma.

        expert rows: loss = -p / (p + g) A,  p = pi_theta of the token,      c = g p / (p + g)^2 A
        own rows:    loss of `ppo` around the behaviour policy

    The expert's behaviour probability is 1 by definition, so p is its ratio; the shaping gives
    tokens of small p a larger gradient than p A would.
    """
    # p / (p + g) = sigmoid(log p - log g): no exp of a log-prob, no quotient of small numbers.
    log_odds_BT = logp_BT - jnp.log(t.params["gamma"])
    shaped_BT = -jax.lax.stop_gradient(b.adv_BT) * jax.nn.sigmoid(log_odds_BT)
    return jnp.where(b.expert_B[:, None], shaped_BT, ppo(logp_BT, b, t))


def chord_mu(logp_BT: Array, b: Batch, t: Terms) -> Array:
    """CHORD-mu (arXiv 2508.11408): mu mean_{expert}(-l) + (1 - mu) mean_{own}(`ppo`)."""
    return _chord(-logp_BT, logp_BT, b, t)


def chord_phi(logp_BT: Array, b: Batch, t: Terms) -> Array:
    """CHORD-phi (arXiv 2508.11408): as CHORD-mu with -sg(p (1 - p)) l on the expert's rows.

    Tokens that the policy is sure of, or all but excludes, teach little.
    """
    return _chord(_surrogate(-jnp.exp(logp_BT) * jnp.expm1(logp_BT), logp_BT), logp_BT, b, t)


def _chord(imitate_BT, logp_BT, b: Batch, t: Terms):
    of_experts, of_own = t.stats
    return jnp.where(b.expert_B[:, None], of_experts * imitate_BT, of_own * ppo(logp_BT, b, t))


def chord_scales(logp_BT: Array | None, b: Batch, t: Terms) -> tuple[Array, Array]:
    """What turns CHORD's sums over the common count into its two means, each of its own count."""
    masks = (b.mask_BT, b.mask_BT - b.own_BT, b.own_BT)
    count, experts, own = (masked.count(mask_BT, t.aggregation) for mask_BT in masks)
    mu = t.params["mu"]
    return mu * masked.divide(count, experts), (1 - mu) * masked.divide(count, own)
