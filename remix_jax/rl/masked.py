"""Masked reductions as (sum, count) pairs.

The mean of the micro-batches' means would weigh a token by the company it is in. So sums and counts
of micro-batches and devices are added up first, exactly, and one division comes at the end.
"""

import chex
import jax
import jax.numpy as jnp
from jax import Array

AGGREGATIONS = [
    "token-mean",
    "seq-mean-token-mean",
    "seq-mean-token-sum",
    "seq-mean-token-sum-norm",
]


def zero_masked(x_BT: Array, mask_BT: Array) -> Array:
    """x where mask is 1, else 0. A select, not a product: a masked NaN or inf stays out."""
    return jnp.where(mask_BT > 0, x_BT, jnp.zeros_like(x_BT))


def divide(total: Array, count: Array) -> Array:
    """total / count, and 0 where nothing was counted (no token: no loss, no gradient)."""
    return total / jnp.where(count > 0, count, jnp.ones_like(count))


def sum_and_count(x_BT: Array, mask_BT: Array, mode: str = "token-mean") -> tuple[Array, Array]:
    """The (sum, count) pair whose quotient is the aggregated x.

    With m the mask, n_b = sum_t m_bt, T the width of the array and rows(n) = #{b : n_b > 0}:

    ===========================  =============================  ==========
    mode                         sum                            count
    ===========================  =============================  ==========
    token-mean                   sum_bt x m                     sum_bt m
    seq-mean-token-mean          sum_b (sum_t x m) / n_b        rows(n)
    seq-mean-token-sum           sum_bt x m                     rows(n)
    seq-mean-token-sum-norm      sum_bt x m                     T
    ===========================  =============================  ==========

    (names of verl's `loss_agg_mode`). The last mode, Dr.GRPO's constant normaliser, does not
    divide by the number of rows, as in verl. Its count is a constant of the shapes; the others'
    counts of micro-batches add up.

    Values under mask 0 are ignored, also NaN. The mask has the dtype of x.

    Raises:
      ValueError: unknown mode.
    """
    chex.assert_rank([x_BT, mask_BT], 2)
    chex.assert_equal_shape([x_BT, mask_BT])
    if mode not in AGGREGATIONS:
        raise ValueError(f"unknown aggregation {mode!r}: one of {', '.join(AGGREGATIONS)}")
    x_BT = zero_masked(x_BT, mask_BT)
    tokens_B = mask_BT.sum(axis=1)
    rows = (tokens_B > 0).astype(x_BT.dtype).sum()
    if mode == "seq-mean-token-mean":
        return divide(x_BT.sum(axis=1), tokens_B).sum(), rows
    width = jnp.asarray(x_BT.shape[1], x_BT.dtype)
    counts = {"token-mean": tokens_B.sum(), "seq-mean-token-sum": rows}
    return x_BT.sum(), counts.get(mode, width)


def count(mask_BT: Array, mode: str = "token-mean") -> Array:
    """The count of `sum_and_count` alone: a whole mini-batch's denominator, before its sums."""
    return sum_and_count(jnp.zeros_like(mask_BT), mask_BT, mode)[1]


def aggregate(x_BT: Array, mask_BT: Array, mode: str = "token-mean") -> Array:
    """x reduced to a scalar under the mask: sum / count of `sum_and_count`, 0 if nothing counts."""
    return divide(*sum_and_count(x_BT, mask_BT, mode))


def mean(x_BT: Array, mask_BT: Array) -> Array:
    """Mean over the tokens under the mask."""
    return aggregate(x_BT, mask_BT, "token-mean")


def whiten(x_BT: Array, mask_BT: Array, eps: float = 1e-8) -> Array:
    """(x - mean) / sqrt(var + eps) over the tokens under the mask; 0 elsewhere.

    var is the unbiased variance (n - 1), as in verl's `masked_whiten`. With fewer than two tokens
    there is no variance: the result is x - mean = 0.
    """
    chex.assert_equal_shape([x_BT, mask_BT])
    tokens = mask_BT.sum()
    centred_BT = zero_masked(x_BT - mean(x_BT, mask_BT), mask_BT)
    variance = jnp.square(centred_BT).sum() / jnp.maximum(tokens - 1, 1)
    return centred_BT * jax.lax.rsqrt(variance + eps)
