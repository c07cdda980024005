"""What a step costs and how fast it ran: FLOPs by the shapes of its programs, MFU, tokens a second.

FLOPs are those of matrix products, a multiplication and an addition as two, padding included. A
backward pass costs twice its forward pass; once where adapters are trained, whose own products are
not counted: of frozen matrices there is no gradient.
"""

from typing import NamedTuple

import jax

from remix_jax.config import Config
from remix_jax.learner.state import Learner
from remix_jax.models.decoder import DecoderConfig
from remix_jax.rl import family
from remix_jax.rl.schedules import kl_convex_weight
from remix_jax.schedule import Stage


def _layer_flops(c: DecoderConfig, slots: float, asked: float, seen: float) -> float:
    """Of one layer: keys and values of `slots`; queries, attention to `seen` and MLP of `asked`."""
    heads = c.heads * c.head_dim
    query = 2 * c.width * heads + 2 * heads * seen + 3 * c.width * c.ffn_width
    return 2.0 * (slots * 2 * c.width * c.kv_heads * c.head_dim + asked * query)


def forward_flops(c: DecoderConfig, rows: int, prompt: int, response: int, head: str) -> float:
    """One pass over rows of `prompt` + `response` slots, for log-probs or values of the response.

    The head gives logits over the vocabulary ("token") or one number ("value"), of the response
    alone; so does the last layer, but for its keys and values.
    """
    slots, outputs = prompt + response, c.vocab_size if head == "token" else 1
    layers = (c.layers - 1) * _layer_flops(c, slots, slots, slots)
    layers += _layer_flops(c, slots, response, slots)
    return rows * (layers + 2.0 * c.width * outputs * response)


def decode_flops(c: DecoderConfig, prompts: int, rows: int, prompt: int, tokens: float) -> float:
    """Prefill of the prompts, once for all rows of a group, and `tokens` decoded in all, each with
    the attention of the middle of a response.
    """
    prefill = prompts * forward_flops(c, 1, prompt - 1, 1, "token")
    layer = _layer_flops(c, 1, 1, prompt + tokens / max(rows, 1) / 2)
    return prefill + tokens * (c.layers * layer + 2.0 * c.width * c.vocab_size)


def decode_bytes(c: DecoderConfig, rows: int, seen: float) -> float:
    """What one step of decoding reads at least: every matrix, and `seen` slots of each row's cache,
    once, in bfloat16.
    """
    layer = c.width * c.head_dim * 2 * (c.heads + c.kv_heads) + 3 * c.width * c.ffn_width
    cache = rows * seen * 2 * c.layers * c.kv_heads * c.head_dim
    return 2.0 * (c.layers * layer + c.width * c.vocab_size + cache)


class StepFlops(NamedTuple):
    """Of one step on all devices, without evaluation."""

    sampling: float
    learning: float  # scoring under every policy that the step asks, and all passes


def step_flops(
    learner: Learner,
    config: Config,
    stage: Stage,
    new_tokens: float,
    step: int,
    filled: float = 1.0,
) -> StepFlops:
    """What a step (from 1) of `stage` multiplies, with `new_tokens` decoded in all rows.

    `filled` is how many buffers a trained row took, 1 at its full length; a scored one as many.
    """
    policy, slots = learner.policy.config, (config.prompt_slots, config.data.response_tokens)
    groups, own, kl = stage.fresh_groups, stage.fresh_groups * config.own_rows, config.kl
    sampling = decode_flops(policy, groups, own, slots[0], new_tokens) if own else 0.0
    trained = stage.passes * config.batch_size
    scored = (stage.replay_groups + groups * config.has_base) * config.group_size
    if config.sampling.correction:  # fresh rows, by the trainer
        scored += groups * config.group_size
    weight = kl_convex_weight(step, kl.start, kl.every, kl.drop, kl.floor) if kl.convex else 1.0
    if kl.coef > 0 and weight < 1:  # the precedent
        scored += config.batch_size
    if family.METHODS[config.objective.method].forward:  # once more before each mini-batch
        scored += trained
    both = 2 if policy.lora else 3  # forward and backward
    of_policy = scored + both * trained * (2 if config.imitation.weight > 0 else 1)
    learning = forward_flops(policy, of_policy, *slots, "token")
    if learner.critic is not None:
        both = 2 if learner.critic.config.lora else 3
        learning += forward_flops(policy, config.batch_size + both * trained, *slots, "value")
    return StepFlops(sampling, filled * learning)


class Chip(NamedTuple):
    """Peaks of one chip by its maker's tables; rates in bytes a second.

    TPUs: "System architecture" of cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}. GPUs: NVIDIA's data
    sheets, dense bfloat16 with float32 sums; SXM where there are several.
    """

    flops: float  # a second: bfloat16 products with float32 sums
    memory_bytes: float
    memory_rate: float
    link_rate: float  # the sum of its links in one direction; 0: not listed


_GB, _GIB = 1e9, 2.0**30
CHIPS = {  # first part of `device_kind`, the first that matches
    "TPU v6 lite": Chip(918e12, 32 * _GIB, 1600 * _GB, 400 * _GB),
    "TPU v5 lite": Chip(197e12, 16 * _GIB, 819 * _GB, 200 * _GB),
    "TPU v5": Chip(459e12, 95 * _GIB, 2765 * _GB, 600 * _GB),
    "TPU v4": Chip(275e12, 32 * _GIB, 1228 * _GB, 300 * _GB),
    "NVIDIA H200": Chip(989e12, 141 * _GB, 4800 * _GB, 0.0),
    "NVIDIA H100 80GB HBM3": Chip(989e12, 80 * _GB, 3350 * _GB, 0.0),
    "NVIDIA A100-SXM4-80GB": Chip(312e12, 80 * _GB, 2039 * _GB, 0.0),
    "NVIDIA A100-SXM4-40GB": Chip(312e12, 40 * _GB, 1555 * _GB, 0.0),
    "NVIDIA L40S": Chip(362e12, 48 * _GB, 864 * _GB, 0.0),
    "NVIDIA GeForce RTX 4090": Chip(165e12, 24 * _GB, 1008 * _GB, 0.0),
}


def chip(device_kind: str | None = None) -> Chip | None:
    """Of a kind of device, this machine's by default; None where no table has it (a CPU)."""
    kind = jax.devices()[0].device_kind if device_kind is None else device_kind
    return next((found for name, found in CHIPS.items() if kind.startswith(name)), None)


def speeds(
    decoded: float, learned: float, flops: StepFlops, sample: float, learn: float
) -> dict[str, float]:
    """Tokens a second, and the model FLOPs utilisation (MFU) where the devices' peak is known.

    `decoded` and `learned` are tokens, the latter with prompts and in every pass; `sample` and
    `learn` are the seconds of these phases.
    """
    sample, learn = max(sample, 1e-9), max(learn, 1e-9)
    found = {"tokens_per_second": decoded / sample, "learn_tokens_per_second": learned / learn}
    if (peaks := chip()) is not None:
        peak = peaks.flops * jax.device_count()
        phases = {"sample": flops.sampling / sample, "learn": flops.learning / learn}
        found |= {f"mfu/{phase}": rate / peak for phase, rate in phases.items()}
    return found
