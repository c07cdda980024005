"""The one check of a whole config: types, then a rule a field, then fields against each other."""

import copy
import dataclasses
import functools
import math
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from remix_jax.config import ATTENTIONS, DTYPES, OWN_ADVANTAGE, Config, Section
from remix_jax.errors import InputError
from remix_jax.rl import advantages, constraints, family, masked, replay, schedules

_LARGEST = 1e15  # of any number: whole numbers up to it are exact in any arithmetic here
Rule = tuple[Callable[[Any], bool], str]  # whether it holds for a value, and what would be right


def _one_of(choices: Iterable[str], note: str = "") -> Rule:
    names = list(choices)
    empty = "empty, or " if "" in names else ""
    shown = ", ".join(name for name in names if name)
    return lambda x: x in names, f"{empty}one of {shown}{note}"


_POSITIVE: Rule = (lambda x: x > 0, "must be above 0")
_COUNT: Rule = (lambda x: x >= 1, "must be 1 or more")
_OR_OFF: Rule = (lambda x: x >= 0, "must be 0 (off) or more")
_NOT_NEGATIVE: Rule = (lambda x: x >= 0, "must be 0 or more")
_SHARE: Rule = (lambda x: 0 <= x <= 1, "must be in [0, 1]")
_BELOW_ONE: Rule = (lambda x: 0 <= x < 1, "must be in [0, 1)")
_NOT_ZERO: Rule = (lambda x: 0 < x <= 1, "must be in (0, 1]")
_DTYPE_OR_EMPTY = _one_of(("", *DTYPES))
_GRPO = "; GRPO is mix_ppg with objective.advantage=group_normalized and group_size above 1"

# The rule of each field that has one by itself; fields that share a rule stand together.
FIELDS: dict[str, Rule] = {
    "seed": (lambda x: 0 <= x < 2**31, "must be in [0, 2^31)"),
    "steps batch_size group_size mini_batch_size micro_batch_size score_batch_size": _COUNT,
    "passes keep_checkpoints data.prompt_tokens data.response_tokens replay.window": _COUNT,
    "kl.every prefix.cuts imitation.window evaluation.samples evaluation.batch_size": _COUNT,
    "reincarnation_step checkpoint_every keep_every samples_per_step sampling.top_k": _OR_OFF,
    "kl.coef imitation.weight optimizer.warmup critic.optimizer.warmup": _OR_OFF,
    "optimizer.decay critic.optimizer.decay": _one_of(schedules.DECAYS),
    "objective.clip_high": (lambda x: x >= 0, "must be 0 (as clip) or more"),
    "memory.logit_slots memory.logit_entries evaluation.limit": (
        lambda x: x >= 0,
        "must be 0 (all) or more",
    ),
    "kl.start objective.entropy_coef optimizer.weight_decay": _NOT_NEGATIVE,
    "critic.optimizer.weight_decay": _NOT_NEGATIVE,
    "optimizer.learning_rate optimizer.grad_clip reward.seconds objective.clip": _POSITIVE,
    "critic.optimizer.learning_rate critic.optimizer.grad_clip": _POSITIVE,
    "critic.value_clip critic.value_coef": _POSITIVE,
    "optimizer.beta1 optimizer.beta2 replay.share sampling.min_p prefix.low": _BELOW_ONE,
    "critic.optimizer.beta1 critic.optimizer.beta2": _BELOW_ONE,
    "sampling.top_p evaluation.top_p prefix.share": _NOT_ZERO,
    "kl.drop kl.floor objective.gamma objective.lam": _SHARE,
    "model.path": (bool, "must name a model directory"),
    "model.dtype": _one_of(DTYPES),
    "model.compute_dtype model.export_dtype memory.anchors_dtype": _DTYPE_OR_EMPTY,
    "optimizer.first_moment_dtype critic.optimizer.first_moment_dtype": _DTYPE_OR_EMPTY,
    "model.attention": _one_of(ATTENTIONS),
    "data.train": (bool, "must name a problem file"),
    "data.suites": (bool, "must name a held-out file or more"),
    "data.on_bad_row": _one_of(("refuse", "skip")),
    "sampling.temperature": (lambda x: x > 0, "must be above 0 to explore"),
    "evaluation.every": (lambda x: x >= 0, "must be 0 (first and last) or more"),
    "evaluation.temperature": (lambda x: x >= 0, "must be 0 (greedy) or more"),
    "objective.method": _one_of(family.METHODS, _GRPO),
    "objective.advantage": _one_of((*advantages.ESTIMATORS, OWN_ADVANTAGE)),
    "objective.aggregation": _one_of(masked.AGGREGATIONS),
    "objective.dual_clip": (lambda x: x == 0 or x > 1, "must be 0 (off) or above 1"),
    "replay.sampler": _one_of(replay.SAMPLERS),
    "kl.estimator": _one_of(constraints.ESTIMATORS),
    "mesh.data mesh.fsdp mesh.tensor": (
        lambda x: x >= 1 or x == -1,
        "must be 1 or more, or -1: the rest",
    ),
}


def validate(config: Config) -> Config:
    """Checks every field, alone and against the others.

    Returns:
      A copy that cannot be changed.

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
    alone = ((p, *rule) for paths, rule in FIELDS.items() for p in paths.split())
    for path, holds, right in alone:
        _require(config, path, holds(_value(config, path)), right)
    for path, held, right in _relations(config):
        _require(config, path, held, right)
    frozen = copy.deepcopy(config)
    frozen.freeze()
    return frozen


def _require(config: Config, path: str, holds: bool, right: str) -> None:
    if not holds:
        value = _value(config, path)
        value = vars(value) if isinstance(value, Section) else value
        raise InputError(f"config.{path} = {value!r}: {right}")


def _value(config: Config, path: str) -> Any:
    return functools.reduce(getattr, path.split("."), config)


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


def _typed_leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted path, value, type) of every field that is no section."""
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        if dataclasses.is_dataclass(field.type):
            yield from _typed_leaves(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", value, field.type


def _relations(c: Config) -> Iterator[tuple[str, bool, str]]:
    """(field, whether it holds, what would be right) of the rules between fields."""
    for field, unit in (("group_size", "groups"), ("mini_batch_size", "mini-batches")):
        rule = f"must divide batch_size = {c.batch_size} into whole {unit}"
        yield field, c.batch_size % getattr(c, field) == 0, rule
    rule = f"must divide mini_batch_size = {c.mini_batch_size}"
    yield "micro_batch_size", c.mini_batch_size % c.micro_batch_size == 0, rule
    fewest, _ = schedules.fresh_unit_range(c.batch_groups, c.replay.share)
    rule = f"leaves steps without a fresh group of the {c.batch_groups}"
    yield "replay.share", fewest >= 1, rule
    counts = len(c.reward.weights) in (0, len(c.reward.functions))
    rule = f"must be {len(c.reward.functions)}, one a function, or none"
    yield "reward.weights", counts, rule
    slots = c.prompt_slots + c.data.response_tokens
    rule = f"must be 0 (off) or hold a row of prompt and response, {slots} tokens"
    for field in ("micro_batch_tokens", "decode_tokens"):
        budget = getattr(c.memory, field)
        yield f"memory.{field}", budget == 0 or budget >= slots, rule
    e, prefix = c.evaluation, c.prefix
    greedy_once = e.temperature > 0 or e.samples == 1
    yield "evaluation.samples", greedy_once, "greedy decoding has one sample a problem"
    with_bank = (prefix.bank != "") == (prefix.tokens > 0) and prefix.tokens >= 0
    rule = "slots for a prefix: 1 or more with a trace bank (config.prefix.bank), 0 without"
    yield "prefix.tokens", with_bank, rule
    rule = f"must be in (prefix.low = {prefix.low}, 1]"
    yield "prefix.high", prefix.low < prefix.high <= 1, rule
    left = [c.mesh.data, c.mesh.fsdp, c.mesh.tensor].count(-1)
    yield "mesh", left <= 1, "one axis at most can be -1 (the rest of the devices)"
    yield from _method_relations(c, family.METHODS[c.objective.method])


def _method_relations(c: Config, method: family.Method) -> Iterator[tuple[str, bool, str]]:
    """What objective.method asks of the other fields."""
    o, param = c.objective, method.param
    grouped = c.has_critic or not method.compares or c.group_size > 1
    yield "group_size", grouped, f"{o.advantage} compares at least 2 responses a prompt"
    if param is None:
        rule = f"{o.method} has no such parameter"
        yield "objective.method_param", o.method_param is None, rule
    elif o.method_param is not None:
        rule = f"{o.method}'s {param.name} must be in [{param.low}, {param.high}]"
        yield "objective.method_param", param.low <= o.method_param <= param.high, rule
    needed = OWN_ADVANTAGE if method.own_advantage else method.advantage
    right = o.advantage == needed if needed else o.advantage != OWN_ADVANTAGE
    rule = f"{o.method} needs {needed}" if needed else f"{o.method} has no advantage of its own"
    yield "objective.advantage", right, rule
    fits = o.aggregation == method.aggregation or not method.aggregation
    yield "objective.aggregation", fits, f"{o.method} needs {method.aggregation}"
    rule = "geppo needs 3, 6, 9, ..: its weights are of 3 B - 2 ages, the fresh one among them"
    yield "replay.window", o.method != "geppo" or c.replay.window % 3 == 0, rule
    whole = not method.whole_groups or c.mini_batch_size % c.group_size == 0
    rule = f"{o.method} needs whole groups: a multiple of group_size = {c.group_size}"
    yield "mini_batch_size", whole, rule
    yield from _expert_relations(c, method)


def _expert_relations(c: Config, method: family.Method) -> Iterator[tuple[str, bool, str]]:
    """What rows of an expert ask for."""
    name, bank = c.objective.method, c.expert.bank
    takers = [m for m, entry in family.METHODS.items() if entry.experts != "refused"]
    rule = (
        f"{name} needs behaviour log-probs, which the rows of a bank do not have: "
        f"set objective.method to one of {', '.join(takers)}, or leave the bank empty"
    )
    yield "expert.bank", bank == "" or method.experts != "refused", rule
    rule = f"{name} needs the rows of an expert: name a bank of traces"
    yield "expert.bank", bank != "" or method.experts != "needed", rule
    if not bank:
        return
    rule = f"not together with prefix.bank = {c.prefix.bank}: an expert's row begins at the problem"
    yield "expert.bank", c.prefix.bank == "", rule
    rule = f"the rows of expert.bank = {bank} need a group advantage, no critic"
    yield "objective.advantage", not c.has_critic, rule
    alone, size = name == "sft", c.group_size
    yield "group_size", size == 1 or not alone, "sft has no rows but the expert's: must be 1"
    rule = f"{name} needs own rows beside the expert's one: must be 2 or more"
    yield "group_size", size > 1 or alone, rule
