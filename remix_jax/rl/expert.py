"""Objectives for rows that an expert wrote: there is no behaviour policy, hence no ratio."""

import chex
import jax
import jax.numpy as jnp

from remix_jax.rl import masked, objectives


def luffy(
    logp_BT: jax.Array,
    behav_logp_BT: jax.Array,
    adv_BT: jax.Array,
    mask_BT: jax.Array,
    expert_B: jax.Array,
    gamma: float | jax.Array = 0.1,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> jax.Array:
    """LUFFY's mixed-policy GRPO with policy shaping (arXiv 2504.14945).

        expert rows: loss = -p / (p + g) A,  p = pi_theta of the token,      c = g p / (p + g)^2 A
        own rows:    loss of `ppo` around the behaviour policy

    The expert's behaviour probability is 1 by definition, so p is its ratio; the shaping gives
    tokens of small p a larger gradient than p A would. A: `advantages.asymre` with shift 0 over the
    union of expert and own rows of a prompt. g is `gamma`.

    Of an expert row `behav_logp_BT` is never read, so NaN may stand there.
    """
    chex.assert_shape(expert_B, (logp_BT.shape[0],))
    expert_B1 = expert_B[:, None]
    own_BT = jnp.where(expert_B1, jnp.zeros_like(mask_BT), mask_BT)
    logp_BT, adv_BT = masked.zero_masked_all(mask_BT, logp_BT, adv_BT)
    own_logp_BT, behav_logp_BT = masked.zero_masked_all(own_BT, logp_BT, behav_logp_BT)
    # p / (p + g) = sigmoid(log p - log g): no exp of a log-prob, no quotient of small numbers.
    shaped_BT = -jax.lax.stop_gradient(adv_BT) * jax.nn.sigmoid(logp_BT - jnp.log(gamma))
    ppo_BT = objectives.ppo(own_logp_BT, behav_logp_BT, adv_BT, clip_low, clip_high)
    return jnp.where(expert_B1, shaped_BT, ppo_BT)


def chord_phi(logp_BT: jax.Array, mask_BT: jax.Array) -> jax.Array:
    """CHORD-phi's imitation loss on expert rows (arXiv 2508.11408), per token.

        loss = -sg(p (1 - p)) l,      c = p (1 - p)

    Tokens that the policy is sure of, or all but excludes, teach little. CHORD's total is
    mu aggregate(this, expert mask) + (1 - mu) aggregate(ppo, own mask): each part has its own
    denominator. CHORD-mu has the plain -l instead (`off_policy.reinforce` with A = 1).
    """
    chex.assert_equal_shape([logp_BT, mask_BT])
    logp_BT = masked.zero_masked(logp_BT, mask_BT)
    weight_BT = jax.lax.stop_gradient(-jnp.exp(logp_BT) * jnp.expm1(logp_BT))
    return -weight_BT * logp_BT
