"""The methods that are compared, as changes of one config of full ReMix.

Each takes that config (either base) and returns that of the method; the number of steps follows,
so that every method spends the same fresh rollouts. The choice of the base, PPO or GRPO, is such a
change as well: `grpo` methods compare the responses of a group, `ppo` methods learn a critic.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from remix_jax.config import Config
from remix_jax.schedule import planned_rollouts

GROUP_SIZE = 8
"""Responses a problem where a GRPO method is made from a config with one response a problem."""


class Method(NamedTuple):
    """A method: its name for people, the on-policy method it builds on, its change of a config."""

    label: str
    reference: str
    change: Callable[[Config], Config]


def on_policy(config: Config) -> Config:
    """PPO or GRPO: fresh rows, one pass, KL to the first policy, nothing beside it."""
    return _switch(config, **_ON_POLICY)


def remix_plus(config: Config) -> Config:
    """ReMix and imitation of its own successes, which was found to help (docs/remix_plus.md)."""
    return _switch(config, **_IMITATION)


def with_rollouts(config: Config, rollouts: int) -> Config:
    """The config with the fewest steps that generate at least so many fresh rollouts."""
    steps = 1
    while planned_rollouts(dataclasses.replace(config, steps=steps)) < rollouts:
        steps += 1
    return dataclasses.replace(config, steps=steps)


def _switch(config: Config, share=None, convex=None, imitation=None, **fields) -> Config:
    """The config with some switches set and the steps that its fresh rollouts are enough for."""
    if share is not None:
        fields["replay"] = dataclasses.replace(config.replay, share=share)
    if convex is not None:
        fields["kl"] = dataclasses.replace(config.kl, convex=convex)
    if imitation is not None:
        fields["imitation"] = dataclasses.replace(config.imitation, weight=imitation)
    return with_rollouts(dataclasses.replace(config, **fields), planned_rollouts(config))


def _on_base(config: Config, base: str) -> Config:
    """The config on PPO (critic) or GRPO (groups), with as many rows a step."""
    if (base == "ppo") == config.has_critic:
        return config
    advantage = "gae" if base == "ppo" else "group_normalized"
    group_size = 1 if base == "ppo" else max(config.group_size, GROUP_SIZE)
    objective = dataclasses.replace(config.objective, advantage=advantage)
    return dataclasses.replace(config, group_size=group_size, objective=objective)


_ON_POLICY = {
    "passes": 1, "share": 0.0, "convex": False, "reincarnation_step": 0, "imitation": 0.0,
}  # fmt: skip
_IMITATION = {"imitation": 10.0}

# Switches of full ReMix, by the method's name around its base's: the paper's method and parts ...
_PAPER: dict[str, tuple[str, dict[str, Any]]] = {
    "{base}": ("{BASE}", _ON_POLICY),
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
# ... and what is not the paper's: imitation with ReMix, and without it.
_PLUS: dict[str, tuple[str, dict[str, Any]]] = {
    "remix-plus-{base}": ("ReMix+ {BASE}", _IMITATION),
    "imitation-{base}": ("{BASE} + imitation", _ON_POLICY | _IMITATION),
}


def _methods(base: str, parts: dict[str, tuple[str, dict[str, Any]]]) -> dict[str, Method]:
    def change(config: Config, switches: dict[str, Any]) -> Config:
        return _switch(_on_base(config, base), **switches)

    return {
        name.format(base=base): Method(
            label.format(BASE=base.upper()), base, functools.partial(change, switches=switches)
        )
        for name, (label, switches) in parts.items()
    }


def _adapted(methods: dict[str, Method]) -> dict[str, Method]:
    """Each by adapters of some ranks, to be compared with itself trained whole."""

    def change(method: Method, rank: int, config: Config) -> Config:
        return dataclasses.replace(
            method.change(config), lora=dataclasses.replace(config.lora, rank=rank)
        )

    return {
        f"{name}-rank{rank}": Method(
            f"{method.label}, rank {rank}", name, functools.partial(change, method, rank)
        )
        for name, method in methods.items()
        if name.removesuffix(f"-{method.reference}") in ("ppo", "grpo", "remix", "remix-plus")
        for rank in RANKS
    }


RANKS = (1, 8, 32)
_WHOLE = _methods("ppo", _PAPER | _PLUS) | _methods("grpo", _PAPER | _PLUS)
METHODS: dict[str, Method] = _WHOLE | _adapted(_WHOLE)
COMPARED: tuple[str, ...] = (*_methods("ppo", _PAPER), *_methods("grpo", _PAPER))
"""What a comparison compares unless told otherwise: the paper's method, its bases, its parts."""
