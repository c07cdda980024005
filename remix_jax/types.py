"""The pytrees that travel between rooms, and the letters of array shapes.

Letters: B rows (responses) of a batch, Q prompts, G rows of a group, P prompt slots, T response
slots, S = P + T all slots of a row, R rows of the replay ring, A ages, V vocabulary, D width,
H query heads, K key heads, L layers.

A row is laid out as [prompt, left-padded to P | response, right-padded to T]: every response
starts at slot P, so that "response positions" is a static slice, and masks come from lengths.
"""

import flax.struct
import jax
import jax.numpy as jnp


class Rows(flax.struct.PyTreeNode):
    """Rollouts with everything that learning from them, now or later, needs."""

    tokens_BS: jax.Array  # int32
    prompt_len_B: jax.Array  # int32
    response_len_B: jax.Array  # int32, the end token included
    logp_BT: jax.Array  # under the sampling policy: full vocabulary, at the sampling temperature
    sampled_logp_BT: jax.Array  # the same under the truncated distribution really drawn from
    base_logp_BT: jax.Array  # under the base anchor
    reward_B: jax.Array
    group_B: jax.Array  # int32, equal for the responses to one prompt, unique over the run
    version_B: jax.Array  # int32, the step whose policy sampled the row
    used_B: jax.Array  # int32, gradient passes so far
    signal_B: jax.Array  # bool, its group's rewards are not all equal (always true for PPO)
    valid_B: jax.Array  # bool, graded, so it may be trained on; False in empty slots
    expert_B: jax.Array  # bool, an expert wrote it: log-probs of no sampler, NaN in their place
    adv_BT: jax.Array | None = None  # at its collection, where a method or sampler reads it

    @property
    def response_slots(self) -> int:
        """T, static."""
        return self.logp_BT.shape[1]


def response_mask(rows: Rows) -> jax.Array:
    """1.0 at the response tokens of valid rows: the loss mask [B, T]."""
    slot_T = jnp.arange(rows.response_slots)
    inside_BT = slot_T[None, :] < rows.response_len_B[:, None]
    return (inside_BT & rows.valid_B[:, None]).astype(jnp.float32)


def token_mask(rows: Rows) -> jax.Array:
    """True at the real tokens of prompt and response: the attention mask [B, S]."""
    slots = rows.tokens_BS.shape[1]
    prompt_slots = slots - rows.response_slots
    slot_S = jnp.arange(slots)[None, :]
    begin_B1 = prompt_slots - rows.prompt_len_B[:, None]
    end_B1 = prompt_slots + rows.response_len_B[:, None]
    return (slot_S >= begin_B1) & (slot_S < end_B1)


def positions(mask_BS: jax.Array) -> jax.Array:
    """Position of each real token, from 0 at the first, 0 in the padding before it."""
    return jnp.maximum(jnp.cumsum(mask_BS.astype(jnp.int32), axis=1) - 1, 0)


def empty_rows(
    n: int, prompt_slots: int, response_slots: int, with_advantage: bool = False
) -> Rows:
    """n empty slots, with room for advantages if asked for."""

    def zeros(*shape, dtype=jnp.float32):
        return jnp.zeros((n, *shape), dtype)

    def counts():
        return jnp.zeros((n,), jnp.int32)

    def flags():
        return jnp.zeros((n,), bool)

    return Rows(
        tokens_BS=zeros(prompt_slots + response_slots, dtype=jnp.int32),
        prompt_len_B=counts(),
        response_len_B=counts(),
        logp_BT=zeros(response_slots),
        sampled_logp_BT=zeros(response_slots),
        base_logp_BT=zeros(response_slots),
        reward_B=zeros(),
        group_B=counts(),
        version_B=counts(),
        used_B=counts(),
        signal_B=flags(),
        valid_B=flags(),
        expert_B=flags(),
        adv_BT=zeros(response_slots) if with_advantage else None,
    )
