"""The equations of the papers in plain NumPy float64: slow, literal, and independent of remix_jax.

Nothing here is shared with the package, on purpose: scalar formulas are written for one token and
spread over an array with `np.vectorize`, sums are loops over the tokens whose mask is 1. Letters
as everywhere: B rows, T response tokens.
"""

import math
from fractions import Fraction

import numpy as np

MODES = (
    "token-mean",
    "seq-mean-token-sum",
    "seq-mean-token-mean",
    "seq-mean-token-sum-norm",
)

# ---------------------------------------------------------------------------- aggregation


def aggregation_weights(mask_BT, mode):
    """w such that aggregate(x) = sum_bt w x: the derivative of the aggregate at each token.

    token-mean               1 / (tokens of the batch)
    seq-mean-token-sum       1 / (rows with a token)
    seq-mean-token-mean      1 / (rows with a token) / (tokens of the row)
    seq-mean-token-sum-norm  1 / (width of the array)
    """
    rows, width = mask_BT.shape
    tokens_of_row = [int(sum(mask_BT[b])) for b in range(rows)]
    tokens = sum(tokens_of_row)
    live_rows = sum(n > 0 for n in tokens_of_row)
    weight_BT = np.zeros((rows, width))
    for b in range(rows):
        for t in range(width):
            if mask_BT[b, t] == 1:
                weight_BT[b, t] = {
                    "token-mean": 1 / tokens,
                    "seq-mean-token-sum": 1 / live_rows,
                    "seq-mean-token-mean": 1 / live_rows / tokens_of_row[b],
                    "seq-mean-token-sum-norm": 1 / width,
                }[mode]
    return weight_BT


def aggregate(x_BT, mask_BT, mode):
    """One number from a token array; a batch without tokens gives 0."""
    weight_BT = aggregation_weights(mask_BT, mode)
    return sum(weight_BT[b, t] * x_BT[b, t] for b, t in np.argwhere(mask_BT == 1))


# ---------------------------------------------------------------------------- advantages


def gae(reward_BT, value_BT, mask_BT, gamma, lam):
    """A_i = sum_{j >= i} (gamma lam)^(j - i) delta_j over the unmasked tokens of a row.

    delta_j = r_j + gamma V_{j+1} - V_j, the value after the last token being 0. Masked slots do
    not exist: the token after a hole is the next token.
    """
    adv_BT = np.zeros(mask_BT.shape)
    for b in range(len(mask_BT)):
        slots = np.flatnonzero(mask_BT[b])
        value = [value_BT[b, t] for t in slots] + [0.0]
        delta = [reward_BT[b, t] + gamma * value[i + 1] - value[i] for i, t in enumerate(slots)]
        for i, t in enumerate(slots):
            adv_BT[b, t] = sum((gamma * lam) ** (j - i) * delta[j] for j in range(i, len(slots)))
    return adv_BT, (adv_BT + value_BT) * mask_BT


def whiten(x_BT, mask_BT, eps):
    """(x - mean) / sqrt(var + eps) over the unmasked tokens of the batch, var with n - 1."""
    x = [x_BT[b, t] for b, t in np.argwhere(mask_BT == 1)]
    mean = sum(x) / len(x)
    variance = sum((v - mean) ** 2 for v in x) / (len(x) - 1)
    return (x_BT - mean) / math.sqrt(variance + eps) * mask_BT


def _over_groups(formula, reward_B, group_B):
    """formula(own reward, rewards of the group) for each row."""
    return np.array(
        [
            formula(reward, [r for r, h in zip(reward_B, group_B, strict=True) if h == group])
            for reward, group in zip(reward_B, group_B, strict=True)
        ]
    )


def group_normalized(reward_B, group_B, eps=1e-6):
    """(R - mean) / (std + eps), std with n - 1; alone: mean 0, std 1; equal rewards: exactly 0."""

    def formula(reward, rewards):
        n = len(rewards)
        if n == 1:
            return reward / (1 + eps)
        if max(rewards) == min(rewards):
            return 0.0
        mean = sum(rewards) / n
        std = math.sqrt(sum((r - mean) ** 2 for r in rewards) / (n - 1))
        return (reward - mean) / (std + eps)

    return _over_groups(formula, reward_B, group_B)


def mean_baseline(reward_B, group_B):
    """R - mean of the group; alone: R; equal rewards: exactly 0."""

    def formula(reward, rewards):
        if len(rewards) == 1:
            return reward
        if max(rewards) == min(rewards):
            return 0.0
        return reward - sum(rewards) / len(rewards)

    return _over_groups(formula, reward_B, group_B)


def rloo(reward_B, group_B):
    """R - mean of the *other* rewards of the group; alone: R; equal rewards: exactly 0."""

    def formula(reward, rewards):
        if len(rewards) == 1:
            return reward
        if max(rewards) == min(rewards):
            return 0.0
        others = (sum(rewards) - reward) / (len(rewards) - 1)
        return reward - others

    return _over_groups(formula, reward_B, group_B)


# ---------------------------------------------------------------------------- objectives


def _clip(x, low, high):
    return min(max(x, low), high)


@np.vectorize
def ppo(logp, behav_logp, adv, clip_low=0.2, clip_high=0.2, dual_clip=math.inf):
    """-min(r A, clip(r, 1 - low, 1 + high) A); with dual clip at most -dual A where A < 0."""
    ratio = math.exp(logp - behav_logp)
    gain = min(ratio * adv, _clip(ratio, 1 - clip_low, 1 + clip_high) * adv)
    if adv < 0 and dual_clip < math.inf:
        gain = max(gain, dual_clip * adv)
    return -gain


@np.vectorize
def ppo_coefficient(logp, behav_logp, adv, clip_low=0.2, clip_high=0.2, dual_clip=math.inf):
    """c of the coefficient form: d(loss)/d(logp) = -c, c = r A unless the clip has taken over."""
    ratio = math.exp(logp - behav_logp)
    too_good = adv > 0 and ratio > 1 + clip_high
    too_bad = adv < 0 and (ratio < 1 - clip_low or ratio > dual_clip)
    return 0.0 if too_good or too_bad else ratio * adv


@np.vectorize
def mix_ppg(logp, behav_logp, prox_logp, adv, clip=0.2):
    """-min(r A, clip(r, c - clip, c + clip) A), r = pi_theta / pi_behav, c = pi_k / pi_behav."""
    ratio = math.exp(logp - behav_logp)
    centre = math.exp(prox_logp - behav_logp)
    return -min(ratio * adv, _clip(ratio, centre - clip, centre + clip) * adv)


@np.vectorize
def mix_ppg_coefficient(logp, behav_logp, prox_logp, adv, clip=0.2):
    """c = 1[not beyond the edge that A pushes towards] r A."""
    ratio = math.exp(logp - behav_logp)
    centre = math.exp(prox_logp - behav_logp)
    if (adv > 0 and ratio > centre + clip) or (adv < 0 and ratio < centre - clip):
        return 0.0
    return ratio * adv


@np.vectorize
def value_loss(value, old_value, returns, clip):
    """0.5 max((V - R)^2, (clip(V, V_old - clip, V_old + clip) - R)^2)."""
    clipped = _clip(value, old_value - clip, old_value + clip)
    return 0.5 * max((value - returns) ** 2, (clipped - returns) ** 2)


# ---------------------------------------------------------------------------- constraints


@np.vectorize
def k1(logp, anchor_logp):
    """log(pi / anchor)."""
    return logp - anchor_logp


@np.vectorize
def k2(logp, anchor_logp):
    """0.5 log(pi / anchor)^2."""
    return 0.5 * (logp - anchor_logp) ** 2


@np.vectorize
def k3(logp, anchor_logp):
    """anchor / pi - log(anchor / pi) - 1."""
    return math.exp(anchor_logp - logp) - (anchor_logp - logp) - 1


def kl_convex(logp_BT, base_logp_BT, prev_logp_BT, lam):
    """lam KL(pi || base) + (1 - lam) KL(pi || precedent), each by k3."""
    return lam * k3(logp_BT, base_logp_BT) + (1 - lam) * k3(logp_BT, prev_logp_BT)


# ---------------------------------------------------------------------------- schedules


def kl_convex_weight(step):
    """max(1 - 0.1 ceil(max(t - 50, 0) / 10), 0.5), in exact arithmetic."""
    return float(max(1 - Fraction(math.ceil(Fraction(max(step - 50, 0), 10)), 10), Fraction(1, 2)))


def fresh_rows(step, batch, share, reincarnation_step):
    """Units (rows, or groups) generated at a 1-based step; replay fills the rest of the batch.

    While step <= T: floor(k f) - floor((k - 1) f) with f = (1 - p) B, after it the whole batch.
    """
    if step > reincarnation_step:
        return batch
    fresh = (1 - Fraction(str(share))) * batch
    return math.floor(step * fresh) - math.floor((step - 1) * fresh)


# ---------------------------------------------------------------------------- a whole step


def remix_loss(rows, mode, *, lam, beta, entropy_coefficient, clip, stage, entropy_BT, mask_BT):
    """(total, policy part, mean entropy, KL to base, KL to precedent) of one batch.

    rows: logp, behav_logp, prox_logp, base_logp, prev_logp and adv, each [B, T].
    total = policy - c_H H + beta (lam KL_base + (1 - lam) KL_prev); the policy part is Mix-PPG in
    stage 1 and PPO around pi_k in stage 2.
    """
    logp_BT = rows["logp"]
    if stage == 1:
        policy_BT = mix_ppg(logp_BT, rows["behav_logp"], rows["prox_logp"], rows["adv"], clip)
    else:
        policy_BT = ppo(logp_BT, rows["prox_logp"], rows["adv"], clip, clip)
    policy = aggregate(policy_BT, mask_BT, mode)
    mean_entropy = aggregate(entropy_BT, mask_BT, mode)
    kl_base = aggregate(k3(logp_BT, rows["base_logp"]), mask_BT, mode)
    kl_prev = aggregate(k3(logp_BT, rows["prev_logp"]), mask_BT, mode)
    kl = lam * kl_base + (1 - lam) * kl_prev
    total = policy - entropy_coefficient * mean_entropy + beta * kl
    return np.array([total, policy, mean_entropy, kl_base, kl_prev])
