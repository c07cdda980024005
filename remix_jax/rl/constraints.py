"""KL estimators and ReMix's KL-Convex constraint.

d = log pi_anchor - log pi_theta at a token that pi_theta (or a recent policy) sampled. Each
estimates KL(pi_theta || pi_anchor) per token (Schulman, "Approximating KL divergence", 2020) and
is *added* to the loss: minimising it pulls the policy towards the anchor.
"""

import chex
import jax
import jax.numpy as jnp
from jax import Array


def k1(logp_BT: Array, anchor_logp_BT: Array) -> Array:
    """-d = log pi_theta - log pi_anchor. Unbiased, signed; its gradient has mean 0 on-policy."""
    chex.assert_equal_shape([logp_BT, anchor_logp_BT])
    return logp_BT - jax.lax.stop_gradient(anchor_logp_BT)


def k2(logp_BT: Array, anchor_logp_BT: Array) -> Array:
    """d^2 / 2. Its gradient is the unbiased gradient of the KL on-policy."""
    return 0.5 * jnp.square(k1(logp_BT, anchor_logp_BT))


def k3(logp_BT: Array, anchor_logp_BT: Array) -> Array:
    """exp(d) - d - 1. Never negative, low variance; ReMix's and GRPO's estimator.

    Bounded as in verl, on whose code the paper's runs were made: d to +-20, the value to 10.
    Beyond either a token has no gradient; a token that the policy has all but given up must not
    outweigh the rest of the batch by exp(d).
    """
    d_BT = jnp.clip(-k1(logp_BT, anchor_logp_BT), -20.0, 20.0)
    # expm1: near d = 0, where a healthy run stays, exp(d) - 1 - d would cancel in float32.
    return jnp.minimum(jnp.expm1(d_BT) - d_BT, 10.0)


ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}


def kl_convex(
    logp_BT: Array,
    base_logp_BT: Array,
    prev_logp_BT: Array,
    lam: float | Array,
    estimator: str = "k3",
) -> Array:
    """ReMix's KL-Convex constraint (arXiv 2507.06892), per token.

        lam KL(pi_theta || pi_base) + (1 - lam) KL(pi_theta || pi_{t-1})

    Stability from the base (after reincarnation: pi_T), freedom to move from the precedent policy,
    that at the start of the previous step. lam (`schedules.kl_convex_weight`) = 1 and 0 give the
    two plain terms exactly. `estimator` is a key of ESTIMATORS.
    """
    kl = ESTIMATORS[estimator]
    return lam * kl(logp_BT, base_logp_BT) + (1 - lam) * kl(logp_BT, prev_logp_BT)
