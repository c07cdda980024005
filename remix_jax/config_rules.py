"""The one check of a whole config: types, then a rule a field, then fields against each other."""

import dataclasses
import math
import types
import typing
from collections.abc import Iterable
from typing import Any

from remix_jax.config import ATTENTIONS, DTYPES, OWN_ADVANTAGE, Config
from remix_jax.errors import InputError
from remix_jax.rl import advantages, constraints, family, masked, priorities, schedules

_LARGEST = 1e15  # of any number: whole numbers up to it are exact in any arithmetic here


def validate(config: Config) -> None:
    """Checks every field, alone and against the others.

    Raises:
      InputError: names the first field that is wrong, its value, and what would be right.
    """
    for path, value, kind in _typed_leaves(config):
        if not _fits(value, kind):
            name = getattr(kind, "__name__", str(kind))
            raise InputError(f"config.{path} = {str(value)[:80]!r}: must be of type {name}")
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"config.{path} = {value}: must be a finite number")
        if isinstance(value, int | float) and abs(value) > _LARGEST:
            raise InputError(f"config.{path} = {value:.3g}: must be below {_LARGEST:.0e}")
    for field, value, ok, rule in _rules(config):
        if not ok:
            raise InputError(f"config.{field} = {value!r}: {rule}")


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a field's type; a whole number is also a number."""
    if isinstance(kind, types.UnionType):
        return any(_fits(value, each) for each in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)[0]
        return isinstance(value, tuple) and all(_fits(part, inner) for part in value)
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def _rules(c: Config):
    """(field, value, holds, what would be right) of every rule."""
    yield from _size_rules(c)
    yield from _memory_rules(c)
    yield from _method_rules(c)
    yield from _kl_rules(c)
    yield from _addition_rules(c)
    yield from _family_rules(c)
    yield from _optimizer_rules(c)
    yield from _reward_rules(c)
    yield from _evaluation_rules(c)
    yield from _mesh_rules(c)


def _optimizer_rules(c: Config):
    for name, optimizer in (("optimizer", c.optimizer), ("critic.optimizer", c.critic.optimizer)):
        lr, clip = optimizer.learning_rate, optimizer.grad_clip
        yield f"{name}.learning_rate", lr, lr > 0, "must be above 0"
        yield f"{name}.grad_clip", clip, clip > 0, "must be above 0"
        yield f"{name}.beta1", optimizer.beta1, 0 <= optimizer.beta1 < 1, "must be in [0, 1)"
        yield f"{name}.beta2", optimizer.beta2, 0 <= optimizer.beta2 < 1, "must be in [0, 1)"
        moment = optimizer.first_moment_dtype
        yield f"{name}.first_moment_dtype", moment, *_one_of(moment, ("", *DTYPES))
        yield f"{name}.weight_decay", optimizer.weight_decay, optimizer.weight_decay >= 0, ">= 0"


def _reward_rules(c: Config):
    r = c.reward
    counts = len(r.weights) in (0, len(r.functions))
    yield (
        "reward.weights",
        r.weights,
        counts,
        f"must be {len(r.functions)}, one a function, or none",
    )
    yield "reward.seconds", r.seconds, r.seconds > 0, "must be above 0"


def _evaluation_rules(c: Config):
    e = c.evaluation
    yield "evaluation.every", e.every, e.every >= 0, "must be 0 (first and last) or more"
    yield "evaluation.samples", e.samples, e.samples >= 1, "must be 1 or more"
    yield "evaluation.temperature", e.temperature, e.temperature >= 0, "must be 0 (greedy) or more"
    yield "evaluation.top_p", e.top_p, 0 < e.top_p <= 1, "must be in (0, 1]"
    yield "evaluation.batch_size", e.batch_size, e.batch_size >= 1, "must be 1 or more"
    yield "evaluation.limit", e.limit, e.limit >= 0, "must be 0 (all) or more"
    greedy_once = e.temperature > 0 or e.samples == 1
    yield "evaluation.samples", e.samples, greedy_once, "greedy decoding has one sample a problem"


def _mesh_rules(c: Config):
    axes = dataclasses.asdict(c.mesh)
    for axis, size in axes.items():
        yield f"mesh.{axis}", size, size >= 1 or size == -1, "must be 1 or more, or -1: the rest"
    left = sum(size == -1 for size in axes.values())
    yield "mesh", axes, left <= 1, "one axis at most can be -1 (the rest of the devices)"


def _size_rules(c: Config):
    """How many rows and steps, the model, the data."""
    yield "seed", c.seed, 0 <= c.seed < 2**31, "must be in [0, 2^31)"
    rows = ("batch_size", "group_size", "mini_batch_size", "micro_batch_size", "score_batch_size")
    for field in ("steps", *rows, "passes", "keep_checkpoints"):
        yield field, getattr(c, field), getattr(c, field) >= 1, "must be 1 or more"
    for field in ("reincarnation_step", "checkpoint_every", "keep_every", "samples_per_step"):
        yield field, getattr(c, field), getattr(c, field) >= 0, "must be 0 (off) or more"
    for field, unit in (("group_size", "groups"), ("mini_batch_size", "mini-batches")):
        divides = c.batch_size % max(getattr(c, field), 1) == 0
        rule = f"must divide batch_size = {c.batch_size} into whole {unit}"
        yield field, getattr(c, field), divides, rule
    divides = c.mini_batch_size % max(c.micro_batch_size, 1) == 0
    rule = f"must divide mini_batch_size = {c.mini_batch_size}"
    yield "micro_batch_size", c.micro_batch_size, divides, rule
    yield "model.path", c.model.path, c.model.path != "", "must name a model directory"
    m = c.model
    yield "model.dtype", m.dtype, *_one_of(m.dtype, DTYPES)
    yield "model.compute_dtype", m.compute_dtype, *_one_of(m.compute_dtype, ("", *DTYPES))
    yield "model.attention", m.attention, *_one_of(m.attention, ATTENTIONS)
    yield "data.train", c.data.train, c.data.train != "", "must name a problem file"
    yield "data.suites", c.data.suites, len(c.data.suites) > 0, "must name a held-out file or more"
    yield "data.on_bad_row", c.data.on_bad_row, *_one_of(c.data.on_bad_row, ("refuse", "skip"))
    for field in ("prompt_tokens", "response_tokens"):
        value = getattr(c.data, field)
        yield f"data.{field}", value, value >= 1, "must be 1 or more"


def _memory_rules(c: Config):
    m = c.memory
    slots = c.prompt_slots + c.data.response_tokens
    rule = f"must be 0 (off) or hold a row of prompt and response, {slots} tokens"
    for field in ("micro_batch_tokens", "decode_tokens"):
        budget = getattr(m, field)
        yield f"memory.{field}", budget, budget == 0 or budget >= slots, rule
    for field in ("logit_slots", "logit_entries"):
        value = getattr(m, field)
        yield f"memory.{field}", value, value >= 0, "must be 0 (all) or more"
    yield "memory.anchors_dtype", m.anchors_dtype, *_one_of(m.anchors_dtype, ("", *DTYPES))


def _method_rules(c: Config):
    """Sampling, replay and the policy's loss."""
    s, o = c.sampling, c.objective
    yield "sampling.temperature", s.temperature, s.temperature > 0, "must be above 0 to explore"
    yield "sampling.top_k", s.top_k, s.top_k >= 0, "must be 0 (off) or more"
    yield "sampling.top_p", s.top_p, 0 < s.top_p <= 1, "must be in (0, 1]"
    yield "sampling.min_p", s.min_p, 0 <= s.min_p < 1, "must be in [0, 1)"
    yield "replay.share", c.replay.share, 0 <= c.replay.share < 1, "must be in [0, 1)"
    yield "replay.window", c.replay.window, c.replay.window >= 1, "must be 1 or more"
    fewest, _ = schedules.fresh_unit_range(c.batch_groups, c.replay.share)
    some, rule = fewest >= 1, f"leaves steps without a fresh group of the {c.batch_groups}"
    yield "replay.share", c.replay.share, some, rule
    known = _one_of(o.advantage, (*advantages.ESTIMATORS, OWN_ADVANTAGE))
    yield "objective.advantage", o.advantage, *known
    method = family.METHODS.get(o.method)
    alone = c.has_critic or (method is not None and not method.compares)
    grouped = alone or c.group_size > 1
    rule = f"{o.advantage} compares at least 2 responses a prompt"
    yield "group_size", c.group_size, grouped, rule
    yield "objective.clip", o.clip, o.clip > 0, "must be above 0"
    dual = o.dual_clip == 0 or o.dual_clip > 1
    yield "objective.dual_clip", o.dual_clip, dual, "must be 0 (off) or above 1"
    yield "objective.aggregation", o.aggregation, *_one_of(o.aggregation, masked.AGGREGATIONS)
    yield "objective.entropy_coef", o.entropy_coef, o.entropy_coef >= 0, "must be 0 or more"
    yield "objective.gamma", o.gamma, 0 <= o.gamma <= 1, "must be in [0, 1]"
    yield "objective.lam", o.lam, 0 <= o.lam <= 1, "must be in [0, 1]"


def _kl_rules(c: Config):
    kl = c.kl
    yield "kl.estimator", kl.estimator, *_one_of(kl.estimator, constraints.ESTIMATORS)
    yield "kl.coef", kl.coef, kl.coef >= 0, "must be 0 (off) or more"
    yield "kl.start", kl.start, kl.start >= 0, "must be 0 or more"
    yield "kl.every", kl.every, kl.every >= 1, "must be 1 or more"
    yield "kl.drop", kl.drop, 0 <= kl.drop <= 1, "must be in [0, 1]"
    yield "kl.floor", kl.floor, 0 <= kl.floor <= 1, "must be in [0, 1]"


def _addition_rules(c: Config):
    """PrefixRL, imitation, the critic."""
    prefix = c.prefix
    with_bank = (prefix.bank != "") == (prefix.tokens > 0) and prefix.tokens >= 0
    rule = "slots for a prefix: 1 or more with a trace bank (config.prefix.bank), 0 without"
    yield "prefix.tokens", prefix.tokens, with_bank, rule
    yield "prefix.share", prefix.share, 0 < prefix.share <= 1, "must be in (0, 1]"
    yield "prefix.cuts", prefix.cuts, prefix.cuts >= 1, "must be 1 or more"
    yield "prefix.low", prefix.low, 0 <= prefix.low < 1, "must be in [0, 1)"
    in_order, rule = prefix.low < prefix.high <= 1, f"must be in (prefix.low = {prefix.low}, 1]"
    yield "prefix.high", prefix.high, in_order, rule
    imitation = c.imitation
    yield "imitation.weight", imitation.weight, imitation.weight >= 0, "must be 0 (off) or more"
    yield "imitation.window", imitation.window, imitation.window >= 1, "must be 1 or more"
    yield "critic.value_clip", c.critic.value_clip, c.critic.value_clip > 0, "must be above 0"
    yield "critic.value_coef", c.critic.value_coef, c.critic.value_coef > 0, "must be above 0"


def _family_rules(c: Config):
    """What objective.method asks of the other fields."""
    o, sampler = c.objective, c.replay.sampler
    yield "objective.method", o.method, *_one_of(o.method, family.METHODS)
    yield "replay.sampler", sampler, *_one_of(sampler, priorities.SAMPLERS)
    method = family.METHODS[o.method]
    number = method.number
    if number is None:
        yield (
            "objective.method_param",
            o.method_param,
            o.method_param is None,
            f"{o.method} has no such parameter",
        )
    elif o.method_param is not None:
        inside = number.low <= o.method_param <= number.high
        rule = f"{o.method}'s {number.name} must be in [{number.low}, {number.high}]"
        yield "objective.method_param", o.method_param, inside, rule
    needed = OWN_ADVANTAGE if method.own_advantage else method.advantage
    right = o.advantage == needed if needed else o.advantage != OWN_ADVANTAGE
    rule = f"{o.method} needs {needed}" if needed else f"{o.method} has no advantage of its own"
    yield "objective.advantage", o.advantage, right, rule
    fits = o.aggregation == method.aggregation or not method.aggregation
    yield "objective.aggregation", o.aggregation, fits, f"{o.method} needs {method.aggregation}"
    if o.method == "geppo":
        rule = "geppo needs 3, 6, 9, ..: its weights are of 3 B - 2 ages, the fresh one among them"
        yield "replay.window", c.replay.window, c.replay.window % 3 == 0, rule
    whole = not method.whole_groups or c.mini_batch_size % c.group_size == 0
    rule = f"{o.method} needs whole groups: a multiple of group_size = {c.group_size}"
    yield "mini_batch_size", c.mini_batch_size, whole, rule
    yield from _expert_rules(c, method)


def _expert_rules(c: Config, method: family.Method):
    name, bank = c.objective.method, c.expert.bank
    takers = [m for m, entry in family.METHODS.items() if entry.experts != "refused"]
    taken = bank == "" or method.experts != "refused"
    rule = (
        f"{name} needs behaviour log-probs, which the rows of a bank do not have: "
        f"set objective.method to one of {', '.join(takers)}, or leave the bank empty"
    )
    yield "expert.bank", bank, taken, rule
    there = bank != "" or method.experts != "needed"
    yield "expert.bank", bank, there, f"{name} needs the rows of an expert: name a bank of traces"
    if not bank:
        return
    rule = f"not together with prefix.bank = {c.prefix.bank}: an expert's row begins at the problem"
    yield "expert.bank", bank, c.prefix.bank == "", rule
    critic = f"the rows of expert.bank = {bank} need a group advantage, no critic"
    yield "objective.advantage", c.objective.advantage, not c.has_critic, critic
    alone, size = name == "sft", c.group_size
    rule = "sft has no rows but the expert's: must be 1"
    yield "group_size", size, size == 1 or not alone, rule
    rule = f"{name} needs own rows beside the expert's one: must be 2 or more"
    yield "group_size", size, size > 1 or alone, rule


def _one_of(value: str, choices: Iterable[str]) -> tuple[bool, str]:
    """Whether the value is among the choices, and the rule that says so; "" reads as empty."""
    names = list(choices)
    empty = "empty, or " if "" in names else ""
    return value in names, f"{empty}one of {', '.join(name for name in names if name)}"


def _typed_leaves(node, prefix: str = ""):
    """(dotted path, value, type) of every field that is no section."""
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        if dataclasses.is_dataclass(field.type):
            yield from _typed_leaves(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", value, field.type
