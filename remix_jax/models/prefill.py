"""Before the first token is drawn: weights as decoding reads them, and prompts run through them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from remix_jax.models import lora, slots
from remix_jax.models.decoder import Decoder, DecoderConfig
from remix_jax.sharding import ROWS, by_rows, constrain, in_use, places
from remix_jax.types import positions


def merges(config: DecoderConfig) -> bool:
    """Whether adapters are merged with what they adapt, once, rather than applied at every token.

    Faster, but exact only where products are float32: rounded to bfloat16 a change of less than
    half a step of a weight's, as all are when training begins, is lost, and to the sampler alone.
    """
    exact = config.dtype == "float32" and not config.execution.frozen_dtype
    return config.lora is not None and exact


def for_decoding(model: Decoder, params: dict) -> tuple[Decoder, dict]:
    """Matrices in the dtype of their products, gathered over fsdp: once and not at every token.

    So is a tied head, which becomes one of its own: an embedding's rows keep their dtype. Adapters
    are merged with what they adapt where that `merges`, or else lie under it where both can.
    """
    params = lora.by_layer(params)
    adapters, whole = model.config.lora, not model.config.execution.frozen_dtype
    if adapters and (merges(model.config) or (whole and in_use() is None)):
        joined = lora.merged if merges(model.config) else lora.under
        params = joined(adapters, params)
        model = dataclasses.replace(model, config=dataclasses.replace(model.config, lora=None))
    if model.config.tied_embeddings:
        untied = dataclasses.replace(model.config, tied_embeddings=False)
        model = dataclasses.replace(model, config=untied)
        params = params | {"lm_head": {"kernel": params["embed"]["embedding"].T}}

    def prepared(path, x):
        if path[-1].key not in ("kernel", *lora.LEAVES):
            return x
        where = places([key.key for key in path], x.shape)
        rounded = x if x.dtype == jnp.int8 else x.astype(model.config.dtype)
        return rounded if where is None else constrain(rounded, *where.used)

    return model, jax.tree_util.tree_map_with_path(prepared, params)


def prefilled(
    run: Callable[..., Any], plan: slots.Slots, tokens_QP, prompt_len_Q, row_ids_R
) -> slots.Rows:
    """The prompts' hidden states and caches."""
    P = tokens_QP.shape[1]
    real_QP = jnp.arange(P)[None] >= P - prompt_len_Q[:, None]
    x_QD, cache = in_pieces(run, plan, plan.pieces, tokens_QP, real_QP)
    return slots.Rows(row_ids_R, jnp.repeat(prompt_len_Q, plan.group_size), x_QD, cache)


def in_pieces(run: Callable[..., Any], plan: slots.Slots, pieces: int, tokens_NS, real_NS, *last_N):
    """Prefills one piece of each device's rows after the other; x_ND is of the slots `last_N`."""
    devices = plan.devices

    def split(x):  # [devices * N, ...] -> [pieces, devices * N / pieces, ...]
        x = x.reshape(devices, pieces, -1, *x.shape[1:]).swapaxes(0, 1)
        return x.reshape(pieces, -1, *x.shape[3:])

    def joined(x):
        x = x.reshape(pieces, devices, -1, *x.shape[2:]).swapaxes(0, 1)
        return x.reshape(-1, *x.shape[3:])

    def prefill(part):
        tokens_NS, real_NS, *last_N = by_rows(part)
        x_ND, cache = run(tokens_NS, positions(real_NS), real_NS, *last_N, method="prefill")
        if plan.together:
            return x_ND, cache
        return x_ND, slots.from_first(cache, jnp.argmax(real_NS, axis=1))

    given = tokens_NS, real_NS, *last_N
    devices = plan.devices
    if pieces == 1:
        x_ND, cache = prefill(given)
    else:
        x_ND, cache = jax.tree.map(joined, jax.lax.map(prefill, jax.tree.map(split, given)))
    return constrain(x_ND, ROWS), jax.tree.map(lambda x: constrain(x, ROWS, "tensor"), cache)
