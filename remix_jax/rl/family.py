"""The methods that `objective.method` selects, in one dict: which loss, and what it needs.

Every loss is a function of log pi_theta, the only input with a gradient, of `Batch`, the rows of a
micro-batch, and of `Terms`, its numbers; the equations stand in the modules that it calls.
Quantities of the whole mini-batch come from the method's `stats`, computed once before the
micro-batches. To add a method:
a loss function, an entry of METHODS, a preset, its tests (docs/choosing_a_method.md).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from remix_jax.rl import advantages, bounds, expert, masked, objectives, off_policy, sequence
from remix_jax.types import Batch


class Terms(NamedTuple):
    """The numbers of a loss: constants of the program, and what the mini-batch gives."""

    clip: float
    clip_high: float | None  # of the upper side; None: as the lower
    dual_clip: float | None
    window: int  # oldest age of a replayed row
    aggregation: str
    param: jax.Array  # the method's own (`Method.param`), as scheduled
    stats: Any = None  # what `Method.stats` found of the whole mini-batch

    @property
    def high(self) -> float:
        """Half-width of the clip's upper side."""
        return self.clip if self.clip_high is None else self.clip_high


class Param(NamedTuple):
    """The one number of a method that `objective.method_param` may change."""

    name: str
    default: float
    low: float
    high: float


Loss = Callable[[jax.Array, Batch, Terms], jax.Array]
Stats = Callable[[Any, Batch, Terms], tuple[Any, jax.Array | None]]
Advantage = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]
Schedule = Callable[[float, float, int, int, int], list[float]]


def constant(param: float, clip: float, step: int, steps: int, passes: int) -> list[float]:
    """The parameter itself, in every pass."""
    del clip, step, steps
    return [param] * passes


class Method(NamedTuple):
    """A loss and all that has to be there for it."""

    title: str
    loss: Loss
    advantage: str = ""  # what objective.advantage must be; empty: any
    own_advantage: Advantage | None = None  # (reward, group, mask, param), for advantage "method"
    aggregation: str = ""  # what objective.aggregation must be; empty: any
    param: Param | None = None
    schedule: Schedule = constant  # (param, clip, step, steps, passes) -> its value in each pass
    stats: Stats | None = None  # (log pi_theta or None, mini-batch, terms) -> scalars, [B] or None
    forward: bool = False  # `stats` reads log pi_theta, at the mini-batch's first parameters
    whole_groups: bool = False  # mini-batches are made of whole groups
    experts: str = "refused"  # rows without mu: refused, taken or needed
    compares: bool = True  # its own advantage compares the rows of a group
    expert_in_group: bool = True  # an expert's reward counts in the statistics of its group
    base: bool = False  # reads log-probs of the base anchor
    stored_advantage: bool = False  # reads the advantage of the collection, kept with the row
    drops_equal_groups: bool = False  # rows of a group of equal rewards are not in the batch


def method_params(
    method: Method, value: float | None, clip: float, step: int, steps: int, passes: int
) -> np.ndarray:
    """The method's parameter in each pass of a step (from 1), float32 [M]; 0 without one.

    Args:
      value: of `objective.method_param`; None is the method's default.
    """
    if value is None:
        value = 0.0 if method.param is None else method.param.default
    scheduled = method.schedule(value, clip, step, steps, passes)
    return np.asarray(scheduled, np.float32)


# ---------------------------------------------------------------------------- losses


def _by_param(function) -> Loss:
    """function(log pi_theta, log mu, A, mask, the method's parameter) as a loss."""
    return lambda logp_BT, b, t: function(logp_BT, b.behav_logp_BT, b.adv_BT, b.mask_BT, t.param)


def _number(function) -> Stats:
    """The same as a statistic that is no row's own."""
    return lambda logp_BT, b, t: (_by_param(function)(logp_BT, b, t), None)


def _mix_ppg(logp_BT, b: Batch, t: Terms):
    return objectives.mix_ppg(
        logp_BT, b.behav_logp_BT, b.prox_logp_BT, b.adv_BT, t.clip, t.dual_clip, t.clip_high
    )


def _ppo(logp_BT, b: Batch, t: Terms):
    return _clipped(logp_BT, b, t.clip, t.high, t.dual_clip)


def _clipped(logp_BT, b: Batch, low, high, dual_clip=None):
    """PPO around mu, with what lies under the mask left out."""
    logp_BT, behav_logp_BT, adv_BT = masked.zero_masked_all(
        b.own_BT, logp_BT, b.behav_logp_BT, b.adv_BT
    )
    return objectives.ppo(logp_BT, behav_logp_BT, adv_BT, low, high, dual_clip)


def _reinforce(logp_BT, b: Batch, t: Terms):
    return off_policy.reinforce(logp_BT, b.adv_BT, b.mask_BT)


def _geppo(logp_BT, b: Batch, t: Terms):
    """GePPO: nu_age times Mix-PPG with the clip eps' (Queeney et al. 2021)."""
    assert b.per_row_B is not None
    low, high = (bounds.geppo_clip(clip, _geppo_weights(t)) for clip in (t.clip, t.high))
    logp_BT, behav_logp_BT, prox_logp_BT, adv_BT = masked.zero_masked_all(
        b.mask_BT, logp_BT, b.behav_logp_BT, b.prox_logp_BT, b.adv_BT
    )
    policies = (logp_BT, behav_logp_BT, prox_logp_BT)
    loss_BT = objectives.mix_ppg(*policies, adv_BT, low, t.dual_clip, high)
    return b.per_row_B[:, None] * loss_BT


def _geppo_weights(t: Terms) -> np.ndarray:
    """nu of the ages 0 .. window = 3 B - 3."""
    return bounds.geppo_weights(t.window // 3 + 1)


def _age_weights(logp_BT, b: Batch, t: Terms):
    live_B = b.mask_BT.any(axis=1).astype(jnp.float32)
    nu_M = jnp.asarray(_geppo_weights(t), jnp.float32)
    return None, bounds.age_weight(b.age_B, nu_M, live_B)


def _topr(logp_BT, b: Batch, t: Terms):
    return sequence.topr(logp_BT, b.behav_logp_BT, b.adv_BT, b.mask_BT)


def _bapo(logp_BT, b: Batch, t: Terms):
    return _clipped(logp_BT, b, 1 - t.stats.low, t.stats.high - 1)


def _luffy(logp_BT, b: Batch, t: Terms):
    return expert.luffy(
        logp_BT, b.behav_logp_BT, b.adv_BT, b.mask_BT, b.expert_B, t.param, t.clip, t.high
    )


def _chord_scales(logp_BT, b: Batch, t: Terms):
    """What turns sums over the common count into mu mean(expert) + (1 - mu) mean(own)."""
    expert_BT = b.mask_BT - b.own_BT
    count, experts, own = (
        masked.count(m_BT, t.aggregation) for m_BT in (b.mask_BT, expert_BT, b.own_BT)
    )
    scales = t.param * masked.divide(count, experts), (1 - t.param) * masked.divide(count, own)
    return scales, None


def _chord(logp_BT, b: Batch, t: Terms, imitate_BT):
    of_experts, of_own = t.stats
    return jnp.where(b.expert_B[:, None], of_experts * imitate_BT, of_own * _ppo(logp_BT, b, t))


def _chord_mu(logp_BT, b: Batch, t: Terms):
    ones_BT = jnp.ones_like(logp_BT)
    return _chord(logp_BT, b, t, off_policy.reinforce(logp_BT, ones_BT, b.mask_BT))


def _chord_phi(logp_BT, b: Batch, t: Terms):
    return _chord(logp_BT, b, t, expert.chord_phi(logp_BT, b.mask_BT))


def _agro_advantages(logp_BT, b: Batch, t: Terms):
    """The advantage of each row from its whole group, at the current parameters."""
    live_B = b.mask_BT.any(axis=1)
    # Rows that do not count must not be in anybody's group.
    group_B = jnp.where(live_B, b.group_B, -1)
    adv_B = sequence.agro_advantage(
        logp_BT, b.base_logp_BT, b.mask_BT, b.reward_B, group_B, t.param
    )
    return None, adv_B


def _agro(logp_BT, b: Batch, t: Terms):
    assert b.per_row_B is not None
    adv_BT = jnp.broadcast_to(b.per_row_B[:, None], logp_BT.shape)
    return off_policy.reinforce(logp_BT, adv_BT, b.mask_BT)


def _decoupled_ppo(logp_BT, b: Batch, t: Terms):
    return off_policy.decoupled_ppo(
        logp_BT, b.behav_logp_BT, b.prox_logp_BT, b.adv_BT, b.mask_BT, t.clip, t.high, t.param
    )


def _masked_is(logp_BT, b: Batch, t: Terms):
    """PPO around pi_k times w 1[w <= C], w = pi_k / mu."""
    weight_BT = off_policy.masked_weight(b.prox_logp_BT, b.behav_logp_BT, b.mask_BT, t.param)
    around_prox = b.replace(behav_logp_BT=b.prox_logp_BT)
    return weight_BT * _clipped(logp_BT, around_prox, t.clip, t.high, t.dual_clip)


def _gspo(logp_BT, b: Batch, t: Terms):
    """GSPO; unless clip_high says it, the upper bound is 4 / 3 of the lower (paper: 3e-4, 4e-4)."""
    high = t.param * 4 / 3 if t.clip_high is None else t.clip_high
    arguments = (logp_BT, b.behav_logp_BT, b.adv_BT, b.mask_BT)
    return sequence.gspo(*arguments, clip_low=t.param, clip_high=high)


def _m2po(logp_BT, b: Batch, t: Terms):
    return off_policy.m2po(logp_BT, b.behav_logp_BT, b.adv_BT, b.mask_BT, t.stats)


def _ess_of_old_rows(logp_BT, b: Batch, t: Terms):
    old_BT = b.mask_BT * (b.age_B > 0).astype(b.mask_BT.dtype)[:, None]
    return bounds.effective_sample_size(logp_BT, b.behav_logp_BT, old_BT), None


def _p3o(logp_BT, b: Batch, t: Terms):
    """P3O on replayed rows, the plain policy gradient on fresh ones."""
    old_BT = off_policy.p3o(logp_BT, b.behav_logp_BT, b.adv_BT, b.mask_BT, t.stats)
    return jnp.where((b.age_B > 0)[:, None], old_BT, _reinforce(logp_BT, b, t))


def _bppo(logp_BT, b: Batch, t: Terms):
    return _clipped(logp_BT, b, t.param, t.param)


# ---------------------------------------------------------------------------- schedules, advantages


def _cosine(param, clip, step, steps, passes):
    """CHORD-mu: mu from .9 at the first step to .05 at the last, by a half cosine."""
    share = (step - 1) / max(steps - 1, 1)
    return [0.05 + 0.85 * (1 + math.cos(math.pi * share)) / 2] * passes


def _decaying_clip(param, clip, step, steps, passes):
    """BPPO: the clip of each pass over what one behaviour policy collected."""
    return [clip * param**i for i in range(passes)]


def _signed_reward(reward_B, group_B, mask_B, param):
    """2 (R - threshold), without a baseline: -1 / +1 for rewards of 0 / 1."""
    return masked.zero_masked(2 * (reward_B - param), mask_B)


def _shifted(reward_B, group_B, mask_B, param):
    return advantages.asymre(reward_B, group_B, param, mask_B)


def _group_mean(reward_B, group_B, mask_B, param):
    return advantages.mean_baseline(reward_B, group_B, mask_B)


def _one(reward_B, group_B, mask_B, param):
    return mask_B


METHODS: dict[str, Method] = {
    "mix_ppg": Method("Mix-PPG (ReMix); PPO and GRPO on fresh rows", _mix_ppg),
    "ppo": Method("PPO clipped around the policy that sampled", _ppo),
    "reinforce": Method("REINFORCE", _reinforce, experts="taken"),
    "rloo": Method("RLOO", _reinforce, advantage="rloo", experts="taken"),
    "dr_grpo": Method(
        "Dr.GRPO", _ppo, advantage="mean_baseline", aggregation="seq-mean-token-sum-norm"
    ),
    "geppo": Method("GePPO", _geppo, stats=_age_weights),
    "topr": Method(
        "TOPR", _topr, advantage="method", own_advantage=_signed_reward, compares=False,
        aggregation="seq-mean-token-mean",
        param=Param("reward between bad and good rows", 0.5, -math.inf, math.inf),
    ),
    "asymre": Method(
        "AsymRE", _reinforce, advantage="method", own_advantage=_shifted,
        param=Param("shift of the baseline (-.05 for rewards of 0 / 1)", -0.05, -1, 1),
        experts="taken",
    ),
    "bapo": Method(
        "BAPO", _bapo, param=Param("target share of A >= 0", 0.4, 0, 1),
        stats=_number(bounds.bapo_bounds), forward=True,
    ),
    "luffy": Method(
        "LUFFY", _luffy, advantage="mean_baseline",
        param=Param("gamma of the shaping", 0.1, 0, 1), experts="needed",
    ),
    "chord_mu": Method(
        "CHORD-mu", _chord_mu, schedule=_cosine, stats=_chord_scales, experts="needed",
        expert_in_group=False,
    ),
    "chord_phi": Method(
        "CHORD-phi", _chord_phi, param=Param("mu", 0.1, 0, 1), stats=_chord_scales,
        experts="needed", expert_in_group=False,
    ),
    "agro": Method(
        "AGRO", _agro, advantage="method", own_advantage=_group_mean,
        param=Param("beta", 0.1, 0, math.inf), stats=_agro_advantages, forward=True,
        whole_groups=True, experts="taken", base=True,
    ),
    "off_policy_grpo": Method(
        "Off-policy GRPO", _ppo, advantage="group_normalized", drops_equal_groups=True
    ),
    "decoupled_ppo": Method(
        "Decoupled PPO", _decoupled_ppo, param=Param("cap of the weight", 5, 0, math.inf)
    ),
    "tis": Method(
        "PPO with truncated importance sampling", _decoupled_ppo,
        param=Param("cap of the weight", 2, 0, math.inf),
    ),
    "masked_is": Method(
        "PPO with masked importance sampling", _masked_is,
        param=Param("cap of the weight", 2, 0, math.inf),
    ),
    "gspo": Method(
        "GSPO", _gspo, aggregation="seq-mean-token-mean",
        param=Param("lower half-width of the clip", 3e-4, 0, 1),
    ),
    "cispo": Method(
        "CISPO", _by_param(off_policy.cispo),
        param=Param("upper clip of the weight", 0.2, 0, math.inf),
    ),
    "m2po": Method(
        "M2PO", _m2po, param=Param("largest mean of (log r)^2", 0.04, 0, math.inf),
        stats=_number(bounds.m2po_threshold), forward=True,
    ),
    "opmd": Method(
        "OPMD (Kimi)", _by_param(sequence.opmd), advantage="mean_baseline",
        param=Param("tau", 0.1, 0, math.inf),
    ),
    "p3o": Method("P3O", _p3o, stats=_ess_of_old_rows, forward=True),
    "toppo": Method("ToPPO", _ppo, advantage="gae", stored_advantage=True),
    "bppo": Method(
        "BPPO", _bppo, param=Param("factor of the clip a pass", 0.9, 0, 1),
        schedule=_decaying_clip,
    ),
    "sft": Method(
        "log-likelihood of an expert's rows", _reinforce, advantage="method", own_advantage=_one,
        compares=False, experts="needed",
    ),
}  # fmt: skip
