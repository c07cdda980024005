"""What a run is: typed fields, one check of all of them, derived numbers.

A config file (`experiments/configs/*.py`) defines `get_config() -> Config`; the command line may
override any field (`--config.replay.share=0.3`). A config is not changed after `validate`; its
hash makes it a static argument of the compiled programs. PPO, GRPO, ReMix-PPO, ReMix-GRPO and every
ablation are values of these fields: one learner reads them all.

Marks beside a default say where it comes from: [P] the paper, [R] the authors' repository,
[C] our choice where both are silent (docs/choices.md lists those with reasons).
"""

import dataclasses
import json
import math
import pathlib
import types
import typing
from collections.abc import Callable
from typing import Any

import numpy as np

from remix_jax.errors import InputError
from remix_jax.rl import advantages, constraints, family, masked, priorities, schedules

_LARGEST = 1e15  # of any number: whole numbers up to it are exact in any arithmetic here

ADVANTAGES: dict[str, Callable[..., Any]] = {
    "gae": advantages.gae,
    "vtrace": advantages.vtrace,
    "group_normalized": advantages.group_normalized,
    "rloo": advantages.rloo,
    "mean_baseline": advantages.mean_baseline,
}
CRITIC_ADVANTAGES = ("gae", "vtrace")
OWN_ADVANTAGE = "method"  # the estimator that belongs to objective.method

DTYPES = ("float32", "bfloat16")
ATTENTIONS = ("auto", "plain", "splash", "cudnn")


@dataclasses.dataclass(unsafe_hash=True)
class Model:
    """The policy that is finetuned; the critic starts from the same weights."""

    path: str = ""  # Hugging Face model directory
    dtype: str = "float32"  # of parameters and matrix products: float32 or bfloat16
    compute_dtype: str = ""  # of matrix products where it is another; sums stay float32
    attention: str = "auto"  # for long rows: plain, splash (TPU), cudnn (GPU); auto: by device


@dataclasses.dataclass(unsafe_hash=True)
class Data:
    """Problems and the width of a row."""

    train: str = ""  # .json, .jsonl or .parquet of problems, or a prepared TFDS directory
    suites: tuple[str, ...] = ()  # held-out files of the same form, one suite each
    validation: str = ""  # such a file to choose settings by: not part of any mean; empty: none
    on_bad_row: str = "refuse"  # a malformed training row: refuse the file, or skip and count it
    instruction: str = ""  # appended to each problem
    prompt_tokens: int = 766  # [P] longer prompts are dropped and counted
    response_tokens: int = 8192  # [P]


@dataclasses.dataclass(unsafe_hash=True)
class Sampling:
    """The distribution that rollouts are drawn from."""

    temperature: float = 1.0  # [R]
    top_k: int = 0  # 0: off
    top_p: float = 1.0  # 1: off
    min_p: float = 0.0  # 0: off
    correct_truncation: bool = False  # [C] ratios against the truncated distribution


@dataclasses.dataclass(unsafe_hash=True)
class Replay:
    """Mix-PPG: rows of the last `window` steps make up `share` of each batch."""

    share: float = 0.4  # [P] p; 0 is the on-policy method
    window: int = 2  # [P] N
    sampler: str = "uniform"  # [C] which groups are drawn: a key of priorities.SAMPLERS


@dataclasses.dataclass(unsafe_hash=True)
class KL:
    """coef * KL(policy || anchors), added to the loss. Convex: the two anchors of KL-Convex."""

    coef: float = 0.001  # [R] beta; 0 turns it off
    estimator: str = "k3"  # [R] k1, k2 or k3
    convex: bool = True  # [P] False: the base anchor alone
    start: int = 50  # [P] last step with weight 1 on the base
    every: int = 10  # [P] steps between drops of the weight
    drop: float = 0.1  # [P]
    floor: float = 0.5  # [P]


@dataclasses.dataclass(unsafe_hash=True)
class Objective:
    """The policy's loss."""

    method: str = "mix_ppg"  # [P] a key of family.METHODS
    setting: float | None = None  # the method's own number (family.METHODS); None: its default
    advantage: str = "gae"  # gae, vtrace (critic), group_normalized (GRPO), rloo, mean_baseline,
    # or method: that of the method itself
    clip: float = 0.2  # [R] eps, for rows of every age
    dual_clip: float = 0.0  # 0: off
    aggregation: str = "token-mean"  # [R]
    entropy_coef: float = 0.001  # [R] c_H
    gamma: float = 1.0  # [R]
    lam: float = 1.0  # [R] of GAE
    whiten: bool = True  # [R] GAE advantages over the mixed batch


@dataclasses.dataclass(unsafe_hash=True)
class Imitation:
    """Self-imitation: successes of the last steps are made likelier. Not part of the paper."""

    weight: float = 0.0  # 0: off
    window: int = 10  # steps whose rows are remembered


@dataclasses.dataclass(unsafe_hash=True)
class Prefix:
    """PrefixRL: groups that go on from a prefix of a successful trace (arXiv 2601.18795)."""

    bank: str = ""  # directory of a trace bank (experiments.collect_traces); empty: off
    tokens: int = 0  # slots for a prefix beside the prompt's; longer ones are dropped and counted
    share: float = 0.75  # of the groups, to start from a prefix: 3 : 1
    cuts: int = 3  # prefixes of a trace, drawn once
    low: float = 0.4  # the shortest, as a share of the trace's tokens
    high: float = 0.8  # the longest


@dataclasses.dataclass(unsafe_hash=True)
class Expert:
    """A row of each group that an expert wrote: a verified trace, without log-probs."""

    bank: str = ""  # directory of a bank of traces; empty: no expert


@dataclasses.dataclass(unsafe_hash=True)
class Optimizer:
    """AdamW with a bound on the gradient's norm."""

    learning_rate: float = 1e-6  # [P]
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.0
    grad_clip: float = 1.0  # [R] largest global norm
    first_moment_dtype: str = ""  # empty: that of the parameters


@dataclasses.dataclass(unsafe_hash=True)
class Memory:
    """What is cut, computed again or kept smaller so that long rows of large models fit.

    Off, as it is here, nothing is: small models run faster so (docs/scaling.md).
    """

    micro_batch_tokens: int = 0  # slots of a device's rows in a pass; 0: by the numbers of rows
    logit_slots: int = 0  # response slots whose logits exist at once; 0: all
    logit_entries: int = 0  # entries of the vocabulary, likewise
    remat: bool = False  # layers run again in the backward pass
    scan_layers: bool = False  # one layer compiled and looped over
    anchors_dtype: str = ""  # of both anchors; empty: that of the parameters
    anchors_on_host: bool = False  # both lie in the host's pinned memory between their uses


@dataclasses.dataclass(unsafe_hash=True)
class Critic:
    """PPO's value function: a model of its own with its own optimizer."""

    optimizer: Optimizer = dataclasses.field(
        default_factory=lambda: Optimizer(learning_rate=1e-5)  # [P]
    )
    value_clip: float = 0.5  # [R]
    value_coef: float = 0.5  # [R] weight of the clipped value loss


@dataclasses.dataclass(unsafe_hash=True)
class Evaluation:
    """Held-out accuracy during the run."""

    every: int = 10  # steps; 0: only before the first and after the last
    samples: int = 1  # responses a problem
    temperature: float = 0.0  # 0: greedy
    batch_size: int = 256  # responses decoded at once


@dataclasses.dataclass(unsafe_hash=True)
class Mesh:
    """Devices along each axis of the mesh (sharding.py); -1 for one axis: all that are left.

    By default all go to fsdp: it divides rows as data does, and the state too, so that memory falls
    with every device.
    """

    data: int = 1  # rows
    fsdp: int = -1  # rows, and the state
    tensor: int = 1  # heads, MLP, vocabulary

    @property
    def sizes(self) -> tuple[int, int, int]:
        """In the order of the mesh's axes."""
        return self.data, self.fsdp, self.tensor


@dataclasses.dataclass(unsafe_hash=True)
class Config:
    """A run."""

    seed: int = 0
    steps: int = 350
    batch_size: int = 256  # B: rows a step, fresh and replayed
    group_size: int = 1  # responses a prompt
    mini_batch_size: int = 32  # rows an optimizer step [R]
    micro_batch_size: int = 32  # rows a backward pass; gradients add up exactly
    score_batch_size: int = 32  # rows a forward pass without gradient
    passes: int = 2  # [P] m, update-to-data ratio of the mix stage
    reincarnation_step: int = 100  # [P] T; 0: never
    reset_optimizer: bool = False  # [C] at reincarnation
    checkpoint_every: int = 50  # steps; 0: only at the end
    keep_checkpoints: int = 2  # the newest so many stay
    keep_every: int = 0  # steps; checkpoints of its multiples stay too, 0: none
    samples_per_step: int = 16  # responses written to samples.jsonl
    model: Model = dataclasses.field(default_factory=Model)
    data: Data = dataclasses.field(default_factory=Data)
    sampling: Sampling = dataclasses.field(default_factory=Sampling)
    replay: Replay = dataclasses.field(default_factory=Replay)
    kl: KL = dataclasses.field(default_factory=KL)
    objective: Objective = dataclasses.field(default_factory=Objective)
    imitation: Imitation = dataclasses.field(default_factory=Imitation)
    prefix: Prefix = dataclasses.field(default_factory=Prefix)
    expert: Expert = dataclasses.field(default_factory=Expert)
    optimizer: Optimizer = dataclasses.field(default_factory=Optimizer)
    critic: Critic = dataclasses.field(default_factory=Critic)
    evaluation: Evaluation = dataclasses.field(default_factory=Evaluation)
    memory: Memory = dataclasses.field(default_factory=Memory)
    mesh: Mesh = dataclasses.field(default_factory=Mesh)

    @property
    def has_critic(self) -> bool:
        """PPO learns a critic; group methods compare the responses to one prompt instead."""
        return self.objective.advantage in CRITIC_ADVANTAGES

    @property
    def expert_rows(self) -> int:
        """Rows of a group that an expert wrote."""
        return 1 if self.expert.bank else 0

    @property
    def own_rows(self) -> int:
        """Rows of a group that are sampled."""
        return self.group_size - self.expert_rows

    @property
    def has_base(self) -> bool:
        """Whether there is a base anchor: for the KL term, or because the method reads it."""
        return self.kl.coef > 0 or family.METHODS[self.objective.method].base

    @property
    def stores_advantage(self) -> bool:
        """Whether rows keep the advantage of their collection."""
        method, sampler = self.objective.method, self.replay.sampler
        return (
            family.METHODS[method].stored_advantage or priorities.SAMPLERS[sampler].stored_advantage
        )

    @property
    def prompt_slots(self) -> int:
        """P of the rows that are trained on: a prompt and, in PrefixRL, a prefix behind it."""
        return self.data.prompt_tokens + self.prefix.tokens

    @property
    def batch_groups(self) -> int:
        """Whole groups a step: the unit of replay and of the rollout accounting."""
        return self.batch_size // self.group_size


@dataclasses.dataclass(frozen=True)
class Stage:
    """The static numbers in which the two stages of a run differ; a compiled program for each."""

    name: str  # "mix" or "on-policy"
    fresh_groups: int  # slots for fresh groups: the largest count of any step
    replay_groups: int  # slots for replayed groups, likewise
    passes: int


def stages(config: Config) -> dict[str, Stage]:
    """The stages that the run goes through, by name: mix up to step T, on-policy afterwards.

    A run without replay and with one pass is on-policy all along.
    """
    fewest, most = schedules.fresh_unit_range(config.batch_groups, config.replay.share)
    mix = Stage("mix", most, config.batch_groups - fewest, config.passes)
    on_policy = Stage("on-policy", config.batch_groups, 0, 1)
    names = {stage_at(config, 1), stage_at(config, config.steps)}
    return {stage.name: stage for stage in (mix, on_policy) if stage.name in names}


def stage_at(config: Config, step: int) -> str:
    """Name of the stage that step (from 1) belongs to."""
    mixes = config.replay.share > 0 or config.passes > 1
    return (
        "mix" if mixes and schedules.is_mix_stage(step, config.reincarnation_step) else "on-policy"
    )


def fresh_groups(config: Config, step: int) -> int:
    """Groups that a step generates (remix.md's accounting: fractions carried over)."""
    if stage_at(config, step) == "on-policy":
        return config.batch_groups
    return schedules.fresh_units(step, config.batch_groups, config.replay.share)


def rollouts_until(config: Config, step: int) -> int:
    """Rows generated by the end of a step (from 1; 0 gives 0); an expert's are not among them."""
    return config.own_rows * groups_until(config, step)


def groups_until(config: Config, step: int) -> int:
    """Fresh groups of the run by the end of a step."""
    return schedules.planned_units(
        step, config.batch_groups, config.replay.share, config.reincarnation_step
    )


def planned_rollouts(config: Config) -> int:
    """Rows that the whole run generates."""
    return rollouts_until(config, config.steps)


def micro_batch_rows(config: Config, shards: int = 1) -> int:
    """Rows of a backward pass, on `shards` devices that rows are spread over.

    By a budget of tokens they are as many as fit a device, and divide a mini-batch.
    """
    fitting = _fitting_rows(config, shards)
    if not fitting:
        return config.micro_batch_size
    most = min(fitting, config.mini_batch_size)
    return next(n for n in range(most, 0, -1) if config.mini_batch_size % n == 0)


def score_rows(config: Config, shards: int = 1) -> int:
    """Rows of a forward pass without gradient, likewise."""
    return _fitting_rows(config, shards) or config.score_batch_size


def _fitting_rows(config: Config, shards: int) -> int:
    """Rows within the budget of tokens a device; 0 without one."""
    slots = config.prompt_slots + config.data.response_tokens
    return shards * (config.memory.micro_batch_tokens // slots)


def set_name(path: str) -> str:
    """What a problem set is called: its file's name, or NAME of a prepared .../NAME/1.0.0."""
    place = pathlib.PurePath(path)
    is_version = place.name.replace(".", "").isdigit()
    return place.parent.name if is_version else place.stem


def method_numbers(config: Config, step: int) -> np.ndarray:
    """The number of objective.method in each pass of a step (from 1), float32 [passes]."""
    o, stage = config.objective, stages(config)[stage_at(config, step)]
    method = family.METHODS[o.method]
    return family.numbers(method, o.setting, o.clip, step, config.steps, stage.passes)


def passes_per_row(config: Config) -> float:
    """Expected gradient passes over a row generated in the mix stage: m (1 + p / (1 - p))."""
    return config.passes / (1 - config.replay.share)


def compiled_part(config: Config) -> Config:
    """The config with every field that no compiled program reads set to its default.

    Runs with equal parts share their programs: other seeds, learning rates, lengths of the run and
    reincarnation steps compile nothing anew. `steps` stays on its side of `kl.start`, which decides
    whether there is a precedent anchor at all.
    """
    defaults = Config()
    data = dataclasses.replace(
        defaults.data,
        prompt_tokens=config.data.prompt_tokens,
        response_tokens=config.data.response_tokens,
    )
    rate, critic_rate = Optimizer().learning_rate, Critic().optimizer.learning_rate
    critic_optimizer = dataclasses.replace(config.critic.optimizer, learning_rate=critic_rate)
    return dataclasses.replace(
        config,
        seed=defaults.seed,
        steps=config.kl.start + 1 if config.steps > config.kl.start else 1,
        reincarnation_step=defaults.reincarnation_step,
        checkpoint_every=defaults.checkpoint_every,
        keep_checkpoints=defaults.keep_checkpoints,
        keep_every=defaults.keep_every,
        samples_per_step=defaults.samples_per_step,
        model=dataclasses.replace(config.model, path=defaults.model.path),
        data=data,
        prefix=dataclasses.replace(defaults.prefix, tokens=config.prefix.tokens),
        objective=dataclasses.replace(config.objective, setting=defaults.objective.setting),
        expert=Expert(bank="there" if config.expert.bank else ""),
        optimizer=dataclasses.replace(config.optimizer, learning_rate=rate),
        critic=dataclasses.replace(config.critic, optimizer=critic_optimizer),
        evaluation=dataclasses.replace(config.evaluation, every=defaults.evaluation.every),
        mesh=defaults.mesh,  # the devices themselves are an argument of each program's making
    )


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
    yield from _family_rules(c)
    for name, optimizer in (("optimizer", c.optimizer), ("critic.optimizer", c.critic.optimizer)):
        lr, clip = optimizer.learning_rate, optimizer.grad_clip
        yield f"{name}.learning_rate", lr, lr > 0, "must be above 0"
        yield f"{name}.grad_clip", clip, clip > 0, "must be above 0"
        yield f"{name}.beta1", optimizer.beta1, 0 <= optimizer.beta1 < 1, "must be in [0, 1)"
        yield f"{name}.beta2", optimizer.beta2, 0 <= optimizer.beta2 < 1, "must be in [0, 1)"
        moment = optimizer.first_moment_dtype
        yield f"{name}.first_moment_dtype", moment, moment in ("", *DTYPES), _dtype_or_empty()
        yield f"{name}.weight_decay", optimizer.weight_decay, optimizer.weight_decay >= 0, ">= 0"
    e = c.evaluation
    yield "evaluation.every", e.every, e.every >= 0, "must be 0 (first and last) or more"
    yield "evaluation.samples", e.samples, e.samples >= 1, "must be 1 or more"
    yield "evaluation.temperature", e.temperature, e.temperature >= 0, "must be 0 (greedy) or more"
    yield "evaluation.batch_size", e.batch_size, e.batch_size >= 1, "must be 1 or more"
    axes = dataclasses.asdict(c.mesh)
    for axis, size in axes.items():
        yield f"mesh.{axis}", size, size >= 1 or size == -1, "must be 1 or more, or -1: the rest"
    left = sum(size == -1 for size in axes.values())
    yield "mesh", axes, left <= 1, "one axis at most can be -1 (the rest of the devices)"
    greedy_once = e.temperature > 0 or e.samples == 1
    yield "evaluation.samples", e.samples, greedy_once, "greedy decoding has one sample a problem"


def _size_rules(c: Config):
    yield "seed", c.seed, 0 <= c.seed < 2**31, "must be in [0, 2^31)"
    sizes = (
        "steps",
        "batch_size",
        "group_size",
        "mini_batch_size",
        "micro_batch_size",
        "score_batch_size",
    )
    for field in sizes:
        yield field, getattr(c, field), getattr(c, field) >= 1, "must be 1 or more"
    for field in ("passes", "keep_checkpoints"):
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
    yield "model.dtype", m.dtype, m.dtype in DTYPES, f"one of {', '.join(DTYPES)}"
    yield (
        "model.compute_dtype",
        m.compute_dtype,
        m.compute_dtype in ("", *DTYPES),
        _dtype_or_empty(),
    )
    yield (
        "model.attention",
        m.attention,
        m.attention in ATTENTIONS,
        f"one of {', '.join(ATTENTIONS)}",
    )
    yield "data.train", c.data.train, c.data.train != "", "must name a problem file"
    yield "data.suites", c.data.suites, len(c.data.suites) > 0, "must name a held-out file or more"
    names = [set_name(path) for path in (*c.data.suites, c.data.validation) if path]
    unique = len(set(names)) == len(names)
    yield "data.suites", c.data.suites, unique, "two files of one name (a suite is its file's name)"
    choices = ("refuse", "skip")
    known = c.data.on_bad_row in choices
    yield "data.on_bad_row", c.data.on_bad_row, known, f"one of {', '.join(choices)}"
    for field in ("prompt_tokens", "response_tokens"):
        value = getattr(c.data, field)
        yield f"data.{field}", value, value >= 1, "must be 1 or more"


def _memory_rules(c: Config):
    m = c.memory
    slots = c.prompt_slots + c.data.response_tokens
    room = m.micro_batch_tokens == 0 or m.micro_batch_tokens >= slots
    rule = f"must be 0 (off) or hold a row of prompt and response, {slots} tokens"
    yield "memory.micro_batch_tokens", m.micro_batch_tokens, room, rule
    for field in ("logit_slots", "logit_entries"):
        yield (
            f"memory.{field}",
            getattr(m, field),
            getattr(m, field) >= 0,
            "must be 0 (all) or more",
        )
    known = m.anchors_dtype in ("", *DTYPES)
    yield "memory.anchors_dtype", m.anchors_dtype, known, _dtype_or_empty()


def _dtype_or_empty() -> str:
    return f"empty, or one of {', '.join(DTYPES)}"


def _method_rules(c: Config):
    s, o, kl = c.sampling, c.objective, c.kl
    yield "sampling.temperature", s.temperature, s.temperature > 0, "must be above 0 to explore"
    yield "sampling.top_k", s.top_k, s.top_k >= 0, "must be 0 (off) or more"
    yield "sampling.top_p", s.top_p, 0 < s.top_p <= 1, "must be in (0, 1]"
    yield "sampling.min_p", s.min_p, 0 <= s.min_p < 1, "must be in [0, 1)"
    yield "replay.share", c.replay.share, 0 <= c.replay.share < 1, "must be in [0, 1)"
    yield "replay.window", c.replay.window, c.replay.window >= 1, "must be 1 or more"
    fewest, _ = schedules.fresh_unit_range(c.batch_groups, c.replay.share)
    some, rule = fewest >= 1, f"leaves steps without a fresh group of the {c.batch_groups}"
    yield "replay.share", c.replay.share, some, rule
    known = (*ADVANTAGES, OWN_ADVANTAGE)
    yield "objective.advantage", o.advantage, o.advantage in known, f"one of {', '.join(known)}"
    method = family.METHODS.get(o.method)
    alone = c.has_critic or (method is not None and not method.compares)
    grouped = alone or c.group_size > 1
    yield (
        "group_size",
        c.group_size,
        grouped,
        f"{o.advantage} compares at least 2 responses a prompt",
    )
    yield "objective.clip", o.clip, o.clip > 0, "must be above 0"
    dual = o.dual_clip == 0 or o.dual_clip > 1
    yield "objective.dual_clip", o.dual_clip, dual, "must be 0 (off) or above 1"
    modes = masked.AGGREGATIONS
    yield (
        "objective.aggregation",
        o.aggregation,
        o.aggregation in modes,
        f"one of {', '.join(modes)}",
    )
    yield "objective.entropy_coef", o.entropy_coef, o.entropy_coef >= 0, "must be 0 or more"
    yield "objective.gamma", o.gamma, 0 <= o.gamma <= 1, "must be in [0, 1]"
    yield "objective.lam", o.lam, 0 <= o.lam <= 1, "must be in [0, 1]"
    estimators = constraints.ESTIMATORS
    yield (
        "kl.estimator",
        kl.estimator,
        kl.estimator in estimators,
        f"one of {', '.join(estimators)}",
    )
    yield "kl.coef", kl.coef, kl.coef >= 0, "must be 0 (off) or more"
    yield "kl.start", kl.start, kl.start >= 0, "must be 0 or more"
    yield "kl.every", kl.every, kl.every >= 1, "must be 1 or more"
    yield "kl.drop", kl.drop, 0 <= kl.drop <= 1, "must be in [0, 1]"
    yield "kl.floor", kl.floor, 0 <= kl.floor <= 1, "must be in [0, 1]"
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
    o, bank = c.objective, c.expert.bank
    known = ", ".join(family.METHODS)
    yield "objective.method", o.method, o.method in family.METHODS, f"one of {known}"
    samplers = priorities.SAMPLERS
    yield (
        "replay.sampler",
        c.replay.sampler,
        c.replay.sampler in samplers,
        (f"one of {', '.join(samplers)}"),
    )
    method = family.METHODS[o.method]
    number = method.number
    if number is None:
        yield "objective.setting", o.setting, o.setting is None, f"{o.method} has no such number"
    elif o.setting is not None:
        inside = number.low <= o.setting <= number.high
        rule = f"{o.method}'s {number.name} must be in [{number.low}, {number.high}]"
        yield "objective.setting", o.setting, inside, rule
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
    yield from _expert_rules(c, method, bank)


def _expert_rules(c: Config, method: family.Method, bank: str):
    name = c.objective.method
    takers = [m for m, entry in family.METHODS.items() if entry.experts != "refused"]
    refused = bank == "" or method.experts != "refused"
    yield (
        "expert.bank",
        bank,
        refused,
        (
            f"{name} needs behaviour log-probs, which the rows of a bank do not have: "
            f"set objective.method to one of {', '.join(takers)}, or leave the bank empty"
        ),
    )
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


def _typed_leaves(node, prefix: str = ""):
    """(dotted path, value, type) of every field that is no section."""
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        if dataclasses.is_dataclass(field.type):
            yield from _typed_leaves(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", value, field.type


def to_json(config: Config) -> str:
    """The whole config as JSON, as saved with the run."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"
