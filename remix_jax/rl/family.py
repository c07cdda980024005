"""The methods that `objective.method` selects, in one dict: which loss, and what it needs.

The equations are in `off_policy`, `objectives` and `advantages`. To add a method: a loss function,
an entry of METHODS, a preset, its tests (docs/choosing_a_method.md).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jax import Array

from remix_jax.rl import advantages, masked, off_policy
from remix_jax.rl.off_policy import Terms
from remix_jax.types import Batch


class Param(NamedTuple):
    """The one number of a method that `objective.method_param` may change."""

    name: str
    default: float
    low: float
    high: float


class Method(NamedTuple):
    """A loss and all that has to be there for it."""

    title: str
    loss: Callable[[Array, Batch, Terms], Array]
    advantage: str = ""  # what objective.advantage must be; empty: any
    # (reward, group, mask, param), for objective.advantage "method"
    own_advantage: Callable[[Array, Array, Array, Array | float], Array] | None = None
    aggregation: str = ""  # what objective.aggregation must be; empty: any
    param: Param | None = None
    # (param, clip, share of the run that is done, pass from 0) -> the parameter in that pass
    schedule: Callable[[float, float, float, int], float] = lambda param, *_: param
    # Of log pi_theta (None unless `forward`) and the whole mini-batch: scalars, and a number a row.
    stats: Callable[[Any, Batch, Terms], Any] | None = None
    row_stats: Callable[[Any, Batch, Terms], Array] | None = None
    forward: bool = False  # these read log pi_theta, at the mini-batch's first parameters
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

    `value` is `objective.method_param`, None: the method's default.
    """
    if value is None:
        value = method.param.default if method.param else 0.0
    done = (step - 1) / max(steps - 1, 1)
    return np.asarray([method.schedule(value, clip, done, i) for i in range(passes)], np.float32)


METHODS: dict[str, Method] = {
    "mix_ppg": Method("Mix-PPG (ReMix); PPO and GRPO on fresh rows", off_policy.mix_ppg),
    "ppo": Method("PPO clipped around the policy that sampled", off_policy.ppo),
    "reinforce": Method("REINFORCE", off_policy.reinforce, experts="taken"),
    "rloo": Method("RLOO", off_policy.reinforce, advantage="rloo", experts="taken"),
    "dr_grpo": Method(
        "Dr.GRPO", off_policy.ppo, advantage="mean_baseline", aggregation="seq-mean-token-sum-norm"
    ),
    "geppo": Method("GePPO", off_policy.geppo, row_stats=off_policy.age_weight),
    "topr": Method(
        "TOPR", off_policy.topr, compares=False, aggregation="seq-mean-token-mean",
        own_advantage=lambda reward_B, group_B, mask_B, threshold: masked.zero_masked(
            2 * (reward_B - threshold), mask_B  # no baseline: -1 / +1 for rewards of 0 / 1
        ),
        param=Param("reward between bad and good rows", 0.5, -math.inf, math.inf),
    ),
    "asymre": Method(
        "AsymRE", off_policy.reinforce, experts="taken",
        own_advantage=lambda reward_B, group_B, mask_B, shift: advantages.asymre(
            reward_B, group_B, shift, mask_B
        ),
        param=Param("shift of the baseline (-.05 for rewards of 0 / 1)", -0.05, -1, 1),
    ),
    "bapo": Method(
        "BAPO", off_policy.bapo, stats=off_policy.bapo_bounds, forward=True,
        param=Param("target share of A >= 0", 0.4, 0, 1),
    ),
    "luffy": Method(
        "LUFFY", off_policy.luffy, advantage="mean_baseline", experts="needed",
        param=Param("gamma of the shaping", 0.1, 0, 1),
    ),
    "chord_mu": Method(
        "CHORD-mu", off_policy.chord_mu, stats=off_policy.chord_scales,
        schedule=lambda _, clip, done, i: 0.05 + 0.85 * (1 + math.cos(math.pi * done)) / 2,
        experts="needed", expert_in_group=False,
    ),
    "chord_phi": Method(
        "CHORD-phi", off_policy.chord_phi, stats=off_policy.chord_scales,
        param=Param("mu", 0.1, 0, 1), experts="needed", expert_in_group=False,
    ),
    "agro": Method(
        "AGRO", off_policy.agro, row_stats=off_policy.agro_advantage, forward=True,
        own_advantage=lambda reward_B, group_B, mask_B, beta: advantages.mean_baseline(
            reward_B, group_B, mask_B
        ),
        param=Param("beta", 0.1, 0, math.inf), whole_groups=True, experts="taken", base=True,
    ),
    "off_policy_grpo": Method(
        "Off-policy GRPO", off_policy.ppo, advantage="group_normalized", drops_equal_groups=True
    ),
    "decoupled_ppo": Method(
        "Decoupled PPO", off_policy.decoupled_ppo,
        param=Param("cap of the weight", 5, 0, math.inf),
    ),
    "tis": Method(
        "PPO with truncated importance sampling", off_policy.decoupled_ppo,
        param=Param("cap of the weight", 2, 0, math.inf),
    ),
    "masked_is": Method(
        "PPO with masked importance sampling", off_policy.masked_is,
        param=Param("cap of the weight", 2, 0, math.inf),
    ),
    "gspo": Method(
        "GSPO", off_policy.gspo, aggregation="seq-mean-token-mean",
        param=Param("lower half-width of the clip", 3e-4, 0, 1),
    ),
    "cispo": Method(
        "CISPO", off_policy.cispo, param=Param("upper clip of the weight", 0.2, 0, math.inf)
    ),
    "m2po": Method(
        "M2PO", off_policy.m2po, stats=off_policy.m2po_threshold, forward=True,
        param=Param("largest mean of (log r)^2", 0.04, 0, math.inf),
    ),
    "opmd": Method(
        "OPMD (Kimi)", off_policy.opmd, advantage="mean_baseline",
        param=Param("tau", 0.1, 0, math.inf),
    ),
    "p3o": Method("P3O", off_policy.p3o, stats=off_policy.effective_sample_size, forward=True),
    "toppo": Method("ToPPO", off_policy.ppo, advantage="gae", stored_advantage=True),
    "bppo": Method(
        "BPPO", off_policy.bppo, schedule=lambda factor, clip, done, i: clip * factor**i,
        param=Param("factor of the clip a pass", 0.9, 0, 1),
    ),
    "sft": Method(
        "log-likelihood of an expert's rows", off_policy.reinforce, experts="needed",
        own_advantage=lambda reward_B, group_B, mask_B, _: mask_B, compares=False,
    ),
}  # fmt: skip
