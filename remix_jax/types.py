"""The pytrees that travel between packages, and the letters of array shapes.

Letters: B rows (responses) of a batch, Q prompts, G rows of a group, P prompt slots, T response
slots, S = P + T all slots of a row, R rows of the replay ring, A ages, M passes, V vocabulary,
D width, H query heads, K key heads, L layers.

A row is laid out as [prompt, left-padded to P | response, right-padded to T]: every response
starts at slot P, so that "response positions" is a static slice. Lengths locate the tokens;
which of them the loss counts is data, `loss_mask_BT`.
"""

import flax.struct
import jax.numpy as jnp
from jax import Array


class FreshRows(flax.struct.PyTreeNode):
    """Rollouts as sampler and reward leave them: what `learner.step.learn` is given."""

    tokens_BS: Array  # int32
    prompt_len_B: Array  # int32
    response_len_B: Array  # int32, the end token included
    loss_mask_BT: Array  # 1 where the loss counts, 0 at tokens that the policy did not write
    behav_logp_BT: Array  # under the sampling policy: full vocabulary, its temperature
    sampled_logp_BT: Array  # the same under the truncated distribution really drawn from
    reward_B: Array  # any finite number
    success_B: Array  # bool, right; where no reward function says: a reward above 0
    group_B: Array  # int32, equal for the responses to one prompt, unique over the run
    valid_B: Array  # bool, graded, so it may be trained on; False in empty slots
    lag_B: Array  # int32, steps between the policy of its first token and that of the step

    @property
    def response_slots(self) -> int:
        """T, static."""
        return self.loss_mask_BT.shape[1]

    @property
    def mask_BT(self) -> Array:
        """The loss mask: 1.0 at the response tokens of valid rows that the loss counts."""
        inside_BT = jnp.arange(self.response_slots)[None, :] < self.response_len_B[:, None]
        counted_BT = inside_BT & self.valid_B[:, None] & (self.loss_mask_BT > 0)
        return counted_BT.astype(jnp.float32)


class Rows(FreshRows):
    """Rows of the replay ring: what learning from them, now or later, needs."""

    base_logp_BT: Array  # under the base anchor
    version_B: Array  # int32, the step that collected the row; its policy wrote all, or the end
    used_B: Array  # int32, gradient passes so far
    signal_B: Array  # bool, some row of its group has an advantage (always true for PPO)
    expert_B: Array  # bool, an expert wrote it: behaviour log-probs are unknown, NaN
    stored_adv_BT: Array | None  # at its collection, where a method or sampler reads it
    sampler_weight_BT: Array | None  # trainer's probability / sampler's, where it is corrected for

    @property
    def own_BT(self) -> Array:
        """The loss mask of the rows that a policy of ours sampled."""
        return jnp.where(self.expert_B[:, None], 0.0, self.mask_BT)


class Batch(Rows):
    """The rows of a step's batch and what stays fixed over its passes; mini-batches are slices.

    `valid_B` says which of its slots a row fills, and `behav_logp_BT` is the ratio's denominator
    (truncated if the config corrects for that).
    """

    slots_B: Array  # int32, where the row lies in the replay ring
    age_B: Array  # int32, steps since it was sampled; 0 is fresh
    prox_logp_BT: Array  # log pi_k, k this step
    prev_logp_BT: Array  # log pi_{k-1}
    adv_BT: Array
    value_BT: Array  # V_k
    return_BT: Array
    per_row_B: Array | None = None  # what the method found of each row in its mini-batch


def empty_rows(n: int, prompt_slots: int, response_slots: int) -> FreshRows:
    """n empty slots; the loss counts every token of what is put into them."""

    def zeros(*shape, dtype=jnp.int32):  # buffers of their own: a state is donated
        return jnp.zeros((n, *shape), dtype)

    return FreshRows(
        tokens_BS=zeros(prompt_slots + response_slots),
        prompt_len_B=zeros(),
        response_len_B=zeros(),
        loss_mask_BT=jnp.ones((n, response_slots)),
        behav_logp_BT=zeros(response_slots, dtype=jnp.float32),
        sampled_logp_BT=zeros(response_slots, dtype=jnp.float32),
        reward_B=zeros(dtype=jnp.float32),
        success_B=zeros(dtype=bool),
        group_B=zeros(),
        valid_B=zeros(dtype=bool),
        lag_B=zeros(),
    )


def kept_rows(fresh: FreshRows, **known) -> Rows:
    """Rows for the ring from fresh ones; fields that are not given are zero or False."""
    empty: dict[str, Array | None] = dict.fromkeys(("stored_adv_BT", "sampler_weight_BT"))
    empty["base_logp_BT"] = jnp.zeros_like(fresh.behav_logp_BT)
    empty |= {name: jnp.zeros_like(fresh.group_B) for name in ("version_B", "used_B")}
    empty |= {name: jnp.zeros_like(fresh.valid_B) for name in ("signal_B", "expert_B")}
    return Rows(**vars(fresh) | empty | known)


def batch_of(rows: Rows, **known) -> Batch:
    """A batch of rows of the ring, fresh unless said; advantages, values and returns are zero."""
    filled = {"prox_logp_BT": rows.behav_logp_BT, "prev_logp_BT": rows.base_logp_BT}
    filled |= dict.fromkeys(("slots_B", "age_B"), jnp.zeros_like(rows.group_B))
    zero_BT = jnp.zeros_like(rows.base_logp_BT)
    filled |= dict.fromkeys(("adv_BT", "value_BT", "return_BT"), zero_BT)
    return Batch(**vars(rows) | filled | known)


def token_mask(rows: FreshRows) -> Array:
    """True at the real tokens of prompt and response: the attention mask [B, S]."""
    slots = rows.tokens_BS.shape[1]
    from_response_S = jnp.arange(slots)[None, :] - (slots - rows.response_slots)
    begun_BS = from_response_S >= -rows.prompt_len_B[:, None]
    return begun_BS & (from_response_S < rows.response_len_B[:, None])


def positions(mask_BS: Array) -> Array:
    """Position of each real token, from 0 at the first, 0 in the padding before it."""
    return jnp.maximum(jnp.cumsum(mask_BS.astype(jnp.int32), axis=1) - 1, 0)
