"""What a run is: typed fields. PPO, GRPO, ReMix and every ablation are values of them.

A config file (`experiments/configs/*.py`) defines `get_config() -> Config`; the command line may
override any field (`--config.replay.share=0.3`). A run reads a checked copy (config_rules.py).

Marks beside a default say where it comes from: [P] the paper, [R] the authors' repository,
[C] our choice where both are silent (docs/choices.md lists those with reasons).
"""

import copy
import dataclasses
import difflib
import functools
import json
import re
import typing
from collections.abc import Iterator
from typing import Any

from remix_jax.errors import InputError
from remix_jax.rl import family, replay
from remix_jax.text import one_line

OWN_ADVANTAGE = "method"  # the estimator that belongs to objective.method
DTYPES = ("float32", "bfloat16")
ATTENTIONS = ("auto", "plain", "splash", "cudnn")


def _type(kind: Any, name: str) -> Any:
    """The type of a section's field; InputError where it has no such field."""
    types = {field.name: field.type for field in dataclasses.fields(kind)}
    if name not in types:
        meant = " or ".join(similar_fields(name, kind))
        guess = f"; did you mean {meant}?" if meant else f": its fields are {', '.join(types)}"
        raise InputError(f"{kind.__name__} has no field {name}{guess}")
    return types[name]


@typing.dataclass_transform(field_specifiers=(dataclasses.field,))
class Section:
    """A group of fields, a dataclass; a section within is a copy, so that no two configs share one.

    Raises:
      InputError: an unknown field, with the one that was meant; or a change after `freeze`.
    """

    def __init_subclass__(cls) -> None:
        for name, value in list(vars(cls).items()):
            if isinstance(value, Section):
                another = functools.partial(copy.deepcopy, value)
                setattr(cls, name, dataclasses.field(default_factory=another))
        dataclasses.dataclass(cls)

    def __new__(cls, *_args: Any, **fields: Any):
        for name in fields:
            _type(cls, name)
        return super().__new__(cls)

    def __setattr__(self, name: str, value: Any) -> None:
        _type(type(self), name)
        if "_frozen" in vars(self):
            raise InputError(
                f"{type(self).__name__}.{name}: a config that was checked cannot be changed; "
                "dataclasses.replace(config, ...) or copy.deepcopy(config) makes another one"
            )
        super().__setattr__(name, copy.deepcopy(value) if isinstance(value, Section) else value)

    def __getstate__(self) -> dict[str, Any]:  # of a copy, which may be changed
        return {name: value for name, value in vars(self).items() if name != "_frozen"}

    def freeze(self) -> None:
        """Ends all changes, here and in the sections within."""
        for value in list(vars(self).values()):
            if isinstance(value, Section):
                value.freeze()
        vars(self)["_frozen"] = True


class Model(Section):
    """The policy that is finetuned; the critic starts from the same weights."""

    path: str = ""  # Hugging Face model directory, or ORG/NAME on the Hub
    dtype: str = "float32"  # of parameters and products; bfloat16 to evaluate, not to train
    compute_dtype: str = ""  # of matrix products where it is another; sums stay float32
    export_dtype: str = ""  # of the model that a run leaves; empty: that of the parameters
    attention: str = "auto"  # for long rows: plain, splash (TPU), cudnn (GPU); auto: by device
    adapter: str = ""  # PEFT directory whose adapters a run with lora.rank starts from; empty: new


class Lora(Section):
    """Low-rank adapters: what is trained in place of the model, which is frozen (docs/lora.md)."""

    rank: int = 0  # 0: off
    alpha: float = 32.0  # the change of a matrix is alpha / rank times the adapter's product
    targets: str = "all-linear"  # of the layers; or a regular expression: layers_\\d+/(q|v)$
    critic: str = "adapter"  # a second one, on the same weights; full: a critic trained whole


class Data(Section):
    """Problems and the width of a row."""

    train: str = ""  # a file, a TFDS directory or reasoning_gym:NAME?option=value (docs/tasks.md)
    suites: tuple[str, ...] = ()  # held-out sets, named likewise
    validation: str = ""  # such a set to choose settings by: not part of any mean; empty: none
    on_bad_row: str = "refuse"  # a malformed training row: refuse the file, or skip and count it
    answer: str = ""  # form of the answer: boxed, hash (####); empty: as the rows ask, else boxed
    instruction: str = ""  # appended to each problem; empty: what the form of the answer asks for
    system_prompt: str = ""  # takes the place of the rows' own; empty: that stays
    chat_template_kwargs: str = ""  # variables of the chat template, as enable_thinking=false
    prompt_tokens: int = 766  # [P] longer prompts are dropped and counted
    response_tokens: int = 8192  # [P]


class Sampling(Section):
    """The distribution that rollouts are drawn from."""

    temperature: float = 1.0  # [R]
    top_k: int = 0  # 0: off
    top_p: float = 1.0  # 1: off
    min_p: float = 0.0  # 0: off
    engine: str = ""  # a sampler of your own, file.py:function (docs/samplers.md); empty: ours
    carry: int = 0  # [C] groups that a step of the mix stage leaves unfinished, for the next one
    correct_truncation: bool = False  # [C] ratios against the truncated distribution
    correction: str = ""  # of sampler by trainer, a key of objectives.CORRECTIONS; empty: off
    correction_cap: float = 3.0  # largest weight of it


class Replay(Section):
    """Mix-PPG: rows of the last `window` steps make up `share` of each batch."""

    share: float = 0.4  # [P] p; 0 is the on-policy method
    window: int = 2  # [P] N
    sampler: str = "uniform"  # [C] which groups are drawn: a key of replay.SAMPLERS


class KL(Section):
    """coef * KL(policy || anchors), added to the loss. Convex: the two anchors of KL-Convex."""

    coef: float = 0.001  # [R] beta; 0 turns it off
    estimator: str = "k3"  # [R] k1, k2 or k3
    weighted: bool = False  # times pi / mu: unbiased also on rows of older policies
    in_reward: bool = False  # taken off the reward of each token instead, as in verl
    convex: bool = True  # [P] False: the base anchor alone
    start: int = 50  # [P] last step with weight 1 on the base
    every: int = 10  # [P] steps between drops of the weight
    drop: float = 0.1  # [P]
    floor: float = 0.5  # [P]


class Reward(Section):
    """What a response is worth: the weighted sum of functions (docs/rewards.md)."""

    # math, gsm8k, think_format, overlong, repetition, reasoning_gym, path/to/file.py:function or
    # package.module:function, each with ?option=value&...; none: what the set's answers ask for
    functions: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()  # one a function; none: all 1
    seconds: float = 2.0  # processor time of a call of one's own function; by the clock 5 times


class Objective(Section):
    """The policy's loss."""

    method: str = "mix_ppg"  # [P] a key of family.METHODS
    method_params: tuple[str, ...] = ()  # NAME=NUMBER of the method (family.METHODS); else defaults
    advantage: str = "gae"  # gae, vtrace (critic), group_normalized (GRPO), rloo, mean_baseline,
    # or method: that of the method itself
    clip: float = 0.2  # [R] eps, for rows of every age
    clip_high: float = 0.0  # eps of the upper side (DAPO: .28); 0: the same
    dual_clip: float = 0.0  # 0: off
    aggregation: str = "token-mean"  # [R]
    mask_truncated: bool = False  # responses cut at data.response_tokens are in no loss
    entropy_coef: float = 0.001  # [R] c_H
    gamma: float = 1.0  # [R]
    lam: float = 1.0  # [R] of GAE
    whiten: bool = True  # [R] GAE advantages over the mixed batch


class Imitation(Section):
    """Self-imitation: successes of the last steps are made likelier. Not part of the paper."""

    weight: float = 0.0  # 0: off
    window: int = 10  # steps whose rows are remembered


class Prefix(Section):
    """PrefixRL: groups that go on from a prefix of a successful trace (arXiv 2601.18795)."""

    bank: str = ""  # directory of a trace bank (experiments.collect_traces); empty: off
    tokens: int = 0  # slots for a prefix beside the prompt's; longer ones are dropped and counted
    share: float = 0.75  # of the groups, to start from a prefix: 3 : 1
    cuts: int = 3  # prefixes of a trace, drawn once
    low: float = 0.4  # the shortest, as a share of the trace's tokens
    high: float = 0.8  # the longest


class Expert(Section):
    """A row of each group that an expert wrote: a verified trace, without log-probs."""

    bank: str = ""  # directory of a bank of traces; empty: no expert


class Optimizer(Section):
    """How parameters step along a gradient of bounded norm."""

    name: str = "adamw"  # [R]; lion, muon, adafactor: optimizers.RULES
    learning_rate: float | None = (
        None  # None: 1e-6 [P], the critic's 1e-5 [P]; of adapters 10 times
    )
    warmup: int = 0  # steps in which it rises to that
    decay: str = "constant"  # and then stays; linear, cosine: falls to 0 by the end of the run
    beta1: float | None = None  # None: .9, of muon .95
    beta2: float | None = None  # None: .999, of lion .99
    weight_decay: float = 0.0
    grad_clip: float = 1.0  # [R] largest global norm
    first_moment_dtype: str = ""  # of the moment of beta1; empty: that of the parameters


class Memory(Section):
    """What is cut, computed again or kept smaller so that long rows of large models fit."""

    micro_batch_tokens: int = 0  # slots of a device's rows in a pass; 0: by the numbers of rows
    decode_tokens: int = 0  # slots of cache for rows being decoded; 0: what memory is left
    logit_slots: int = 0  # response slots whose logits exist at once; 0: all
    logit_entries: int = 0  # entries of the vocabulary, likewise
    remat: bool = False  # layers run again in the backward pass
    scan_layers: bool = False  # one layer compiled and looped over
    anchors_dtype: str = ""  # of both anchors; empty: that of the parameters
    anchors_on_host: bool = False  # both lie in the host's pinned memory between their uses
    frozen_dtype: str = ""  # of the layers' matrices under adapters: int8; empty: model.dtype


class Critic(Section):
    """PPO's value function: a model of its own with its own optimizer."""

    optimizer: Optimizer = Optimizer()
    value_clip: float = 0.5  # [R]
    value_coef: float = 0.5  # [R] weight of the clipped value loss


class Evaluation(Section):
    """Held-out accuracy during the run."""

    every: int = 10  # steps; 0: only before the first and after the last
    samples: int = 1  # responses a problem
    temperature: float = 0.0  # 0: greedy
    top_p: float = 1.0  # 1: off
    batch_size: int = 256  # responses decoded at once
    limit: int = 0  # the first problems of each set; 0: all


class Mesh(Section):
    """Devices along each axis of the mesh (sharding.py); -1 for one axis: all that are left."""

    data: int = 1  # rows
    fsdp: int = -1  # rows, and the state, so that memory falls with every device
    tensor: int = 1  # heads, MLP, vocabulary

    @property
    def sizes(self) -> tuple[int, int, int]:
        """In the order of the mesh's axes."""
        return self.data, self.fsdp, self.tensor


class Config(Section):
    """A run."""

    seed: int = 0
    steps: int = 350
    batch_size: int = 256  # B: rows a step, fresh and replayed
    group_size: int = 1  # responses a prompt
    mini_batch_size: int = 32  # rows an optimizer step [R]
    micro_batch_size: int = 32  # rows' slots in a backward pass at most; gradients add up exactly
    score_batch_size: int = 32  # rows a forward pass without gradient
    passes: int = 2  # [P] m, update-to-data ratio of the mix stage
    reincarnation_step: int = 100  # [P] T; 0: never
    reset_optimizer: bool = False  # [C] at reincarnation
    checkpoint_every: int = 50  # steps; 0: only at the end
    keep_checkpoints: int = 2  # the newest so many stay
    keep_every: int = 0  # steps; checkpoints of its multiples stay too, 0: none
    samples_per_step: int = 16  # responses written to samples.jsonl
    model: Model = Model()
    lora: Lora = Lora()
    data: Data = Data()
    sampling: Sampling = Sampling()
    replay: Replay = Replay()
    kl: KL = KL()
    reward: Reward = Reward()
    objective: Objective = Objective()
    imitation: Imitation = Imitation()
    prefix: Prefix = Prefix()
    expert: Expert = Expert()
    optimizer: Optimizer = Optimizer()
    critic: Critic = Critic()
    evaluation: Evaluation = Evaluation()
    memory: Memory = Memory()
    mesh: Mesh = Mesh()

    @property
    def has_critic(self) -> bool:
        """PPO learns a critic; group methods compare the responses to one prompt instead."""
        return self.objective.advantage in ("gae", "vtrace")

    @property
    def rates(self) -> tuple[float, float]:
        """Learning rates of policy and critic."""
        policy, critic = self.optimizer.learning_rate, self.critic.optimizer.learning_rate
        adapters, full = self.lora.rank > 0, self.lora.critic == "full"
        own = (1e-5 if adapters else 1e-6), (1e-4 if adapters and not full else 1e-5)
        return policy or own[0], critic or own[1]

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
    def has_precedent(self) -> bool:
        """Whether the precedent anchor is ever used: KL-Convex on, and its weight ever below 1."""
        kl = self.kl
        return kl.coef > 0 and kl.convex and kl.drop > 0 and kl.floor < 1 and self.steps > kl.start

    @property
    def stores_advantage(self) -> bool:
        """Whether rows keep the advantage of their collection."""
        method, sampler = family.METHODS[self.objective.method], self.replay.sampler
        return method.stored_advantage or replay.SAMPLERS[sampler].stored_advantage

    @property
    def prompt_slots(self) -> int:
        """P of the rows that are trained on: a prompt and, in PrefixRL, a prefix behind it."""
        return self.data.prompt_tokens + self.prefix.tokens

    @property
    def batch_groups(self) -> int:
        """Whole groups a step: the unit of replay and of the rollout accounting."""
        return self.batch_size // self.group_size


def field_type(path: str) -> type:
    """The type of the field at a dotted path; an InputError names the one that was meant."""
    kind: Any = Config
    for name in path.split("."):
        if not dataclasses.is_dataclass(kind):
            raise InputError(f"config.{path}: {path.rpartition('.')[0]} has no fields")
        kind = _type(kind, name)
    return kind


def similar_fields(name: str, kind: type | None = None) -> list[str]:
    """Dotted paths of the fields that may be meant by a wrong name: lr -> learning_rate."""
    leaves = {path: path.rpartition(".")[2] for path, _ in paths(kind or Config)}
    initials = {path: "".join(re.findall(r"(?:^|_)(.)", leaf)) for path, leaf in leaves.items()}
    exact = [path for path, leaf in leaves.items() if name in (leaf, initials[path])]
    near = difflib.get_close_matches(name, {*leaves, *leaves.values()}, 1, 0.75)
    return (exact or [path for path, leaf in leaves.items() if {path, leaf} & {*near}])[:3]


def paths(kind: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, type) of all fields and sections below."""
    for field in dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ():
        yield prefix + field.name, field.type
        yield from paths(field.type, f"{prefix}{field.name}.")


def to_json(config: Config) -> str:
    """The whole config as JSON, as saved with the run."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_json(text: str, where: object = "config.json") -> Config:
    """The config that `to_json` wrote; fields that it does not name have their defaults.

    Raises:
      InputError: no such config, or one of another version, with fields that are unknown here.
    """

    def fill(section: Any, content: dict[str, Any]) -> Any:
        for name, value in content.items():
            if isinstance(inner := getattr(section, name, None), Section):
                value = fill(inner, value)
            setattr(section, name, tuple(value) if isinstance(value, list) else value)
        return section

    try:
        return fill(Config(), json.loads(text))
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{where}: no config of this version ({one_line(error)})") from None
