"""ReMix, its parts switched off one by one, and its on-policy base, as changes of one config.

Each takes the config of full ReMix (either base) and returns that of the method. The number of
steps follows, so that every method spends the same fresh rollouts.
"""

import dataclasses
from collections.abc import Callable

from remix_jax.config import Config, planned_rollouts


def remix(config: Config) -> Config:
    """Mix-PPG with raised UTD, KL-Convex, then reincarnation: the config as it is."""
    return config


def on_policy(config: Config) -> Config:
    """PPO or GRPO: fresh rows, one pass, KL to the first policy."""
    return _change(config, share=0.0, passes=1, convex=False, reincarnation_step=0)


def without_utd(config: Config) -> Config:
    """One pass over the mixed batch instead of m."""
    return _change(config, passes=1)


def without_kl_convex(config: Config) -> Config:
    """KL to the base anchor alone, at the same weight beta."""
    return _change(config, convex=False)


def without_reincarnation(config: Config) -> Config:
    """The mix stage to the end."""
    return _change(config, reincarnation_step=0)


def mix_ppg(config: Config) -> Config:
    """Mix-PPG alone: no raised UTD, no KL-Convex, no reincarnation."""
    return _change(config, passes=1, convex=False, reincarnation_step=0)


def utd(config: Config) -> Config:
    """Raised UTD alone: m passes over fresh rows."""
    return _change(config, share=0.0, convex=False, reincarnation_step=0)


METHODS: dict[str, Callable[[Config], Config]] = {
    "on-policy": on_policy,
    "remix": remix,
    "without-utd": without_utd,
    "without-kl-convex": without_kl_convex,
    "without-reincarnation": without_reincarnation,
    "mix-ppg": mix_ppg,
    "utd": utd,
}


def label(config: Config, method: str) -> str:
    """The method's name for people: PPO, ReMix-PPO, ReMix-PPO without UTD, ..."""
    base = "PPO" if config.has_critic else "GRPO"
    match method:
        case "on-policy":
            return base
        case "mix-ppg" | "utd":
            return f"{base} + {'Mix-PPG' if method == 'mix-ppg' else 'UTD'} alone"
        case _:
            part = method.replace("remix", "").replace("-", " ").replace("kl convex", "KL-Convex")
            return f"ReMix-{base} {part.replace('utd', 'UTD')}".strip()


def _change(config: Config, share=None, convex=None, **fields) -> Config:
    """The config with some switches set and the steps that its fresh rollouts are enough for."""
    budget = planned_rollouts(config)
    if share is not None:
        fields["replay"] = dataclasses.replace(config.replay, share=share)
    if convex is not None:
        fields["kl"] = dataclasses.replace(config.kl, convex=convex)
    changed = dataclasses.replace(config, **fields)
    steps = 1
    while planned_rollouts(dataclasses.replace(changed, steps=steps)) < budget:
        steps += 1
    return dataclasses.replace(changed, steps=steps)
