"""Adapters on a decoder: against the plain model, merged and apart, forward and backward."""

import dataclasses

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from remix_jax.errors import InputError
from remix_jax.models import lora
from remix_jax.models.decoder import Decoder, Execution, abstract_params
from remix_jax.models.lora import Lora
from remix_jax.models.prefill import merges
from remix_jax.models.sampling import Prompts, SamplerSettings, Task
from remix_jax.rollout import sampler
from tests.tiny_models import ROWS, decoder_config, random_decoder

ADAPTERS, PLAIN = Lora(rank=3, alpha=6.0), Execution()
KINDS = {
    "qwen2": {},
    "qwen3": {"architecture": "qwen3", "qkv_bias": False, "qk_norm": True, "head_dim": 6},
    "llama": {"architecture": "llama", "qkv_bias": False, "tied_embeddings": False},
}
TOKENS_BS = np.random.default_rng(0).integers(0, ROWS, (3, 9)).astype(np.int32)
POSITIONS_BS = np.arange(9, dtype=np.int32)[None].repeat(3, axis=0)
ONES_BS = np.ones_like(TOKENS_BS)


def adapted(params, adapters=ADAPTERS, b_scale=0.3, execution=PLAIN, **changes):
    """A model with adapters on these frozen weights; B noise of that scale."""
    sizes = dataclasses.replace(decoder_config(**changes), lora=adapters, execution=execution)
    model = Decoder(sizes)
    own = flax.traverse_util.flatten_dict(lora.init(abstract_params(model), jax.random.key(1)))
    rng = np.random.default_rng(2)
    for path, x in own.items():
        if path[-1] == "lora_b":
            own[path] = jnp.asarray(b_scale * rng.normal(size=x.shape), jnp.float32)
    return model, lora.joined(params, flax.traverse_util.unflatten_dict(own))


def adapted_modules(params):
    """Those that have an adapter, in order."""
    return [p[:-1] for p in flax.traverse_util.flatten_dict(params) if p[-1] == "lora_a"]


def logits(model, params):
    return np.asarray(jax.jit(model.apply)({"params": params}, TOKENS_BS, POSITIONS_BS, ONES_BS))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scanned", [False, True])
def test_adapters_begin_as_nothing_and_are_what_their_merge_is(kind, scanned):
    execution = Execution(scan_layers=scanned)
    base, params = random_decoder(decoder_config(**KINDS[kind]))
    base = Decoder(dataclasses.replace(base.config, execution=execution))
    model, begun = adapted(params, b_scale=0.0, execution=execution, **KINDS[kind])
    np.testing.assert_array_equal(logits(model, begun), logits(base, params))
    model, whole = adapted(params, execution=execution, **KINDS[kind])
    found, merged = logits(model, whole), logits(base, lora.merged(ADAPTERS, whole))
    np.testing.assert_allclose(found, merged, rtol=1e-4, atol=2e-5)
    assert abs(found - logits(base, params)).max() > 0.1
    assert len(adapted_modules(whole)) == 14, "seven matrices in each of two layers"


def test_a_begins_as_torch_s_linear_and_b_at_zero():
    model = Decoder(dataclasses.replace(decoder_config(width=64, heads=16), lora=ADAPTERS))
    own = lora.init(abstract_params(model), jax.random.key(0))["layers_1"]["q"]
    assert not own["lora_b"].any()
    assert own["lora_a"].shape == (64, 3)
    bound = 64**-0.5
    assert 0.9 * bound < abs(own["lora_a"]).max() <= bound
    assert abs(float(own["lora_a"].std()) - bound / 3**0.5) < 0.1 * bound


@pytest.mark.parametrize("execution", [Execution(), Execution(scan_layers=True, remat=True)])
def test_gradients_are_those_that_the_full_gradient_gives(execution):
    """L(W + s A B): dA = s dW B^T, dB = s A^T dW, in float64 of the merged model's gradient."""
    base, params = random_decoder(decoder_config())
    model, whole = adapted(params, execution=execution)
    frozen, trained = lora.split(whole)
    weights = np.random.default_rng(3).normal(size=(3, 9, ROWS)).astype(np.float32)

    def loss(model, params):
        return (model.apply({"params": params}, TOKENS_BS, POSITIONS_BS, ONES_BS) * weights).mean()

    grads = jax.jit(jax.grad(lambda own: loss(model, lora.joined(frozen, own))))(trained)
    full = jax.jit(jax.grad(lambda own: loss(base, own)))(lora.merged(ADAPTERS, whole))
    full, own = (flax.traverse_util.flatten_dict(x) for x in (full, trained))
    found = flax.traverse_util.flatten_dict(grads)
    assert len(found) == 28
    for path, grad in found.items():
        dw, a, b = (
            np.asarray(x, np.float64)
            for x in (
                full[(*path[:-1], "kernel")],
                own[(*path[:-1], "lora_a")],
                own[(*path[:-1], "lora_b")],
            )
        )
        expected = ADAPTERS.scale * (dw @ b.T if path[-1] == "lora_a" else a.T @ dw)
        np.testing.assert_allclose(grad, expected, rtol=1e-4, atol=2e-5 * abs(expected).max())


def test_targets_are_a_pattern_of_tree_paths():
    _, params = random_decoder(decoder_config())
    model, whole = adapted(params, Lora(2, 4.0, r"layers_1/(q|v)$"))
    assert adapted_modules(whole) == [("layers_1", "q"), ("layers_1", "v")]
    base = Decoder(decoder_config())
    merged = lora.merged(model.config.lora, whole)
    np.testing.assert_allclose(logits(model, whole), logits(base, merged), rtol=1e-4, atol=2e-5)
    np.testing.assert_array_equal(
        merged["layers_0"]["q"]["kernel"], params["layers_0"]["q"]["kernel"]
    )


def test_scanned_layers_are_alike():
    shapes = abstract_params(Decoder(decoder_config()))
    Lora(2, 4.0, "/(q|v)$").check(shapes, scanned=True)
    Lora(2, 4.0, "layers_1").check(shapes)
    with pytest.raises(InputError, match="matches other matrices in some layers"):
        Lora(2, 4.0, "layers_1").check(shapes, scanned=True)


@pytest.mark.parametrize(
    ("adapters", "words"),
    [
        (Lora(17, 4.0), r"config.lora.rank = 17: layers_0/\w+ is a matrix of .*: must be 8 or"),
        (Lora(2, 4.0, "qq_proj"), "targets = 'qq_proj': matches no matrix.*layers_0/"),
    ],
)
def test_adapters_that_a_model_cannot_have_are_refused(adapters, words):
    with pytest.raises(InputError, match=words):
        adapters.check(abstract_params(Decoder(decoder_config())))


def test_int8_is_a_scale_a_column_and_close():
    base, params = random_decoder(decoder_config(dtype="float32"))
    held = lora.quantized(jax.tree.map(jnp.copy, params))
    assert held["layers_0"]["up"]["kernel"].dtype == jnp.int8
    for name in ("q", "down"):
        kernel, was = held["layers_0"][name], params["layers_0"][name]["kernel"]
        back = kernel["kernel"].astype(jnp.float32) * kernel["kernel_scale"][None]
        assert (abs(back - was).max(axis=0) <= 0.501 * kernel["kernel_scale"]).all()
    model, whole = adapted(held, execution=Execution(frozen_dtype="int8"))
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), abstract_params(model))
    assert shapes == jax.tree.map(lambda x: (x.shape, x.dtype), whole)
    merged = lora.merged(ADAPTERS, whole)
    np.testing.assert_allclose(logits(model, whole), logits(base, merged), rtol=1e-4, atol=5e-5)
    _, plain = adapted(params)
    exact = logits(base, lora.merged(ADAPTERS, plain))
    assert 0 < abs(logits(model, whole) - exact).max() < 0.1 * abs(exact).max()
    frozen, trained = lora.split(whole)
    grads = jax.grad(lambda own: model.apply({"params": lora.joined(frozen, own)}, *rows()).sum())(
        trained
    )
    assert all(abs(x).max() > 0 for x in jax.tree.leaves(grads))


def rows():
    return TOKENS_BS, POSITIONS_BS, ONES_BS


@pytest.mark.parametrize(("frozen_dtype", "scanned"), [("", False), ("int8", True)])
def test_the_sampler_s_log_probs_are_the_trainer_s(frozen_dtype, scanned):
    """Merged (float32), and applied at every token (int8), the layers' frozen arrays in one."""
    _, params = random_decoder(decoder_config())
    params = lora.quantized(params) if frozen_dtype else params
    execution = Execution(frozen_dtype=frozen_dtype, scan_layers=scanned)
    model, whole = adapted(params, b_scale=0.1, execution=execution)
    assert merges(model.config) == (not frozen_dtype)
    task = Task(3, 4, 2, 6, SamplerSettings(temperature=0.8), eos_ids=(2,), pad_id=0)
    prompts = np.random.default_rng(4).integers(4, ROWS, (3, 4)).astype(np.int32)
    given = Prompts(
        prompts, np.full(3, 4, np.int32), np.arange(6, dtype=np.int32), np.ones(6, bool)
    )
    held = lora.held(model.config, dict(whole))
    assert ("layers" in held) == scanned
    drawn = sampler.compiled(model, task)(held, given, jax.random.key(5))
    tokens_BS = np.asarray(drawn.tokens_BS)
    positions_BS = np.arange(10, dtype=np.int32)[None].repeat(6, axis=0)
    all_BSV = model.apply({"params": whole}, tokens_BS, positions_BS, np.ones_like(tokens_BS))
    logp_BSV = jax.nn.log_softmax(all_BSV / 0.8)
    logp_BT = np.take_along_axis(np.asarray(logp_BSV)[:, 3:-1], tokens_BS[:, 4:, None], 2)[..., 0]
    written_BT = np.asarray(drawn.loss_mask_BT) > 0
    assert written_BT.sum() > 12
    np.testing.assert_allclose(
        np.asarray(drawn.behav_logp_BT)[written_BT], logp_BT[written_BT], atol=1e-4
    )


def test_the_backward_pass_makes_no_gradient_of_frozen_weights():
    """By the compiler: about two thirds of the full backward pass' products, and nothing of the
    size of a matrix that is left at its end."""
    wide = {"width": 64, "ffn_width": 256, "heads": 4, "head_dim": 16, "layers": 3}
    base, params = random_decoder(decoder_config(**wide))
    model, whole = adapted(params, **wide)
    frozen, trained = lora.split(whole)
    tokens = np.zeros((16, 64), np.int32)
    given = tokens, np.broadcast_to(np.arange(64, dtype=np.int32), tokens.shape), tokens

    def cost(model, of_whole, own):
        def loss(own, *rows):
            return model.apply({"params": of_whole(own)}, *rows).mean()

        compiled = jax.jit(jax.grad(loss)).lower(own, *given).compile()
        return compiled.cost_analysis()["flops"]

    full = cost(base, lambda own: own, params)
    of_adapters = cost(model, lambda own: lora.joined(frozen, own), trained)
    assert of_adapters < 0.78 * full


@pytest.mark.parametrize("targets", ["all-linear", "/(q|v|up)$", "layers_1/down"])
def test_adapters_under_the_matrices_are_the_same_model(targets):
    """As bfloat16 decodes: B under W, A of modules that read the same side by side."""
    _, params = random_decoder(decoder_config())
    adapters = Lora(3, 6.0, targets)
    model, whole = adapted(params, adapters)
    base = Decoder(decoder_config())
    found = logits(base, lora.under(adapters, whole))
    np.testing.assert_allclose(found, logits(model, whole), rtol=1e-4, atol=2e-5)
