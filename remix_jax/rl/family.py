"""The methods that `objective.method` selects, in one dict: which loss, and what it needs.

The equations are in `off_policy`, `objectives` and `advantages`. To add a method: a loss function,
an entry of METHODS, a preset, its tests (docs/choosing_a_method.md).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax import Array

from remix_jax.rl import advantages, masked, off_policy
from remix_jax.rl.off_policy import Params, Terms
from remix_jax.types import Batch


class Param(NamedTuple):
    """A number of a method that `objective.method_params` may change, within [low, high]."""

    default: float
    low: float
    high: float
    what: str


class Method(NamedTuple):
    """A loss and all that has to be there for it."""

    title: str
    loss: Callable[[Array, Batch, Terms], Array]
    advantage: str = ""  # what objective.advantage must be; empty: any
    # (reward, group, mask, params), for objective.advantage "method"
    own_advantage: Callable[[Array, Array, Array, Params], Array] | None = None
    aggregation: str = ""  # what objective.aggregation must be; empty: any
    clips: bool = False  # reads objective.clip, clip_high and dual_clip
    params: Mapping[str, Param] = {}
    # (params, share of the run that is done, pass from 0) -> what the loss gets in that pass
    schedule: Callable[[dict[str, float], float, int], dict[str, float]] = lambda params, *_: params
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


def params_of(name: str, given: Sequence[str]) -> dict[str, float]:
    """The parameters of a method: its defaults, changed by `objective.method_params`.

    Raises:
      ValueError: in a line, a text that is not NAME=NUMBER, or no parameter or value of the method.
    """
    known = METHODS[name].params
    params = {key: param.default for key, param in known.items()}
    for text in given:
        key, _, number = (part.strip() for part in text.partition("="))
        if key not in known:
            has = ", ".join(f"{key} ({p.what}, {p.default:g})" for key, p in known.items())
            raise ValueError(f"{name} has no parameter {key!r}; it has {has or 'none'}")
        try:
            params[key] = float(number)
        except ValueError:
            raise ValueError(f"{text!r}: must be {key}=NUMBER") from None
        if not known[key].low <= params[key] <= known[key].high:
            bounds = f"[{known[key].low:g}, {known[key].high:g}]"
            raise ValueError(f"{name}'s {key}, {known[key].what}, must be in {bounds}")
    return params


def scheduled(
    name: str, given: Sequence[str], step: int, steps: int, passes: int
) -> dict[str, np.ndarray]:
    """The method's parameters in each pass of a step (from 1) of a run, float32 [M] each."""
    done, params = (step - 1) / max(steps - 1, 1), params_of(name, given)
    in_pass = [METHODS[name].schedule(params, done, i) for i in range(passes)]
    return {key: np.asarray([each[key] for each in in_pass], np.float32) for key in in_pass[0]}


METHODS: dict[str, Method] = {
    "mix_ppg": Method(
        "Mix-PPG (ReMix); PPO and GRPO on fresh rows", off_policy.mix_ppg, clips=True
    ),
    "ppo": Method("PPO clipped around the policy that sampled", off_policy.ppo, clips=True),
    "reinforce": Method("REINFORCE", off_policy.reinforce, experts="taken"),
    "rloo": Method("RLOO", off_policy.reinforce, advantage="rloo", experts="taken"),
    "dr_grpo": Method(
        "Dr.GRPO", off_policy.ppo, clips=True,
        advantage="mean_baseline", aggregation="seq-mean-token-sum-norm",
    ),
    "geppo": Method("GePPO", off_policy.geppo, clips=True, row_stats=off_policy.age_weight),
    "topr": Method(
        "TOPR", off_policy.topr, compares=False, aggregation="seq-mean-token-mean",
        own_advantage=lambda reward_B, group_B, mask_B, params: masked.zero_masked(
            2 * (reward_B - params["threshold"]), mask_B  # no baseline: -1 / +1 for 0 / 1
        ),
        params={"threshold": Param(0.5, -math.inf, math.inf, "reward between bad and good rows")},
    ),
    "asymre": Method(
        "AsymRE", off_policy.reinforce, experts="taken",
        own_advantage=lambda reward_B, group_B, mask_B, params: advantages.asymre(
            reward_B, group_B, params["shift"], mask_B
        ),
        params={"shift": Param(-0.05, -1, 1, "of the baseline, for rewards of 0 / 1")},
    ),
    "bapo": Method(
        "BAPO", off_policy.bapo, stats=off_policy.bapo_bounds, forward=True,
        params={"target": Param(0.4, 0, 1, "share of A >= 0 in the loss")},
    ),
    "luffy": Method(
        "LUFFY", off_policy.luffy, clips=True, advantage="mean_baseline", experts="needed",
        params={"gamma": Param(0.1, 0, 1, "of the shaping")},
    ),
    "chord_mu": Method(
        "CHORD-mu", off_policy.chord_mu, clips=True, stats=off_policy.chord_scales,
        params={
            "first": Param(0.9, 0, 1, "weight of the expert's rows at the start"),
            "last": Param(0.05, 0, 1, "and at the end"),
        },
        schedule=lambda p, done, i: {
            "mu": p["last"] + (p["first"] - p["last"]) * (1 + math.cos(math.pi * done)) / 2
        },
        experts="needed", expert_in_group=False,
    ),
    "chord_phi": Method(
        "CHORD-phi", off_policy.chord_phi, clips=True, stats=off_policy.chord_scales,
        params={"mu": Param(0.1, 0, 1, "weight of the expert's rows")},
        experts="needed", expert_in_group=False,
    ),
    "agro": Method(
        "AGRO", off_policy.agro, row_stats=off_policy.agro_advantage, forward=True,
        own_advantage=lambda reward_B, group_B, mask_B, _: advantages.mean_baseline(
            reward_B, group_B, mask_B
        ),
        params={"beta": Param(0.1, 0, math.inf, "of the KL to the base")},
        whole_groups=True, experts="taken", base=True,
    ),
    "off_policy_grpo": Method(
        "Off-policy GRPO", off_policy.ppo, clips=True,
        advantage="group_normalized", drops_equal_groups=True,
    ),
    "decoupled_ppo": Method(
        "Decoupled PPO", off_policy.decoupled_ppo, clips=True,
        params={"cap": Param(5, 0, math.inf, "of the weight pi_k / mu")},
    ),
    "tis": Method(
        "PPO with truncated importance sampling", off_policy.decoupled_ppo, clips=True,
        params={"cap": Param(2, 0, math.inf, "of the weight pi_k / mu")},
    ),
    "masked_is": Method(
        "PPO with masked importance sampling", off_policy.masked_is, clips=True,
        params={"cap": Param(2, 0, math.inf, "of the weight pi_k / mu")},
    ),
    "gspo": Method(
        "GSPO", off_policy.gspo, aggregation="seq-mean-token-mean",
        params={
            "low": Param(3e-4, 0, 1, "lower half-width of the clip"),
            "high": Param(4e-4, 0, math.inf, "upper half-width"),
        },
    ),
    "cispo": Method(
        "CISPO", off_policy.cispo,
        params={
            "low": Param(1, 0, 1, "the weight is clipped at 1 - low"),
            "high": Param(0.2, 0, math.inf, "and at 1 + high"),
        },
    ),
    "m2po": Method(
        "M2PO", off_policy.m2po, stats=off_policy.m2po_threshold, forward=True,
        params={"bound": Param(0.04, 0, math.inf, "largest mean of (log r)^2")},
    ),
    "opmd": Method(
        "OPMD (Kimi)", off_policy.opmd, advantage="mean_baseline",
        params={"tau": Param(0.1, 0, math.inf, "of the pull back to mu")},
    ),
    "p3o": Method("P3O", off_policy.p3o, stats=off_policy.effective_sample_size, forward=True),
    "toppo": Method("ToPPO", off_policy.ppo, clips=True, advantage="gae", stored_advantage=True),
    "bppo": Method(
        "BPPO", off_policy.bppo, clips=True,
        params={"factor": Param(0.9, 0, 1, "of the clip, a pass")},
        schedule=lambda p, done, i: {"scale": p["factor"] ** i},
    ),
    "sft": Method(
        "log-likelihood of an expert's rows", off_policy.reinforce, experts="needed",
        own_advantage=lambda reward_B, group_B, mask_B, _: mask_B, compares=False,
    ),
}  # fmt: skip
