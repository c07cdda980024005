"""The optimizers that `optimizer.name` selects, from gradients to steps: optax chains."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from optax.contrib import MuonDimensionNumbers


class Rule(NamedTuple):
    """An optimizer of optax at a learning rate of 1."""

    # (beta1, beta2, weight decay, dtype of the first moment or None) -> its transformation
    make: Callable[[Any, Any, float, str | None], optax.GradientTransformation]
    beta1: float | None  # its defaults; None: it has no such moment
    beta2: float | None


def _matrices(params: Any) -> Any:
    """What Muon is for: the matrices of layers, with stacked layers each by itself, adapters too.

    Embeddings, heads, norms and biases are AdamW's, as by its author; with Nesterov's momentum.
    """

    def of(path, x):
        of_layer = str(path[0].key).startswith("layers")
        matrix = of_layer and path[-1].key in ("kernel", "lora_a", "lora_b")
        return MuonDimensionNumbers(x.ndim - 2, x.ndim - 1) if matrix else None

    return jax.tree_util.tree_map_with_path(of, params)


RULES = {
    "adamw": Rule(
        lambda b1, b2, w, d: optax.adamw(1.0, b1, b2, weight_decay=w, mu_dtype=d), 0.9, 0.999
    ),
    "lion": Rule(
        lambda b1, b2, w, d: optax.lion(1.0, b1, b2, weight_decay=w, mu_dtype=d), 0.9, 0.99
    ),
    "muon": Rule(
        lambda b1, b2, w, d: optax.contrib.muon(
            1.0, beta=b1, adam_b2=b2, weight_decay=w, adam_weight_decay=w, mu_dtype=d,
            muon_weight_dimension_numbers=_matrices, consistent_rms=0.2,
        ), 0.95, 0.999,
    ),
    "adafactor": Rule(
        lambda b1, b2, w, d: optax.adafactor(
            1.0, multiply_by_parameter_scale=False, weight_decay_rate=w or None
        ), None, None,
    ),
}  # fmt: skip
"""AdamW (Loshchilov and Hutter 2019); Lion (arXiv 2302.06675); Muon (Jordan 2024), its steps of the
size of AdamW's (arXiv 2502.16982, eq. 4), so that it takes AdamW's rates; Adafactor (arXiv
1804.04235) without its rate relative to the weights, as in the Hugging Face trainer."""


@functools.cache
def make(
    name: str,
    beta1: float | None,
    beta2: float | None,
    weight_decay: float,
    first_moment_dtype: str,
    grad_clip: float,
) -> optax.GradientTransformationExtraArgs:
    """The steps to add to the parameters, by update(grads, state, params, norm=, learning_rate=).

        step = - learning_rate rule(grads min(1, grad_clip / norm)),      norm = |grads|

    `norm`, over all tensors, is also a metric and the check that they are finite: found once.
    """
    rule = RULES[name]
    beta1, beta2 = rule.beta1 if beta1 is None else beta1, rule.beta2 if beta2 is None else beta2
    steps = rule.make(beta1, beta2, weight_decay, first_moment_dtype or None)
    within = _times(lambda norm, **_: jnp.minimum(1.0, grad_clip / jnp.maximum(norm, 1e-12)))
    return optax.chain(within, steps, _times(lambda learning_rate, **_: learning_rate))


def _times(factor: Callable[..., Array]) -> optax.GradientTransformationExtraArgs:
    """Multiplies by a factor of the arguments of `update` beyond those of optax."""

    def update(updates, state, params=None, **given):
        x = factor(**given)
        return jax.tree.map(lambda u: (u * x).astype(u.dtype), updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
