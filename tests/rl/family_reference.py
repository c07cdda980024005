"""Coefficients of the off-policy family in plain NumPy: d(loss)/d(logp) = -c, token by token.

Independent of remix_jax, like tests/reference.py. Every function takes a dict of clean [B, T]
arrays (logp, behav_logp, prox_logp, adv, mask) and expert [B], and returns c.
"""

import math

import numpy as np


def _per_token(formula):
    """formula(rows, b, t) over the tokens under the mask, 0 elsewhere."""

    def coefficient(rows, **options):
        c_BT = np.zeros(rows["mask"].shape)
        for b, t in np.argwhere(rows["mask"] == 1):
            c_BT[b, t] = formula(rows, b, t, **options)
        return c_BT

    return coefficient


def _ratio(rows, b, t, of="logp", to="behav_logp"):
    return math.exp(rows[of][b, t] - rows[to][b, t])


def sequence_ratio(rows, b):
    """The product of a row's ratios."""
    tokens = np.flatnonzero(rows["mask"][b])
    return math.prod(_ratio(rows, b, t) for t in tokens)


def _clipped(ratio, adv, low, high):
    """Where PPO's min takes the clipped branch."""
    return (adv > 0 and ratio > high) or (adv < 0 and ratio < low)


@_per_token
def reinforce(rows, b, t):
    return rows["adv"][b, t]


@_per_token
def cispo(rows, b, t, low=0.0, high=1.2):
    return min(max(_ratio(rows, b, t), low), high) * rows["adv"][b, t]


@_per_token
def decoupled_ppo(rows, b, t, clip=0.2, cap=5.0):
    weight = min(_ratio(rows, b, t, "prox_logp"), cap)
    ratio, adv = _ratio(rows, b, t, "logp", "prox_logp"), rows["adv"][b, t]
    return 0.0 if _clipped(ratio, adv, 1 - clip, 1 + clip) else weight * ratio * adv


@_per_token
def m2po(rows, b, t, threshold):
    ratio, adv = _ratio(rows, b, t), rows["adv"][b, t]
    concerned = (adv > 0 and ratio > 1) or (adv < 0 and ratio < 1)
    return 0.0 if concerned and math.log(ratio) ** 2 > threshold else ratio * adv


@_per_token
def p3o(rows, b, t, ess):
    return min(_ratio(rows, b, t), ess) * rows["adv"][b, t] + 1 - ess


@_per_token
def topr(rows, b, t):
    adv = rows["adv"][b, t]
    return adv if adv >= 0 else min(sequence_ratio(rows, b), 1.0) * adv


@_per_token
def gspo(rows, b, t, low, high):
    ratio = sequence_ratio(rows, b) ** (1 / np.sum(rows["mask"][b]))
    adv = rows["adv"][b, t]
    return 0.0 if _clipped(ratio, adv, 1 - low, 1 + high) else ratio * adv


@_per_token
def opmd(rows, b, t, tau=0.1):
    return rows["adv"][b, t] - tau * math.log(sequence_ratio(rows, b))


@_per_token
def luffy(rows, b, t, gamma=0.1, clip=0.2):
    adv = rows["adv"][b, t]
    if rows["expert"][b]:
        p = math.exp(rows["logp"][b, t])
        return gamma * p / (p + gamma) ** 2 * adv
    ratio = _ratio(rows, b, t)
    return 0.0 if _clipped(ratio, adv, 1 - clip, 1 + clip) else ratio * adv


@_per_token
def chord_phi(rows, b, t):
    p = math.exp(rows["logp"][b, t])
    return p * (1 - p)


def m2po_threshold(rows, target):
    """The largest of the candidates' (log r)^2 that bounds a set of mean <= target, by trial."""
    squares = []
    for b, t in np.argwhere(rows["mask"] == 1):
        ratio, adv = _ratio(rows, b, t), rows["adv"][b, t]
        if (adv > 0 and ratio > 1) or (adv < 0 and ratio < 1):
            squares.append(math.log(ratio) ** 2)
    fits = [s for s in squares if np.mean([q for q in squares if q <= s]) <= target]
    return max(fits, default=0.0)


def effective_sample_size(rows):
    ratios = [_ratio(rows, b, t) for b, t in np.argwhere(rows["mask"] == 1)]
    return sum(ratios) ** 2 / len(ratios) / sum(r**2 for r in ratios)


def asymre_limit(mu, adv):
    """(mu A - tau)^+ / E_mu A with tau such that it sums to 1, tau by bisection."""
    pull, total = mu * adv, float(np.sum(mu * adv))
    low, high = np.min(pull) - total, np.max(pull)
    for _ in range(200):
        tau = (low + high) / 2
        low, high = (tau, high) if np.maximum(pull - tau, 0).sum() > total else (low, tau)
    return np.maximum(pull - tau, 0) / total
