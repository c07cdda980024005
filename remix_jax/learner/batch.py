"""The batch of a step: rows fresh and old, what is known of them before the first update.

fresh rows, with an expert's among them --> base log-probs, age, signal --> the ring
ring --> slots of the batch --> log-probs of pi_k and the precedent, values --> advantages
"""

import functools

import jax
import jax.numpy as jnp

from remix_jax import sharding
from remix_jax.learner import losses
from remix_jax.learner.losses import Frozen
from remix_jax.learner.state import Learner, TrainState
from remix_jax.models import scoring
from remix_jax.rl import advantages, family, masked, objectives, replay
from remix_jax.schedule import Stage, score_rows
from remix_jax.types import FreshRows, Rows, kept_rows, response_mask


def join(stage: Stage, fresh: FreshRows | None, expert: FreshRows | None) -> Rows:
    """Groups of sampled rows and behind them, in each group, those of the expert."""
    sources = [(rows, by) for rows, by in ((fresh, False), (expert, True)) if rows is not None]
    marked = [kept_rows(rows, expert_B=jnp.full(rows.valid_B.shape, by)) for rows, by in sources]

    def joined(*parts):
        by_group = [x.reshape(stage.fresh_groups, -1, *x.shape[1:]) for x in parts]
        return jnp.concatenate(by_group, axis=1).reshape(-1, *parts[0].shape[1:])

    return jax.tree.map(joined, *marked)


def own(learner: Learner, x_B):
    """The rows that were sampled, of groups as `join` makes them."""
    c = learner.config
    return x_B.reshape(-1, c.group_size)[:, : c.own_rows].reshape(-1)


def own_mask(rows: Rows):
    """1.0 at the response tokens of valid rows that were sampled."""
    return response_mask(rows) * (~rows.expert_B).astype(jnp.float32)[:, None]


def _in_chunks(score, rows, chunk: int):
    """score(rows) in chunks of rows, one after the other: activations of one chunk at a time."""
    n = rows.valid_B.shape[0]
    if n <= chunk:
        return score(rows)
    pad = -n % chunk
    padded = jax.tree.map(lambda x: jnp.pad(x, [(0, pad)] + [(0, 0)] * (x.ndim - 1)), rows)
    chunks = jax.tree.map(lambda x: x.reshape(-1, chunk, *x.shape[1:]), padded)
    scored = jax.lax.map(score, chunks)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:n], scored)


def _chunk(learner: Learner) -> int:
    """Rows that are scored at once."""
    return score_rows(learner.config, sharding.row_shards(sharding.in_use()))


def logps(learner: Learner, params, rows: Rows):
    """Log-probs [B, T] of the response tokens under some parameters, in chunks of rows."""
    temperature = learner.config.sampling.temperature

    def score(chunk):
        return scoring.score_responses(learner.policy, params, chunk, temperature).logp_BT

    return _in_chunks(score, rows, _chunk(learner))


def complete(learner: Learner, state: TrainState, fresh: Rows, step, number) -> Rows:
    """Fresh rows with what the learner knows of them: base log-probs (once a row), age, signal."""
    base_logp_BT = fresh.base_logp_BT
    if state.base_params is not None:
        base_logp_BT = logps(learner, state.base_params, fresh)
    signal_B = jnp.ones_like(fresh.valid_B)
    if not learner.config.has_critic:
        signal_B = _group_advantage(learner, fresh, fresh.valid_B, number) != 0
    adv_BT = jnp.zeros_like(base_logp_BT) if learner.config.stores_advantage else None
    return fresh.replace(
        adv_BT=adv_BT,
        base_logp_BT=base_logp_BT,
        version_B=jnp.full_like(fresh.version_B, step),
        signal_B=signal_B,
    )


def assemble(
    learner: Learner, stage: Stage, ring, fresh: Rows, fresh_slots, step, key, replayed_groups
) -> Frozen:
    """The batch, by slots of the ring: replayed rows, then fresh ones, then empty slots.

    The accounting never gives more than B rows, so cutting at B cuts empty slots only.
    """
    c = learner.config
    slots, in_batch = fresh_slots, fresh.valid_B
    if stage.replay_groups > 0:
        window, room = c.replay.window, stage.replay_groups
        old_slots, taken = replay.sample(
            ring, key, step, window, room, replayed_groups, c.replay.sampler
        )
        slots = jnp.concatenate([old_slots, slots])
        in_batch = jnp.concatenate([taken, in_batch])
    order_B = jnp.argsort(~in_batch, stable=True)[: c.batch_size]
    slots_B = slots[order_B]
    age_B = step - ring.rows.version_B[slots_B]
    nothing_BT = jnp.zeros((c.batch_size, fresh.response_slots))
    return Frozen(slots_B, in_batch[order_B], age_B, *[nothing_BT] * 5)


def score(
    learner: Learner, stage: Stage, state: TrainState, rows: Rows, frozen: Frozen, kl_weight
) -> Frozen:
    """Log-probs under the policy at step start and the precedent, and values, for the batch.

    A fresh row was sampled by the policy at step start: its stored log-probs are pi_k, so that its
    clip centre is 1 to the last bit. Only the first rows, where replayed ones are, are scored anew.
    """
    prox_logp_BT = rows.behav_logp_BT
    if stage.replay_groups > 0:
        first = stage.replay_groups * learner.config.group_size
        scored = logps(learner, state.params, jax.tree.map(lambda x: x[:first], rows))
        scored_BT = jnp.concatenate([scored, rows.behav_logp_BT[first:]])
        replayed_B1 = (frozen.age_B > 0)[:, None]
        prox_logp_BT = jnp.where(replayed_B1, scored_BT, prox_logp_BT)
    prev_logp_BT = rows.base_logp_BT
    if state.prev_params is not None:
        prev_logp_BT = jax.lax.cond(
            kl_weight < 1,
            lambda: logps(learner, state.prev_params, rows),
            lambda: rows.base_logp_BT,
        )
    value_BT = frozen.value_BT
    if learner.critic is not None and state.critic_params is not None:
        score = functools.partial(scoring.score_values, learner.critic, state.critic_params)
        value_BT = _in_chunks(score, rows, _chunk(learner))
    return frozen._replace(prox_logp_BT=prox_logp_BT, prev_logp_BT=prev_logp_BT, value_BT=value_BT)


def _group_advantage(learner: Learner, rows: Rows, counted_B, number):
    """[B] by the group estimator of the config, or of the method, among the rows that count."""
    objective = learner.config.objective
    method = family.METHODS[objective.method]
    if not method.expert_in_group:
        counted_B = counted_B & ~rows.expert_B
    mask_B = counted_B.astype(jnp.float32)
    if method.own_advantage is not None:
        return method.own_advantage(rows.reward_B, rows.group_B, mask_B, number)
    estimator = advantages.ESTIMATORS[objective.advantage]
    return estimator(rows.reward_B, rows.group_B, mask_B=mask_B)


def _critic_advantage(learner: Learner, rows: Rows, frozen: Frozen, mask_BT):
    """Advantages and returns by the critic, of pi_k or, for methods that want it, as stored."""
    objective = learner.config.objective
    last_BT = jnp.arange(rows.response_slots)[None, :] == rows.response_len_B[:, None] - 1
    reward_BT = jnp.where(last_BT, rows.reward_B[:, None], 0.0)
    discounts = (objective.gamma, objective.lam)
    if objective.advantage == "vtrace":
        ratio_BT = objectives.ratio(frozen.prox_logp_BT, losses.behaviour_logp(learner, rows))
        return advantages.vtrace(reward_BT, frozen.value_BT, ratio_BT, mask_BT, *discounts)
    return advantages.gae(reward_BT, frozen.value_BT, mask_BT, *discounts)


def with_advantages(learner: Learner, rows: Rows, frozen: Frozen, number):
    """Advantages of pi_k for every row of the batch, old or new; and the critic's quality.

    Returns:
      The batch with them; the same before whitening, to be kept with fresh rows; metrics.
    """
    objective = learner.config.objective
    mask_BT = losses.loss_mask(rows, frozen)
    if learner.critic is None:
        adv_B = _group_advantage(learner, rows, frozen.in_batch_B, number)
        adv_BT = adv_B[:, None] * mask_BT
        return frozen._replace(adv_BT=adv_BT), adv_BT, {}
    adv_BT, return_BT = _critic_advantage(learner, rows, frozen, mask_BT)
    error_BT, spread_BT = adv_BT, return_BT - masked.mean(return_BT, mask_BT)
    error_BT = error_BT - masked.mean(error_BT, mask_BT)
    unexplained = masked.mean(jnp.square(error_BT), mask_BT)
    variance = masked.mean(jnp.square(spread_BT), mask_BT)
    metrics = {"explained_variance": 1 - masked.divide(unexplained, variance)}
    if family.METHODS[objective.method].stored_advantage and rows.adv_BT is not None:
        adv_BT = jnp.where((frozen.age_B > 0)[:, None], rows.adv_BT, adv_BT)
    collected_BT = adv_BT
    if objective.whiten:
        adv_BT = masked.whiten(adv_BT, mask_BT)
    return frozen._replace(adv_BT=adv_BT, return_BT=return_BT), collected_BT, metrics


def keep_advantages(learner: Learner, ring: replay.ReplayState, frozen: Frozen, adv_BT):
    """The ring with the advantages of fresh rows, for methods and samplers that read them later."""
    if ring.rows.adv_BT is None:
        return ring
    fresh_B = frozen.in_batch_B & (frozen.age_B == 0)
    slots_B = jnp.where(fresh_B, frozen.slots_B, replay.capacity(ring))
    kept_RT = ring.rows.adv_BT.at[slots_B].set(adv_BT, mode="drop")
    return ring.replace(rows=ring.rows.replace(adv_BT=kept_RT))


def without_equal_groups(learner: Learner, rows: Rows, frozen: Frozen) -> Frozen:
    """The batch without groups of equal rewards, where the method leaves them out."""
    if not family.METHODS[learner.config.objective.method].drops_equal_groups:
        return frozen
    counted_B = frozen.in_batch_B.astype(jnp.float32)
    varied_B = advantages.varied(rows.reward_B, rows.group_B, counted_B)
    return frozen._replace(in_batch_B=frozen.in_batch_B & varied_B)
