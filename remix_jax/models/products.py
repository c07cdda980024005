"""The products a decoder spends its time in, with gradients written by hand.

Automatic differentiation costs more: the gradient of a bfloat16 product would run with one float32
operand, that of an embedding lookup is a scatter (on a CPU many times slower than a product with
one-hot rows), and that of attention keeps the scores beside the weights.

Shape letters beside those of `remix_jax.types`: N folded rows * slots, F a width too, M query heads
to a key head, X = M * T, E head dimension. T are the slots that are queried, S those of the keys.
"""

import functools
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint

from remix_jax.sharding import Places, constrain

MASKED = -1e30  # finite: a query that may see nothing gets uniform weights, never NaN
ONE_HOT_VOCABULARY = 4096  # beyond it, a scatter is cheaper than a product with one-hot rows


def einsum(subscripts: str, a: jax.Array, b: jax.Array, dtype: str) -> jax.Array:
    """jnp.einsum of operands rounded to `dtype`, summed in float32."""
    # float32 is to mean float32 on accelerators too, whose default is to round the operands.
    exact = lax.Precision.HIGHEST if dtype == "float32" else None
    a, b = a.astype(dtype), b.astype(dtype)
    return jnp.einsum(subscripts, a, b, precision=exact, preferred_element_type=jnp.float32)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def matmul(x_ND: jax.Array, w_DF: jax.Array, dtype: str, places: Places | None = None) -> jax.Array:
    """x_ND @ w_DF, float32 in and out; `dtype` is that of the operands, also in the gradient.

    The weights may have any dtype, which their gradient gets too; whole numbers have none. On a
    mesh they are gathered, as `dtype` (whole numbers as they are), for each use, and the gradient
    is scattered at once to where they are kept.
    """
    return einsum("nd,df->nf", x_ND, _gathered(w_DF, dtype, places), dtype)


def _gathered(w_DF, dtype, places):
    if places is None:
        return w_DF
    return constrain(w_DF if w_DF.dtype == jnp.int8 else w_DF.astype(dtype), *places.used)


def _matmul_forward(x_ND, w_DF, dtype, places):
    x = x_ND.astype(dtype)
    return matmul(x, w_DF, dtype, places), (x, w_DF)


def _matmul_backward(dtype, places, residuals, dy_NF):
    x_ND, w_DF = residuals
    dx_ND = einsum("nf,df->nd", dy_NF, _gathered(w_DF, dtype, places), dtype)
    if w_DF.dtype == jnp.int8:
        return dx_ND, None
    plain = partial(einsum, "nd,nf->df", dtype=dtype)

    def of_copy(x_ND, dy_NF):
        x_DN = with_layout_constraint(x_ND.T, Layout((0, 1)))
        # The barrier keeps a transpose of the result (tied embeddings) from being folded into the
        # product, where it would undo the layout.
        return lax.optimization_barrier(einsum("dn,nf->df", x_DN, dy_NF, dtype))

    if places is not None:  # first summed, then cut: a reduce-scatter, and no rows gathered
        dw_DF = constrain(constrain(plain(x_ND, dy_NF), *places.used), *places.kept)
    else:
        # A CPU has no fast product that sums over the leading axis of both operands, unless the
        # result is float32 and wide: otherwise it pays to lay out the transpose first.
        wide = dtype == "float32" and x_ND.shape[1] <= dy_NF.shape[1]
        dw_DF = lax.platform_dependent(x_ND, dy_NF, cpu=plain if wide else of_copy, default=plain)
    return dx_ND, dw_DF.astype(w_DF.dtype)


matmul.defvjp(_matmul_forward, _matmul_backward)


@jax.custom_vjp
def lookup(table_VD: jax.Array, ids_N: jax.Array) -> jax.Array:
    """Rows `ids_N` of `table_VD`, float32 [N, D].

    On a mesh each device looks up its columns for the rows of all its fsdp neighbours: those move
    between the devices, here and in the gradient, and never the table.
    """
    found_ND = jnp.take(table_VD, constrain(ids_N, "data"), axis=0).astype(jnp.float32)
    return constrain(found_ND, "data", "fsdp")


def _lookup_forward(table_VD, ids_N):
    return lookup(table_VD, ids_N), (table_VD, ids_N)


def _lookup_backward(residuals, dy_ND):
    table_VD, ids_N = residuals
    vocab = table_VD.shape[0]
    ids_N, dy_ND = constrain(ids_N, "data"), constrain(dy_ND, "data", "fsdp")
    if vocab <= ONE_HOT_VOCABULARY:
        hot_VN = (jnp.arange(vocab)[:, None] == ids_N[None]).astype(dy_ND.dtype)
        grad = jnp.dot(hot_VN, dy_ND, precision=lax.Precision.HIGHEST)
    else:
        grad = jnp.zeros(table_VD.shape, dy_ND.dtype).at[ids_N].add(dy_ND)
    return grad.astype(table_VD.dtype), None


lookup.defvjp(_lookup_forward, _lookup_backward)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def attention(q_BKXE, k_BKSE, v_BKSE, bias_BTS, dtype: str) -> jax.Array:
    """softmax(q k^T + bias) v for every key head, its M query heads side by side in X = M * T.

    float32 in and out ([B, K, X, E]); `dtype` is that of the operands. q comes scaled by
    1 / sqrt(E). `bias_BTS` is 0 where a query may look and very negative (finite) where not; it
    takes no gradient.
    """
    return _attention_forward(q_BKXE, k_BKSE, v_BKSE, bias_BTS, dtype)[0]


def _attention_forward(q_BKXE, k_BKSE, v_BKSE, bias_BTS, dtype):
    q, k, v = (x.astype(dtype) for x in (q_BKXE, k_BKSE, v_BKSE))
    B, K, X, _ = q.shape
    _, T, S = bias_BTS.shape
    score = einsum("bkxe,bkse->bkxs", q, k, dtype).reshape(B, K, X // T, T, S)
    exp, inverse = _exponentials(score + bias_BTS[:, None, None])
    exp = exp.reshape(B, K, X, S).astype(dtype)
    inverse = inverse.reshape(B, K, X, 1)
    # Dividing after the product: [X, E] numbers instead of [X, S], here and in the gradient.
    out = einsum("bkxs,bkse->bkxe", exp, v, dtype) * inverse
    return out, (q, k, v, exp, inverse, out)


def _attention_backward(dtype, residuals, dout):
    q, k, v, exp, inverse, out = residuals
    dsum = dout * inverse
    dv = einsum("bkxs,bkxe->bkse", exp, dsum, dtype)
    dexp = einsum("bkxe,bkse->bkxs", dsum, v, dtype)
    # The softmax's own term, sum_s weight_s dweight_s, equals out . dout.
    dscore = exp * (dexp - (dsum * out).sum(-1, keepdims=True))
    dq = einsum("bkxs,bkse->bkxe", dscore, k, dtype)
    dk = einsum("bkxs,bkxe->bkse", dscore, q, dtype)
    return dq, dk, dv, None


attention.defvjp(_attention_forward, _attention_backward)


# Of one query a row and some of its keys: exp(score - best) times the values, summed [N, K, M, E];
# exp(score - best) summed [N, K, M, 1]; the largest score [N, K, M, 1].
Summed = tuple[jax.Array, jax.Array, jax.Array]


def attention_step(q_NKME, parts, dtype: str, kernels: Sequence[Summed] = ()) -> jax.Array:
    """`attention` for one query a row, to the parts of a cache together. [N, K, M, E]

    A part is its keys [N, K, E, S] (transposed), values [N, K, S, E] and bias [N or 1, S]; more of
    them may have been summed by `kernels`.
    """
    scores, q = [], q_NKME.astype(dtype)
    for keys, _, bias in parts:
        scores.append(einsum("nkme,nkes->nkms", q, keys, dtype) + bias[:, None, None])
        if len(parts) > 1:  # or a GPU makes one product of both, over copies of the keys
            q = lax.optimization_barrier(q)
    bests = [score.max(-1, keepdims=True) for score in scores] + [best for _, _, best in kernels]
    best = functools.reduce(jnp.maximum, bests)
    exps = [jnp.exp(score - best) for score in scores]
    outs = [
        einsum("nkms,nkse->nkme", exp, values, dtype)
        for exp, (_, values, _) in zip(exps, parts, strict=True)
    ]
    totals = [exp.sum(-1, keepdims=True) for exp in exps]
    outs += [out * jnp.exp(its_best - best) for out, _, its_best in kernels]
    totals += [total * jnp.exp(its_best - best) for _, total, its_best in kernels]
    return functools.reduce(jnp.add, outs) / functools.reduce(jnp.add, totals)


def _exponentials(score):
    """exp(score - max) and 1 / its sum, over the last axis."""
    exp = jnp.exp(score - score.max(-1, keepdims=True))
    return exp, 1.0 / exp.sum(-1, keepdims=True)
