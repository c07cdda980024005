"""Hand-written gradients against those that JAX derives from the plain formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from remix_jax.models import products


def normal(seed, *shape, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def value_and_gradients(function, weights, *arguments):
    """f(arguments), and d sum(f * weights) / d argument."""
    value, pull = jax.vjp(function, *arguments)
    return value, pull(weights)


def plain_attention(q_BKXE, k_BKSE, v_BKSE, bias_BTS):
    repeats = q_BKXE.shape[2] // bias_BTS.shape[1]
    bias_B1XS = jnp.tile(bias_BTS, (1, repeats, 1))[:, None]
    score = jnp.einsum("bkxe,bkse->bkxs", q_BKXE, k_BKSE) + bias_B1XS
    return jnp.einsum("bkxs,bkse->bkxe", jax.nn.softmax(score, axis=-1), v_BKSE)


@pytest.mark.parametrize("jit", [jax.jit, lambda f: f], ids=["jit", "eager"])
@pytest.mark.parametrize("widths", [(6, 10), (10, 6)], ids=["wide", "narrow"])
def test_matmul_gradients(widths, jit):
    D, F = widths
    x, w, dy = normal(0, 12, D), normal(1, D, F), normal(2, 12, F)
    ours = jit(lambda x, w: products.matmul(x, w, "float32"))
    got = value_and_gradients(ours, dy, x, w)
    want = value_and_gradients(jnp.dot, dy, x, w)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, want)


def test_bfloat16_matmul_accumulates_and_returns_float32():
    # 4096 ones: a bfloat16 sum would stop growing at 256.
    x, w = jnp.ones((2, 4096)), jnp.ones((4096, 3))
    y, (dx, dw) = value_and_gradients(
        lambda x, w: products.matmul(x, w, "bfloat16"), jnp.ones((2, 3)), x, w
    )
    assert y.dtype == dx.dtype == dw.dtype == jnp.float32
    np.testing.assert_array_equal(y, np.full((2, 3), 4096.0))
    np.testing.assert_array_equal(dw, np.full((4096, 3), 2.0))


def test_matmul_gradients_have_the_dtype_of_the_parameters():
    x, w = normal(0, 4, 3, dtype=jnp.float32), normal(1, 3, 5, dtype=jnp.bfloat16)
    dy = jnp.ones((4, 5))
    _, (dx, dw) = value_and_gradients(lambda x, w: products.matmul(x, w, "bfloat16"), dy, x, w)
    assert (dx.dtype, dw.dtype) == (jnp.float32, jnp.bfloat16)


@pytest.mark.parametrize("vocab", [7, products.ONE_HOT_VOCABULARY + 1], ids=["product", "scatter"])
def test_lookup_gradient_adds_up_repeated_tokens(vocab):
    table, dy = normal(0, vocab, 4), normal(1, 6, 4)
    ids = jnp.asarray([3, 0, 3, vocab - 1, 3, 0])
    value, pull = jax.vjp(lambda table: products.lookup(table, ids), table)
    np.testing.assert_array_equal(value, table[ids])
    want = np.zeros((vocab, 4))
    np.add.at(want, np.asarray(ids), np.asarray(dy, np.float64))
    np.testing.assert_allclose(pull(dy)[0], want, atol=1e-5)


@pytest.mark.parametrize("jit", [jax.jit, lambda f: f], ids=["jit", "eager"])
def test_attention_gradients(jit):
    B, K, M, T, S, E = 2, 3, 2, 4, 5, 6
    q, k, v = normal(0, B, K, M * T, E), normal(1, B, K, S, E), normal(2, B, K, S, E)
    seen = np.random.default_rng(3).random((B, T, S)) < 0.6
    seen[0, 1] = False  # a query that sees nothing
    bias, dout = jnp.where(seen, 0.0, -1e30), normal(4, B, K, M * T, E)
    ours = jit(lambda q, k, v: products.attention(q, k, v, bias, "float32"))
    got = value_and_gradients(ours, dout, q, k, v)
    want = value_and_gradients(lambda q, k, v: plain_attention(q, k, v, bias), dout, q, k, v)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), got, want)


def test_attention_to_parts_of_a_cache_is_attention_of_one_query():
    B, K, M, S, E = 2, 3, 2, 7, 6
    q, k, v = normal(0, B, K, M, E), normal(1, B, K, S, E), normal(2, B, K, S, E)
    bias = jnp.where(np.random.default_rng(3).random((B, S)) < 0.7, 0.0, -1e30)
    bias = bias.at[0, :3].set(-1e30)  # nothing of the first part
    ends = [slice(0, 3), slice(3, 7)]
    given = [(k[:, :, s].swapaxes(2, 3), v[:, :, s], bias[:, s]) for s in ends]
    step = products.attention_step(q, given, "float32")
    np.testing.assert_allclose(step, plain_attention(q, k, v, bias[:, None]), atol=2e-5)
