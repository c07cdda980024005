"""The methods that `objective.method` selects, in one dict: which loss, and what it needs.

Every loss is a function of `Tokens`, what a micro-batch knows of its rows, and `Fixed`, the static
numbers of the config; the equations stand in the modules that it calls. Quantities of the whole
mini-batch come from the method's `whole`, computed once before the micro-batches. To add a method:
a loss function, an entry of METHODS, a preset, its tests (docs/choosing_a_method.md).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from remix_jax.rl import advantages, bounds, expert, masked, objectives, off_policy, sequence


class Tokens(NamedTuple):
    """Rows of a micro-batch (of the mini-batch, for `whole`) as a loss sees them."""

    logp_BT: jax.Array  # log pi_theta: the only input with a gradient
    behav_logp_BT: jax.Array  # log mu, of the policy that sampled; NaN in the rows of an expert
    prox_logp_BT: jax.Array  # log pi_k, of the policy at the start of the step
    base_logp_BT: jax.Array  # of the base anchor
    adv_BT: jax.Array
    mask_BT: jax.Array
    reward_B: jax.Array
    group_B: jax.Array
    age_B: jax.Array  # steps since the row was sampled; 0 is fresh
    expert_B: jax.Array  # the row is an expert's: it has no mu
    number: jax.Array  # the method's own number (`Method.number`), as scheduled
    whole: Any = None  # what `Method.whole` found of the mini-batch
    row_B: jax.Array | None = None  # what it found of each row

    @property
    def own_BT(self) -> jax.Array:
        """The mask of the rows that a policy of ours sampled."""
        return jnp.where(self.expert_B[:, None], jnp.zeros_like(self.mask_BT), self.mask_BT)


class Fixed(NamedTuple):
    """Numbers of the config that are constants of the programs."""

    clip: float
    dual_clip: float | None
    window: int  # oldest age of a replayed row
    aggregation: str


class Number(NamedTuple):
    """The one number of a method that `objective.method_param` may change."""

    name: str
    default: float
    low: float
    high: float


Loss = Callable[[Tokens, Fixed], jax.Array]
Whole = Callable[[Tokens, Fixed], tuple[Any, jax.Array | None]]
Advantage = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]
Schedule = Callable[[float, float, int, int, int], list[float]]


def constant(number: float, clip: float, step: int, steps: int, passes: int) -> list[float]:
    """The number itself, in every pass."""
    del clip, step, steps
    return [number] * passes


class Method(NamedTuple):
    """A loss and all that has to be there for it."""

    title: str
    loss: Loss
    advantage: str = ""  # what objective.advantage must be; empty: any
    own_advantage: Advantage | None = None  # (reward, group, mask, number), for advantage "method"
    aggregation: str = ""  # what objective.aggregation must be; empty: any
    number: Number | None = None
    schedule: Schedule = constant  # (number, clip, step, steps, passes) -> its value in each pass
    whole: Whole | None = None
    forward: bool = False  # `whole` reads log-probs at the mini-batch's first parameters
    whole_groups: bool = False  # mini-batches are made of whole groups
    experts: str = "refused"  # rows without mu: refused, taken or needed
    compares: bool = True  # its own advantage compares the rows of a group
    expert_in_group: bool = True  # an expert's reward counts in the statistics of its group
    base: bool = False  # reads log-probs of the base anchor
    stored_advantage: bool = False  # reads the advantage of the collection, kept with the row
    drops_equal_groups: bool = False  # rows of a group of equal rewards are not in the batch


def numbers(
    method: Method, setting: float | None, clip: float, step: int, steps: int, passes: int
) -> np.ndarray:
    """The method's number in each pass of a step (from 1), float32 [passes]; 0 without one."""
    value = 0.0
    if method.number is not None:
        value = method.number.default if setting is None else setting
    scheduled = method.schedule(value, clip, step, steps, passes)
    return np.asarray(scheduled, np.float32)


# ---------------------------------------------------------------------------- losses


def _mix_ppg(t: Tokens, f: Fixed):
    return objectives.mix_ppg(
        t.logp_BT, t.behav_logp_BT, t.prox_logp_BT, t.adv_BT, f.clip, f.dual_clip
    )


def _ppo(t: Tokens, f: Fixed):
    return _clipped(t, f.clip, f.clip, f.dual_clip)


def _clipped(t: Tokens, low, high, dual_clip=None):
    """PPO around mu, with what lies under the mask left out."""
    logp_BT, behav_logp_BT, adv_BT = masked.live(t.own_BT, t.logp_BT, t.behav_logp_BT, t.adv_BT)
    return objectives.ppo(logp_BT, behav_logp_BT, adv_BT, low, high, dual_clip)


def _reinforce(t: Tokens, f: Fixed):
    return off_policy.reinforce(t.logp_BT, t.adv_BT, t.mask_BT)


def _geppo(t: Tokens, f: Fixed):
    """GePPO: nu_age times Mix-PPG with the clip eps' (Queeney et al. 2021)."""
    assert t.row_B is not None
    clip = bounds.geppo_clip(f.clip, _geppo_weights(f))
    logp_BT, behav_logp_BT, prox_logp_BT, adv_BT = masked.live(
        t.mask_BT, t.logp_BT, t.behav_logp_BT, t.prox_logp_BT, t.adv_BT
    )
    loss_BT = objectives.mix_ppg(logp_BT, behav_logp_BT, prox_logp_BT, adv_BT, clip, f.dual_clip)
    return t.row_B[:, None] * loss_BT


def _geppo_weights(f: Fixed) -> np.ndarray:
    """nu of the ages 0 .. window = 3 B - 3."""
    return bounds.geppo_weights(f.window // 3 + 1)


def _age_weights(t: Tokens, f: Fixed):
    live_B = t.mask_BT.any(axis=1).astype(jnp.float32)
    nu_M = jnp.asarray(_geppo_weights(f), jnp.float32)
    return None, bounds.age_weight(t.age_B, nu_M, live_B)


def _topr(t: Tokens, f: Fixed):
    return sequence.topr(t.logp_BT, t.behav_logp_BT, t.adv_BT, t.mask_BT)


def _bapo_bounds(t: Tokens, f: Fixed):
    found = bounds.bapo_bounds(t.logp_BT, t.behav_logp_BT, t.adv_BT, t.mask_BT, t.number)
    return found, None


def _bapo(t: Tokens, f: Fixed):
    return _clipped(t, 1 - t.whole.low, t.whole.high - 1)


def _luffy(t: Tokens, f: Fixed):
    return expert.luffy(
        t.logp_BT, t.behav_logp_BT, t.adv_BT, t.mask_BT, t.expert_B, t.number, f.clip, f.clip
    )


def _chord_scales(t: Tokens, f: Fixed):
    """What turns sums over the common count into mu mean(expert) + (1 - mu) mean(own)."""
    expert_BT = t.mask_BT - t.own_BT
    count, experts, own = (
        masked.count(m_BT, f.aggregation) for m_BT in (t.mask_BT, expert_BT, t.own_BT)
    )
    scales = t.number * masked.divide(count, experts), (1 - t.number) * masked.divide(count, own)
    return scales, None


def _chord(t: Tokens, f: Fixed, imitate_BT):
    of_experts, of_own = t.whole
    return jnp.where(t.expert_B[:, None], of_experts * imitate_BT, of_own * _ppo(t, f))


def _chord_mu(t: Tokens, f: Fixed):
    ones_BT = jnp.ones_like(t.logp_BT)
    return _chord(t, f, off_policy.reinforce(t.logp_BT, ones_BT, t.mask_BT))


def _chord_phi(t: Tokens, f: Fixed):
    return _chord(t, f, expert.chord_phi(t.logp_BT, t.mask_BT))


def _agro_advantages(t: Tokens, f: Fixed):
    """The advantage of each row from its whole group, at the current parameters."""
    live_B = t.mask_BT.any(axis=1)
    # Rows that do not count must not be in anybody's group.
    group_B = jnp.where(live_B, t.group_B, -1)
    adv_B = sequence.agro_advantage(
        t.logp_BT, t.base_logp_BT, t.mask_BT, t.reward_B, group_B, t.number
    )
    return None, adv_B


def _agro(t: Tokens, f: Fixed):
    assert t.row_B is not None
    adv_BT = jnp.broadcast_to(t.row_B[:, None], t.logp_BT.shape)
    return off_policy.reinforce(t.logp_BT, adv_BT, t.mask_BT)


def _decoupled_ppo(t: Tokens, f: Fixed):
    return off_policy.decoupled_ppo(
        t.logp_BT, t.behav_logp_BT, t.prox_logp_BT, t.adv_BT, t.mask_BT, f.clip, f.clip, t.number
    )


def _masked_is(t: Tokens, f: Fixed):
    """PPO around pi_k times w 1[w <= C], w = pi_k / mu."""
    weight_BT = off_policy.masked_weight(t.prox_logp_BT, t.behav_logp_BT, t.mask_BT, t.number)
    around_prox = t._replace(behav_logp_BT=t.prox_logp_BT)
    return weight_BT * _clipped(around_prox, f.clip, f.clip, f.dual_clip)


def _gspo(t: Tokens, f: Fixed):
    """GSPO; the upper bound is 4 / 3 of the lower, as in the paper's 3e-4 and 4e-4."""
    arguments = (t.logp_BT, t.behav_logp_BT, t.adv_BT, t.mask_BT)
    return sequence.gspo(*arguments, clip_low=t.number, clip_high=t.number * 4 / 3)


def _cispo(t: Tokens, f: Fixed):
    return off_policy.cispo(t.logp_BT, t.behav_logp_BT, t.adv_BT, t.mask_BT, t.number)


def _m2po_threshold(t: Tokens, f: Fixed):
    found = bounds.m2po_threshold(t.logp_BT, t.behav_logp_BT, t.adv_BT, t.mask_BT, t.number)
    return found, None


def _m2po(t: Tokens, f: Fixed):
    return off_policy.m2po(t.logp_BT, t.behav_logp_BT, t.adv_BT, t.mask_BT, t.whole)


def _opmd(t: Tokens, f: Fixed):
    return sequence.opmd(t.logp_BT, t.behav_logp_BT, t.adv_BT, t.mask_BT, t.number)


def _ess_of_old_rows(t: Tokens, f: Fixed):
    old_BT = t.mask_BT * (t.age_B > 0).astype(t.mask_BT.dtype)[:, None]
    return bounds.effective_sample_size(t.logp_BT, t.behav_logp_BT, old_BT), None


def _p3o(t: Tokens, f: Fixed):
    """P3O on replayed rows, the plain policy gradient on fresh ones."""
    old_BT = off_policy.p3o(t.logp_BT, t.behav_logp_BT, t.adv_BT, t.mask_BT, t.whole)
    return jnp.where((t.age_B > 0)[:, None], old_BT, _reinforce(t, f))


def _bppo(t: Tokens, f: Fixed):
    return _clipped(t, t.number, t.number)


# ---------------------------------------------------------------------------- schedules, advantages


def _cosine(number, clip, step, steps, passes):
    """CHORD-mu: mu from .9 at the first step to .05 at the last, by a half cosine."""
    share = (step - 1) / max(steps - 1, 1)
    return [0.05 + 0.85 * (1 + math.cos(math.pi * share)) / 2] * passes


def _decaying_clip(number, clip, step, steps, passes):
    """BPPO: the clip of each pass over what one behaviour policy collected."""
    return [clip * number**i for i in range(passes)]


def _signed_reward(reward_B, group_B, mask_B, number):
    """-1 / +1 for rewards of 0 / 1, without a baseline."""
    return masked.zero_masked(2 * reward_B - 1, mask_B)


def _shifted(reward_B, group_B, mask_B, number):
    return advantages.asymre(reward_B, group_B, number, mask_B)


def _group_mean(reward_B, group_B, mask_B, number):
    return advantages.mean_baseline(reward_B, group_B, mask_B)


def _one(reward_B, group_B, mask_B, number):
    return mask_B


METHODS: dict[str, Method] = {
    "mix_ppg": Method("Mix-PPG (ReMix); PPO and GRPO on fresh rows", _mix_ppg),
    "ppo": Method("PPO clipped around the policy that sampled", _ppo),
    "reinforce": Method("REINFORCE", _reinforce, experts="taken"),
    "rloo": Method("RLOO", _reinforce, advantage="rloo", experts="taken"),
    "dr_grpo": Method(
        "Dr.GRPO", _ppo, advantage="mean_baseline", aggregation="seq-mean-token-sum-norm"
    ),
    "geppo": Method("GePPO", _geppo, whole=_age_weights),
    "topr": Method(
        "TOPR", _topr, advantage="method", own_advantage=_signed_reward, compares=False,
        aggregation="seq-mean-token-mean",
    ),
    "asymre": Method(
        "AsymRE", _reinforce, advantage="method", own_advantage=_shifted,
        number=Number("shift of the baseline (-.05 for rewards of 0 / 1)", -0.05, -1, 1),
        experts="taken",
    ),
    "bapo": Method(
        "BAPO", _bapo, number=Number("target share of A >= 0", 0.4, 0, 1),
        whole=_bapo_bounds, forward=True,
    ),
    "luffy": Method(
        "LUFFY", _luffy, advantage="mean_baseline",
        number=Number("gamma of the shaping", 0.1, 0, 1), experts="needed",
    ),
    "chord_mu": Method(
        "CHORD-mu", _chord_mu, schedule=_cosine, whole=_chord_scales, experts="needed",
        expert_in_group=False,
    ),
    "chord_phi": Method(
        "CHORD-phi", _chord_phi, number=Number("mu", 0.1, 0, 1), whole=_chord_scales,
        experts="needed", expert_in_group=False,
    ),
    "agro": Method(
        "AGRO", _agro, advantage="method", own_advantage=_group_mean,
        number=Number("beta", 0.1, 0, math.inf), whole=_agro_advantages, forward=True,
        whole_groups=True, experts="taken", base=True,
    ),
    "off_policy_grpo": Method(
        "Off-policy GRPO", _ppo, advantage="group_normalized", drops_equal_groups=True
    ),
    "decoupled_ppo": Method(
        "Decoupled PPO", _decoupled_ppo, number=Number("cap of the weight", 5, 0, math.inf)
    ),
    "tis": Method(
        "PPO with truncated importance sampling", _decoupled_ppo,
        number=Number("cap of the weight", 2, 0, math.inf),
    ),
    "masked_is": Method(
        "PPO with masked importance sampling", _masked_is,
        number=Number("cap of the weight", 2, 0, math.inf),
    ),
    "gspo": Method(
        "GSPO", _gspo, aggregation="seq-mean-token-mean",
        number=Number("lower half-width of the clip", 3e-4, 0, 1),
    ),
    "cispo": Method("CISPO", _cispo, number=Number("upper clip of the weight", 0.2, 0, math.inf)),
    "m2po": Method(
        "M2PO", _m2po, number=Number("largest mean of (log r)^2", 0.04, 0, math.inf),
        whole=_m2po_threshold, forward=True,
    ),
    "opmd": Method(
        "OPMD (Kimi)", _opmd, advantage="mean_baseline", number=Number("tau", 0.1, 0, math.inf)
    ),
    "p3o": Method("P3O", _p3o, whole=_ess_of_old_rows, forward=True),
    "toppo": Method("ToPPO", _ppo, advantage="gae", stored_advantage=True),
    "bppo": Method(
        "BPPO", _bppo, number=Number("factor of the clip a pass", 0.9, 0, 1),
        schedule=_decaying_clip,
    ),
    "sft": Method(
        "log-likelihood of an expert's rows", _reinforce, advantage="method", own_advantage=_one,
        compares=False, experts="needed",
    ),
}  # fmt: skip
