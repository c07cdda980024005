"""The one check of a whole config: types, then a rule a field, then fields against each other."""

import copy
import itertools
import math
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from operator import attrgetter
from typing import Any

from remix_jax import schedule
from remix_jax.config import ATTENTIONS, DTYPES, OWN_ADVANTAGE, Config, Objective, paths
from remix_jax.errors import InputError
from remix_jax.rl import (
    advantages,
    constraints,
    family,
    masked,
    objectives,
    optimizers,
    replay,
    schedules,
)

_LARGEST = 1e15  # of any number: whole numbers up to it are exact in any arithmetic here
Rule = tuple[Callable[[Any], bool], str]  # whether it holds for a value, and what would be right


def _one_of(choices: Iterable[str], note: str = "") -> Rule:
    names = list(choices)
    empty = "empty, or " if "" in names else ""
    shown = ", ".join(name for name in names if name)
    return lambda x: x in names, f"{empty}one of {shown}{note}"


def _expression(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return bool(text)


_POSITIVE: Rule = (lambda x: x > 0, "must be above 0")
_COUNT: Rule = (lambda x: x >= 1, "must be 1 or more")
_OR_OFF: Rule = (lambda x: x >= 0, "must be 0 (off) or more")
_OR_ALL: Rule = (lambda x: x >= 0, "must be 0 (all) or more")
_OR_REST: Rule = (lambda x: x >= 1 or x == -1, "must be 1 or more, or -1: the rest")
_NOT_NEGATIVE: Rule = (lambda x: x >= 0, "must be 0 or more")
_SHARE: Rule = (lambda x: 0 <= x <= 1, "must be in [0, 1]")
_BELOW_ONE: Rule = (lambda x: 0 <= x < 1, "must be in [0, 1)")
_NOT_ZERO: Rule = (lambda x: 0 < x <= 1, "must be in (0, 1]")
_GRPO = "; GRPO is mix_ppg with objective.advantage=group_normalized and group_size above 1"

# The rule of each field that has one by itself; those of optimizer hold for critic.optimizer too.
FIELDS: dict[str, Rule] = {
    "seed": (lambda x: 0 <= x < 2**31, "must be in [0, 2^31)"),
    "steps batch_size group_size mini_batch_size micro_batch_size score_batch_size": _COUNT,
    "passes keep_checkpoints data.prompt_tokens data.response_tokens replay.window": _COUNT,
    "kl.every prefix.cuts imitation.window evaluation.samples evaluation.batch_size": _COUNT,
    "reincarnation_step checkpoint_every keep_every samples_per_step sampling.top_k": _OR_OFF,
    "kl.coef imitation.weight optimizer.warmup lora.rank": _OR_OFF,
    "optimizer.decay": _one_of(schedules.DECAYS),
    "objective.clip_high": (lambda x: x >= 0, "must be 0 (as clip) or more"),
    "memory.logit_slots memory.logit_entries evaluation.limit": _OR_ALL,
    "kl.start objective.entropy_coef optimizer.weight_decay": _NOT_NEGATIVE,
    "optimizer.learning_rate": (lambda x: x is None or x > 0, "must be above 0"),
    "optimizer.grad_clip reward.seconds objective.clip lora.alpha": _POSITIVE,
    "critic.value_clip critic.value_coef sampling.correction_cap": _POSITIVE,
    "optimizer.name": _one_of(optimizers.RULES),
    "optimizer.beta1 optimizer.beta2": (lambda x: x is None or 0 <= x < 1, "must be in [0, 1)"),
    "replay.share sampling.min_p prefix.low": _BELOW_ONE,
    "sampling.correction": _one_of(("", *objectives.CORRECTIONS)),
    "sampling.top_p evaluation.top_p prefix.share": _NOT_ZERO,
    "kl.drop kl.floor objective.gamma objective.lam": _SHARE,
    "model.path": (bool, "must name a model directory"),
    "model.dtype": _one_of(DTYPES),
    "model.compute_dtype model.export_dtype memory.anchors_dtype": _one_of(("", *DTYPES)),
    "optimizer.first_moment_dtype": _one_of(("", *DTYPES)),
    "model.attention": _one_of(ATTENTIONS),
    "lora.targets": (_expression, "must be all-linear or a regular expression"),
    "lora.critic": _one_of(("adapter", "full")),
    "memory.frozen_dtype": _one_of(("", "int8")),
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
    "mesh.data mesh.fsdp mesh.tensor": _OR_REST,
}


def validate(config: Config) -> Config:
    """A copy that cannot be changed, after a check of every field, alone and against the others.

    Raises:
      InputError: names the first field that is wrong, its value, and what would be right.
    """
    values: dict[str, Any] = {}
    for path, kind in paths(Config):
        value = values[path] = attrgetter(path)(config)
        if not _fits(value, kind):
            name = getattr(kind, "__name__", str(kind))
            raise InputError(f"config.{path} = {str(value)[:80]!r}: must be of type {name}")
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"config.{path} = {value}: must be a finite number")
        if isinstance(value, int | float) and abs(value) > _LARGEST:
            raise InputError(f"config.{path} = {value:.3g}: must be below {_LARGEST:.0e}")
    rules = {path: rule for together, rule in FIELDS.items() for path in together.split()}
    rules |= {f"critic.{path}": rule for path, rule in rules.items() if path[:9] == "optimizer"}
    alone = ((path, holds(values[path]), right) for path, (holds, right) in rules.items())
    for path, holds, right in itertools.chain(alone, _relations(config)):
        if not holds:
            raise InputError(f"config.{path} = {values[path]!r}: {right}")
    frozen = copy.deepcopy(config)
    o, critic = frozen.optimizer, frozen.critic.optimizer
    o.learning_rate, critic.learning_rate = config.rates
    frozen.freeze()
    return frozen


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


def _relations(c: Config) -> Iterator[tuple[str, bool, str]]:
    """(field, whether it holds, what would be right) of the rules between fields."""
    B, size, mini, e, prefix = c.batch_size, c.group_size, c.mini_batch_size, c.evaluation, c.prefix
    yield "group_size", B % size == 0, f"must divide batch_size = {B} into whole groups"
    yield "mini_batch_size", B % mini == 0, f"must divide batch_size = {B}"
    whole = mini % c.micro_batch_size == 0
    yield "micro_batch_size", whole, f"must divide mini_batch_size = {mini}"
    fewest, _ = schedules.fresh_unit_range(c.batch_groups, c.replay.share)
    rule = f"leaves steps without a fresh group of the {c.batch_groups}"
    yield "replay.share", fewest >= 1, rule
    yield "sampling.carry", c.sampling.carry <= fewest, f"must be at most {fewest}, a step's groups"
    ours = c.sampling.carry == 0 or (not c.sampling.engine and c.own_rows > 0)
    yield "sampling.carry", ours, "must be 0 unless our sampler (sampling.engine empty) draws rows"
    ours = not c.sampling.correction or (c.sampling.carry == 0 and c.own_rows > 0)
    rule = "must be empty unless each row is one policy's (sampling.carry = 0) and some are sampled"
    yield "sampling.correction", ours, rule
    mixes = not c.sampling.carry or schedule.stage_at(c, 1) == "mix"
    rule = "must be 0 in a run that is on-policy all along (replay.share = 0, passes = 1)"
    yield "sampling.carry", mixes, rule
    counts = len(c.reward.weights) in (0, len(c.reward.functions))
    yield "reward.weights", counts, f"must be {len(c.reward.functions)}, one a function, or none"
    slots = c.prompt_slots + c.data.response_tokens
    rule = f"must be 0 (off) or hold a row of prompt and response, {slots} tokens"
    for field in ("micro_batch_tokens", "decode_tokens"):
        budget = getattr(c.memory, field)
        yield f"memory.{field}", budget == 0 or budget >= slots, rule
    rule = "needs adapters on the frozen weights (config.lora.rank)"
    yield "memory.frozen_dtype", not c.memory.frozen_dtype or c.lora.rank > 0, rule
    rule = "needs the rank of its adapters as config.lora.rank"
    yield "model.adapter", not c.model.adapter or c.lora.rank > 0, rule
    for path, opt in (("optimizer", c.optimizer), ("critic.optimizer", c.critic.optimizer)):
        for field in ("beta1", "beta2", "first_moment_dtype"):
            right = opt.name != "adafactor" or not getattr(opt, field)
            yield f"{path}.{field}", right, "adafactor has no such moment: leave it unset"
    once = e.temperature > 0 or e.samples == 1
    yield "evaluation.samples", once, "greedy decoding has one sample a problem"
    rule = "slots for a prefix: 1 or more with a trace bank (config.prefix.bank), 0 without"
    yield "prefix.tokens", prefix.tokens >= 1 if prefix.bank else prefix.tokens == 0, rule
    low, high, rest = prefix.low, prefix.high, c.mesh.sizes.count(-1)
    yield "prefix.high", low < high <= 1, f"must be in (prefix.low = {low}, 1]"
    yield "mesh", rest <= 1, "one axis at most can be -1 (the rest of the devices)"
    yield from _method_relations(c, c.objective, family.METHODS[c.objective.method])


def _method_relations(
    c: Config, o: Objective, method: family.Method
) -> Iterator[tuple[str, bool, str]]:
    """What objective.method, and the rows of an expert, ask of the other fields."""
    name, size, bank = o.method, c.group_size, c.expert.bank
    grouped = c.has_critic or not method.compares or size > 1
    yield "group_size", grouped, f"{o.advantage} compares at least 2 responses a prompt"
    try:
        family.params_of(name, o.method_params)
    except ValueError as error:
        yield "objective.method_params", False, str(error)
    for field in ("clip", "clip_high", "dual_clip"):
        default = getattr(type(o), field)
        names = ", ".join(method.params) or "none"
        rule = f"{name} does not read it, leave it {default:g}; its own parameters: {names}"
        yield f"objective.{field}", method.clips or getattr(o, field) == default, rule
    in_loss, rule = c.kl.coef > 0 and not c.kl.in_reward, "needs a KL term in the loss"
    yield "kl.weighted", in_loss or not c.kl.weighted, rule
    rule = f"needs kl.coef above 0 and a method whose advantages it would change, not {name}"
    reads = c.kl.coef > 0 and c.own_rows > 0 and not method.base
    yield "kl.in_reward", reads or not c.kl.in_reward, rule
    drawn = not o.mask_truncated or c.own_rows > 0
    yield "objective.mask_truncated", drawn, f"{name} samples nothing that could be cut"
    needed = OWN_ADVANTAGE if method.own_advantage else method.advantage
    right = o.advantage == needed if needed else o.advantage != OWN_ADVANTAGE
    rule = f"{name} needs {needed}" if needed else f"{name} has no advantage of its own"
    yield "objective.advantage", right, rule
    fits = method.aggregation in ("", o.aggregation)
    yield "objective.aggregation", fits, f"{name} needs {method.aggregation}"
    rule = "geppo needs 3, 6, 9, ..: its weights are of 3 B - 2 ages, the fresh one among them"
    yield "replay.window", name != "geppo" or c.replay.window % 3 == 0, rule
    whole = not method.whole_groups or c.mini_batch_size % size == 0
    rule = f"{name} needs whole groups: a multiple of group_size = {size}"
    yield "mini_batch_size", whole, rule
    takers = ", ".join(m for m, entry in family.METHODS.items() if entry.experts != "refused")
    rule = (
        f"{name} needs behaviour log-probs, which the rows of a bank do not have: "
        f"set objective.method to one of {takers}, or leave the bank empty"
    )
    yield "expert.bank", not bank or method.experts != "refused", rule
    rule = f"{name} needs the rows of an expert: name a bank of traces"
    yield "expert.bank", bool(bank) or method.experts != "needed", rule
    rule = f"not together with prefix.bank = {c.prefix.bank}: an expert's row begins at the problem"
    yield "expert.bank", not (bank and c.prefix.bank), rule
    rule = f"the rows of expert.bank = {bank} need a group advantage, no critic"
    yield "objective.advantage", not (bank and c.has_critic), rule
    rule = f"{name} needs own rows beside the expert's one: must be 2 or more"
    if name == "sft":
        rule = "sft has no rows but the expert's: must be 1"
    yield "group_size", not bank or (size == 1) == (name == "sft"), rule
