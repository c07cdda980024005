"""What saves memory changes no result: logits in pieces, layers scanned or run again, kernels."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from remix_jax import types
from remix_jax.models import attention, packing, scoring
from remix_jax.models.decoder import Decoder, Execution
from remix_jax.models.scoring import logp_and_entropy
from tests.tiny_models import decoder_config, random_decoder


def plain_scores(x_BTD, head_DV, tokens_BT, temperature):
    logp_BTV = jax.nn.log_softmax(x_BTD @ head_DV / temperature)
    logp_BT = jnp.take_along_axis(logp_BTV, tokens_BT[..., None], axis=2)[..., 0]
    return logp_BT, -(jnp.exp(logp_BTV) * logp_BTV).sum(-1)


def pulled(scores, x_BTD, head_DV):
    """Scores, and the gradient of a sum in which every one has its own weight."""

    def total(x_BTD, head_DV):
        logp_BT, entropy_BT = scores(x_BTD, head_DV)
        weight_BT = jnp.sin(jnp.arange(float(logp_BT.size))).reshape(logp_BT.shape)
        return (weight_BT * logp_BT + jnp.cos(weight_BT) * entropy_BT).sum(), (logp_BT, entropy_BT)

    return jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))(x_BTD, head_DV)


def drawn(B=2, T=7, D=5, V=23):
    rng = np.random.default_rng(0)
    x_BTD, head_DV = rng.normal(size=(B, T, D)), 3 * rng.normal(size=(D, V))
    tokens_BT = rng.integers(0, V, (B, T))
    return jnp.asarray(x_BTD, jnp.float32), jnp.asarray(head_DV, jnp.float32), tokens_BT


@pytest.mark.parametrize(
    "pieces", [(0, 0, 1), (3, 0, 1), (0, 8, 1), (2, 5, 1), (4, 6, 2), (0, 1, 1)], ids=str
)
def test_scores_in_pieces_are_those_of_all_logits(pieces):
    x_BTD, head_DV, tokens_BT = drawn()
    want = pulled(lambda x, w: plain_scores(x, w, tokens_BT, 0.7), x_BTD, head_DV)
    got = pulled(
        lambda x, w: logp_and_entropy(x, w, tokens_BT, 0.7, "float32", pieces), x_BTD, head_DV
    )
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5), got, want)


def test_a_vocabulary_that_is_spread_over_devices_stays_so():
    """Each device makes the logits of its own part: none gathers the head."""
    x_BTD, head_DV, tokens_BT = drawn(D=16, V=64)
    mesh = jax.make_mesh((2, 1, 4), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    want = pulled(lambda x, w: plain_scores(x, w, tokens_BT, 1.0), x_BTD, head_DV)

    def scores(x, w):
        return logp_and_entropy(x, w, tokens_BT, 1.0, "float32", (0, 16, 4))

    with jax.set_mesh(mesh):
        x = jax.device_put(x_BTD, NamedSharding(mesh, P("data")))
        head = jax.device_put(head_DV, NamedSharding(mesh, P(None, "tensor")))
        got = pulled(scores, x, head)
        text = jax.jit(scores).lower(x, head).compile().as_text()
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5), got, want)
    assert "all-gather" not in text


def temporary_bytes(execution, rows, sizes):
    model = Decoder(dataclasses.replace(sizes, execution=execution))
    shapes = jax.eval_shape(lambda: random_decoder(sizes)[1])

    def loss(params, rows):
        scores = scoring.score_responses(model, params, packing.alone(rows), 1.0)
        return (scores.logp_BT + scores.entropy_BT).sum()

    lowered = jax.jit(jax.value_and_grad(loss)).lower(shapes, rows)
    return lowered.compile().memory_analysis().temp_size_in_bytes


def test_no_array_of_all_tokens_by_all_of_the_vocabulary():
    B, T, V = 2, 64, 16_384
    sizes = decoder_config(vocab_size=V, layers=1)
    rows = jax.eval_shape(lambda: types.empty_rows(B, 2, T))
    whole = 4 * B * T * V
    weights = 4 * 16 * V  # the embedding, and its gradient twice: from the input and the output
    assert temporary_bytes(Execution(), rows, sizes) > 2 * whole
    pieces = temporary_bytes(Execution(logit_slots=16, logit_entries=2048), rows, sizes)
    assert pieces < whole / 4 + 4 * weights


def test_layers_that_run_again_keep_their_inputs_alone():
    sizes = decoder_config(layers=6, ffn_width=512)
    rows = jax.eval_shape(lambda: types.empty_rows(4, 16, 48))
    kept = {
        remat: temporary_bytes(Execution(remat=remat, scan_layers=True), rows, sizes)
        for remat in (False, True)
    }
    assert kept[True] < kept[False] / 2


def some_rows(B=3, prompt=5, T=7, V=60):
    rng = np.random.default_rng(1)
    return types.empty_rows(B, prompt, T).replace(
        tokens_BS=jnp.asarray(rng.integers(0, V, (B, prompt + T)), jnp.int32),
        prompt_len_B=jnp.asarray(rng.integers(1, prompt + 1, B), jnp.int32),
        response_len_B=jnp.asarray(rng.integers(1, T + 1, B), jnp.int32),
        valid_B=jnp.ones(B, bool),
    )


def score_and_gradient(model, params, rows):
    mask_BT, held = rows.mask_BT, packing.take(packing.pack(rows, 2), rows, 0, 2)
    assert int(held.here_B.sum()) > 2, "a buffer holds two"

    def total(params):
        scores = scoring.score_responses(model, params, held, 1.0)
        logp_BT = packing.to_rows(scores.logp_BT, held)
        return (logp_BT * jnp.cos(jnp.arange(float(mask_BT.shape[1])))[None]).sum(), logp_BT

    return jax.jit(jax.value_and_grad(total, has_aux=True))(params)


@pytest.mark.parametrize(
    "execution",
    [
        Execution(scan_layers=True),
        Execution(remat=True),
        Execution(scan_layers=True, remat=True, logit_slots=4, logit_entries=30),
        Execution(attention="cudnn"),
    ],
    ids=["scan", "remat", "all", "kernel"],
)
def test_every_way_to_run_the_layers_gives_the_same(execution, monkeypatch):
    model, params = random_decoder(decoder_config(layers=3, tied_embeddings=False))
    rows = some_rows()
    want = score_and_gradient(model, params, rows)
    # The path of a kernel, with slots added up to its block, and XLA in the kernel's place.
    monkeypatch.setattr(attention, "LONG", 8)
    plain = functools.partial(attention.cudnn, implementation="xla")
    monkeypatch.setattr(attention, "cudnn", plain)
    other = Decoder(dataclasses.replace(model.config, execution=execution))
    got = score_and_gradient(other, params, rows)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), got, want)


def test_scanned_layers_prefill_the_same_cache():
    model, params = random_decoder(decoder_config(layers=3))
    scanned = Decoder(
        dataclasses.replace(model.config, execution=Execution(scan_layers=True, remat=True))
    )
    tokens = jnp.asarray([[0, 5, 7], [3, 4, 9]])
    mask = jnp.asarray([[0, 1, 1], [1, 1, 1]])
    inputs = (tokens, types.positions(mask), mask)

    def prefilled(model):
        run = functools.partial(model.apply, method="prefill")
        return jax.jit(run)({"params": params}, *inputs)

    got, want = prefilled(scanned), prefilled(model)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), got, want)


@pytest.mark.parametrize("kernel", ["splash", "cudnn"])
def test_kernels_equal_plain_attention(kernel):
    """JAX's own interpreter runs the TPU kernel; XLA takes the place of cuDNN."""
    B, K, M, S, E = 2, 1, 2, 128, 8
    first, T = 37, 80
    rng = np.random.default_rng(0)
    q = jnp.asarray(rng.normal(size=(B, K, M, T, E)), jnp.float32)
    k, v = (jnp.asarray(rng.normal(size=(B, K, S, E)), jnp.float32) for _ in range(2))
    mask_BS = np.zeros((B, S), int)
    mask_BS[0, 10:110] = mask_BS[1, 30:] = 1
    mask_BS[1, 60:100] = 2  # a segment between two parts of another
    real = mask_BS[:, None, None, first : first + T, None] > 0
    weight = jnp.asarray(rng.normal(size=q.shape) * real, jnp.float32)

    def kernel_call(q, k, v):
        if kernel == "splash":
            return attention.splash(q, k, v, jnp.asarray(mask_BS), first, interpret=True)
        return attention.cudnn(q, k, v, jnp.asarray(mask_BS), first, implementation="xla")

    def plain_call(q, k, v):
        bias = attention.visibility("plain", jnp.asarray(mask_BS))
        return attention.attend("plain", q, k, v, bias, first, "float32")

    def pulled(call):
        def total(q, k, v):
            out = call(q, k, v)
            return (out * weight).sum(), jnp.where(real, out, 0.0)

        return jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True))(q, k, v)

    got, want = pulled(kernel_call), pulled(plain_call)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), got, want)


def test_on_a_mesh_each_device_attends_to_its_own_rows_and_heads(monkeypatch):
    """Three rows over four devices: one gets a row of padding."""
    rng = np.random.default_rng(0)
    q = jnp.asarray(rng.normal(size=(3, 2, 1, 128, 8)), jnp.float32)
    k, v = (jnp.asarray(rng.normal(size=(3, 2, 128, 8)), jnp.float32) for _ in range(2))
    mask_BS = jnp.asarray(rng.random((3, 128)) < 0.9).astype(jnp.int32).at[:, 0].set(1)
    monkeypatch.setattr(attention, "splash", functools.partial(attention.splash, interpret=True))
    mesh = jax.make_mesh((1, 4, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    with jax.set_mesh(mesh):
        got = jax.jit(lambda *x: attention.attend("splash", *x, 0, "float32"))(q, k, v, mask_BS)
    bias = attention.visibility("plain", mask_BS)
    want = attention.attend("plain", q, k, v, bias, 0, "float32")
    real = (mask_BS > 0)[:, None, None, :, None]
    np.testing.assert_allclose(got * real, want * real, rtol=1e-4, atol=1e-4)


def test_the_kernel_follows_the_device():
    assert attention.chosen("tpu", "float32") == "splash"
    assert attention.chosen("gpu", "bfloat16") == "cudnn"
    assert attention.chosen("gpu", "float32") == attention.chosen("cpu", "bfloat16") == "plain"
    assert attention.for_slots("splash", attention.LONG - 1) == ("plain", attention.LONG - 1)
    assert attention.for_slots("splash", attention.LONG + 1) == ("splash", attention.LONG + 512)
