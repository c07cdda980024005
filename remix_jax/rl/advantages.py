"""Advantages: what a token or a response was better than expected by.

PPO: `gae` over the critic's values. GRPO and its kin: a response's reward against the rewards of
its group, the responses to one prompt (or to one prefix of it). `group_B` are integers, equal ones
are one group, in any order; rows under a `mask_B` of 0 (none by default) get 0 and move no group.
"""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
from jax import Array

from remix_jax.rl import masked


def gae(
    reward_BT: Array, value_BT: Array, mask_BT: Array, gamma: float, lam: float
) -> tuple[Array, Array]:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16), token level.

        delta_t = r_t + gamma V(s_{t+1}) - V(s_t),   A_t = sum_l (gamma lam)^l delta_{t+l}
        return_t = A_t + V(s_t)

    V after the last token is 0. Tokens under mask 0 are not steps: the next value and the running
    sum are carried over them, so holes in the mask (prompt, tool output, padding) change nothing.
    With gamma = lam = 1, ReMix's setting, A_t = R - V(s_t).

    r_t lies at each token (an outcome's on the last), V(s_t) is of everything before token t. Both
    results are 0 where mask is 0, and no gradient flows through them.
    """
    return vtrace(reward_BT, value_BT, jnp.ones_like(reward_BT), mask_BT, gamma, lam)


def vtrace(
    reward_BT: Array,
    value_BT: Array,
    ratio_BT: Array,
    mask_BT: Array,
    gamma: float,
    lam: float,
    cap: float = 1.0,
) -> tuple[Array, Array]:
    """V-trace advantages of pi_k on rows of an older policy (Espeholt et al. 2018; GePPO).

        A_t = sum_l (gamma lam)^l (prod_{j=1..l} c_{t+j}) delta_{t+l},      c = min(pi_k / mu, cap)
        return_t = c_t A_t + V(s_t)

    With `ratio_BT`, pi_k / mu, of 1 it is `gae`, as which the others and the results are.
    """
    chex.assert_rank([reward_BT, value_BT, ratio_BT, mask_BT], 2)
    chex.assert_equal_shape([reward_BT, value_BT, ratio_BT, mask_BT])
    reward_BT, value_BT, trace_BT = (
        masked.zero_masked(x_BT, mask_BT)
        for x_BT in (reward_BT, value_BT, jnp.minimum(ratio_BT, cap))
    )

    def step_back(carry, inputs):
        next_value_B, next_trace_B, next_adv_B = carry
        reward_B, value_B, trace_B, mask_B = inputs
        delta_B = reward_B + gamma * next_value_B - value_B
        adv_B = delta_B + gamma * lam * next_trace_B * next_adv_B
        real_B = mask_B > 0
        here = (value_B, trace_B, adv_B)
        carry = tuple(jnp.where(real_B, x, old) for x, old in zip(here, carry, strict=True))
        return carry, jnp.where(real_B, adv_B, jnp.zeros_like(adv_B))

    zeros_B = jnp.zeros_like(value_BT[:, 0])
    inputs_TB = (reward_BT.T, value_BT.T, trace_BT.T, mask_BT.T)
    _, adv_TB = jax.lax.scan(step_back, (zeros_B,) * 3, inputs_TB, reverse=True)
    adv_BT = jax.lax.stop_gradient(adv_TB.T)
    return adv_BT, jax.lax.stop_gradient(trace_BT * adv_BT + value_BT)


def mean_baseline(reward_B: Array, group_B: Array, mask_B: Array | None = None) -> Array:
    """R - mean of the group (Dr.GRPO, arXiv 2503.20783; PrefixRL). A row alone keeps its reward."""
    reward_B, size_B, centred_B, _ = _group(reward_B, group_B, mask_B)
    return jnp.where(size_B > 1, centred_B, reward_B)


def asymre(
    reward_B: Array, group_B: Array, shift: float | Array = -0.1, mask_B: Array | None = None
) -> Array:
    """R - (mean over the group + dV), AsymRE (arXiv 2506.20520).

    dV = `shift` < 0 leans on the good rows: `off_policy.reinforce` on rows of a fixed mu converges
    to (mu A - tau)^+ / -dV, tau such that it sums to 1; with dV >= 0 to a single response. -0.1 is
    for rewards of -1 / +1, half of it for 0 / 1. A row alone gets -dV.
    """
    _, size_B, centred_B, _ = _group(reward_B, group_B, mask_B)
    return jnp.where(size_B > 0, centred_B - shift, jnp.zeros_like(centred_B))


def rloo(reward_B: Array, group_B: Array, mask_B: Array | None = None) -> Array:
    """R - mean of the *other* rows of the group = n / (n - 1) (R - mean) (arXiv 2402.14740).

    A row alone keeps its reward.
    """
    reward_B, size_B, centred_B, _ = _group(reward_B, group_B, mask_B)
    return jnp.where(size_B > 1, size_B / jnp.maximum(size_B - 1, 1) * centred_B, reward_B)


def group_normalized(
    reward_B: Array, group_B: Array, eps: float = 1e-6, mask_B: Array | None = None
) -> Array:
    """(R - mean_group) / (std_group + eps), GRPO (arXiv 2402.03300, section 4.1.2).

    std divides by n - 1. A row alone has mean 0 and std 1, so it keeps its reward. A group of equal
    rewards gets exactly 0: rounding in the mean, divided by eps, must not become a signal.
    """
    reward_B, size_B, centred_B, variance_B = _group(reward_B, group_B, mask_B)
    std_B = jnp.where(size_B > 1, jnp.sqrt(variance_B), jnp.ones_like(reward_B))
    return jnp.where(size_B > 1, centred_B, reward_B) / (std_B + eps)


def varied(reward_B: Array, group_B: Array, mask_B: Array | None = None) -> Array:
    """True for rows whose group's rewards are not all equal."""
    return _group(reward_B, group_B, mask_B)[3] > 0


def _group(reward_B, group_B, mask_B) -> tuple[Array, Array, Array, Array]:
    """Reward, and of the row's group: size, reward - mean, variance (n - 1); 0 if it doesn't count.

    By a [B, B] membership matrix: static shapes, no sort, no scatter.
    """
    chex.assert_rank([reward_B, group_B], 1)
    chex.assert_equal_shape([reward_B, group_B])
    real_B = jnp.ones_like(reward_B) if mask_B is None else mask_B.astype(reward_B.dtype)
    reward_B = masked.zero_masked(reward_B, real_B)
    same_BB = group_B[:, None] == group_B[None, :]
    member_BB = same_BB & (real_B[:, None] > 0) & (real_B[None, :] > 0)
    size_B = member_BB.sum(axis=1).astype(reward_B.dtype)

    def group_sum(x_B):
        return jnp.where(member_BB, x_B[None, :], jnp.zeros_like(x_B)[None, :]).sum(axis=1)

    # Measured from the group's best row, equal rewards are exactly 0 and so is their mean.
    best_B = jnp.where(member_BB, reward_B[None, :], -jnp.inf).max(axis=1)
    below_best_B = masked.zero_masked(reward_B - best_B, real_B)
    # below_best_B is relative to one's own group, so sums over the group are sums of like things.
    centred_B = below_best_B - masked.divide(group_sum(below_best_B), size_B)
    variance_B = group_sum(jnp.square(centred_B)) / jnp.maximum(size_B - 1, 1)
    return reward_B, size_B, centred_B, variance_B


ESTIMATORS: dict[str, Callable[..., Any]] = {
    "gae": gae,
    "vtrace": vtrace,
    "group_normalized": group_normalized,
    "rloo": rloo,
    "mean_baseline": mean_baseline,
}
"""What objective.advantage names; the first two need a critic."""
