"""The methods that are compared, as changes of one config of full ReMix.

Each takes that config (either base) and returns that of the method; the number of steps follows,
so that every method spends the same fresh rollouts. The choice of the base, PPO or GRPO, is such a
change as well: `grpo` methods compare the responses of a group, `ppo` methods learn a critic.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from remix_jax.config import Config, planned_rollouts

GROUP_SIZE = 8
"""Responses a problem where a GRPO method is made from a config with one response a problem."""


class Method(NamedTuple):
    """A method: its name for people, the on-policy method it builds on, its change of a config."""

    label: str
    reference: str
    change: Callable[[Config], Config]


def on_policy(config: Config) -> Config:
    """PPO or GRPO: fresh rows, one pass, KL to the first policy."""
    return _switch(config, share=0.0, passes=1, convex=False, reincarnation_step=0)


def with_rollouts(config: Config, rollouts: int) -> Config:
    """The config with the fewest steps that generate at least so many fresh rollouts."""
    steps = 1
    while planned_rollouts(dataclasses.replace(config, steps=steps)) < rollouts:
        steps += 1
    return dataclasses.replace(config, steps=steps)


def _switch(config: Config, share=None, convex=None, **fields) -> Config:
    """The config with some switches set and the steps that its fresh rollouts are enough for."""
    if share is not None:
        fields["replay"] = dataclasses.replace(config.replay, share=share)
    if convex is not None:
        fields["kl"] = dataclasses.replace(config.kl, convex=convex)
    return with_rollouts(dataclasses.replace(config, **fields), planned_rollouts(config))


def _on_base(config: Config, base: str) -> Config:
    """The config on PPO (critic) or GRPO (groups), with as many rows a step."""
    if (base == "ppo") == config.has_critic:
        return config
    advantage = "gae" if base == "ppo" else "group_normalized"
    group_size = 1 if base == "ppo" else max(config.group_size, GROUP_SIZE)
    objective = dataclasses.replace(config.objective, advantage=advantage)
    return dataclasses.replace(config, group_size=group_size, objective=objective)


# Which switches of full ReMix are off, by the method's name around its base's.
_PARTS: dict[str, tuple[str, dict[str, Any] | None]] = {
    "{base}": ("{BASE}", None),  # on_policy
    "remix-{base}": ("ReMix-{BASE}", {}),
    "remix-{base}-without-utd": ("ReMix-{BASE} without UTD", {"passes": 1}),
    "remix-{base}-without-kl-convex": ("ReMix-{BASE} without KL-Convex", {"convex": False}),
    "remix-{base}-without-reincarnation": (
        "ReMix-{BASE} without reincarnation",
        {"reincarnation_step": 0},
    ),
    "mix-{base}": (
        "{BASE} + Mix-PPG alone",
        {"passes": 1, "convex": False, "reincarnation_step": 0},
    ),
    "utd-{base}": (
        "{BASE} + UTD alone",
        {"share": 0.0, "convex": False, "reincarnation_step": 0},
    ),
}


def _methods(base: str) -> dict[str, Method]:
    def change(config: Config, switches: dict[str, Any] | None) -> Config:
        config = _on_base(config, base)
        return on_policy(config) if switches is None else _switch(config, **switches)

    return {
        name.format(base=base): Method(
            label.format(BASE=base.upper()), base, functools.partial(change, switches=switches)
        )
        for name, (label, switches) in _PARTS.items()
    }


METHODS: dict[str, Method] = _methods("ppo") | _methods("grpo")
