"""The decoder against torch, and what must hold whatever the weights."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from remix_jax.models import huggingface
from remix_jax.models.decoder import Decoder
from remix_jax.types import positions
from tests.tiny_models import decoder_config, random_decoder

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
PLAIN = {"rope_type": "default", "rope_theta": 1e4}
PEERS = {
    "qwen2-tied": ("Qwen2", {"tie_word_embeddings": True, "rope_parameters": PLAIN}),
    "qwen2-untied": ("Qwen2", {"tie_word_embeddings": False, "rope_parameters": PLAIN}),
    "qwen3": ("Qwen3", {"tie_word_embeddings": False, "head_dim": 12, "rope_parameters": PLAIN}),
    "llama3": ("Llama", {"tie_word_embeddings": True, "rope_parameters": LLAMA3}),
}
VARIANTS = {
    "qwen2": {},
    "qwen3": {"architecture": "qwen3", "qkv_bias": False, "qk_norm": True},
    "llama": {"architecture": "llama", "qkv_bias": False, "tied_embeddings": False},
}
# Begin and end of the real tokens of three rows of 20 slots.
LAYOUTS = {
    "unpadded": [(0, 20), (0, 20), (0, 20)],
    "left": [(0, 20), (7, 20), (19, 20)],
    "right": [(0, 20), (0, 13), (0, 1)],
    "both": [(3, 20), (0, 15), (4, 9)],
}
S = 20


def layout_mask(layout):
    slots = np.arange(S)
    return np.stack([(slots >= begin) & (slots < end) for begin, end in LAYOUTS[layout]])


def batch(layout, vocab, seed=0):
    mask_BS = layout_mask(layout)
    tokens_BS = np.random.default_rng(seed).integers(0, vocab, mask_BS.shape)
    return jnp.asarray(tokens_BS), positions(jnp.asarray(mask_BS)), jnp.asarray(mask_BS)


@functools.cache
def compiled(model, **static):
    return jax.jit(functools.partial(model.apply, **static))


def apply(model, params, inputs, **static):
    return compiled(model, **static)({"params": params}, *inputs)


@pytest.fixture(scope="module", params=PEERS)
def peer(request, tmp_path_factory):
    """A torch model with random weights, norms and biases too, and the decoder loaded from it."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    family, settings = PEERS[request.param]
    config = getattr(transformers, f"{family}Config")(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        max_position_embeddings=64,
        **settings,
    )
    torch.manual_seed(0)
    network = getattr(transformers, f"{family}ForCausalLM")(config).float().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    directory = tmp_path_factory.mktemp(request.param)
    network.save_pretrained(directory)
    return network, *huggingface.load(str(directory))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_logits_equal_torch(peer, layout):
    torch = pytest.importorskip("torch")
    network, model, params = peer
    tokens_BS, positions_BS, mask_BS = batch(layout, 50)
    with torch.no_grad():
        want = network(
            torch.tensor(np.asarray(tokens_BS)),
            attention_mask=torch.tensor(np.asarray(mask_BS)).long(),
            position_ids=torch.tensor(np.asarray(positions_BS)).long(),
        ).logits.numpy()
    got = np.asarray(apply(model, params, (tokens_BS, positions_BS, mask_BS)))
    assert got.dtype == np.float32
    real_BS = np.asarray(mask_BS)
    np.testing.assert_allclose(got[real_BS], want[real_BS], atol=1e-4)
    assert np.isfinite(got).all()
    assert want[real_BS].std() > 0.3  # the comparison is not one of zeros


def test_gradient_equals_torch(peer):
    torch = pytest.importorskip("torch")
    network, model, params = peer
    tokens_BS, positions_BS, mask_BS = batch("unpadded", 50)
    weights = np.random.default_rng(1).normal(size=(*tokens_BS.shape, 50)).astype(np.float32)

    def loss(params):
        logits = model.apply({"params": params}, tokens_BS, positions_BS, mask_BS)
        return (jax.nn.log_softmax(logits) * weights).mean()

    network.zero_grad()
    logits = network(torch.tensor(np.asarray(tokens_BS))).logits
    (torch.log_softmax(logits, -1) * torch.tensor(weights)).mean().backward()
    ours = jax.jit(jax.grad(loss))(params)
    theirs = {name: p.grad.numpy() for name, p in network.named_parameters()}
    for got, want in (
        (ours["embed"]["embedding"], theirs["model.embed_tokens.weight"]),
        (ours["layers_0"]["k"]["kernel"], theirs["model.layers.0.self_attn.k_proj.weight"].T),
        (ours["layers_1"]["down"]["kernel"], theirs["model.layers.1.mlp.down_proj.weight"].T),
        (ours["layers_0"]["attn_norm"]["scale"], theirs["model.layers.0.input_layernorm.weight"]),
    ):
        np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max() + 1e-8, rtol=1e-3)


@pytest.mark.parametrize("variant", VARIANTS)
def test_padding_does_not_change_a_row(variant):
    model, params = random_decoder(decoder_config(**VARIANTS[variant]))
    text = np.random.default_rng(0).integers(0, 60, 9)
    outputs = []
    for begin, garbage in ((0, 1), (5, 2), (11, 3)):
        tokens_S = np.random.default_rng(garbage).integers(0, 60, S)
        tokens_S[begin : begin + 9] = text
        mask_BS = (np.arange(S) >= begin) & (np.arange(S) < begin + 9)
        mask_BS = jnp.asarray(mask_BS)[None]
        inputs = (jnp.asarray(tokens_S)[None], positions(mask_BS), mask_BS)
        outputs.append(apply(model, params, inputs)[0, begin : begin + 9])
    np.testing.assert_allclose(outputs[1], outputs[0], atol=2e-5)
    np.testing.assert_allclose(outputs[2], outputs[0], atol=2e-5)


def test_a_slot_depends_on_itself_and_the_real_slots_before_it_only():
    model, params = random_decoder(decoder_config(tied_embeddings=False))
    begin, t = 3, 11
    tokens_BS = jnp.arange(S)[None]  # one embedding row a slot
    mask_BS = (tokens_BS >= begin) & (tokens_BS != 7)  # padding before, and a hole

    def logit_sum(embedding):
        tree = {**params, "embed": {"embedding": embedding}}
        return model.apply({"params": tree}, tokens_BS, positions(mask_BS), mask_BS)[0, t].sum()

    gradient_VD = jax.jit(jax.grad(logit_sum))(params["embed"]["embedding"])
    influences = np.abs(gradient_VD[:S]).max(axis=1) > 0
    np.testing.assert_array_equal(influences, mask_BS[0] & (np.arange(S) <= t))


@pytest.mark.parametrize("variant", VARIANTS)
def test_last_slots_equal_a_slice(variant):
    model, params = random_decoder(decoder_config(**VARIANTS[variant]))
    inputs = batch("both", 60)
    whole = apply(model, params, inputs, method="hidden")
    for last in (1, 6, S):
        part = apply(model, params, inputs, last=last, method="hidden")
        assert part.shape[1] == last
        np.testing.assert_allclose(part, whole[:, -last:], atol=2e-5)


def test_an_empty_row_gives_finite_values_and_gradients():
    model, params = random_decoder(decoder_config())
    tokens_BS, _, _ = batch("unpadded", 60)
    nothing_BS = jnp.zeros_like(tokens_BS, bool)

    def loss(params):
        inputs = (tokens_BS, positions(nothing_BS), nothing_BS)
        return model.apply({"params": params}, *inputs).sum()

    value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((value, gradient)))


def test_critic_starts_at_zero_and_shares_the_body():
    config = decoder_config(tied_embeddings=False)
    policy, params = random_decoder(config)
    critic = Decoder(config, head="value")
    inputs = batch("left", 60)
    critic_params = jax.jit(critic.init)(jax.random.key(0), *inputs)["params"]
    body = {name: tree for name, tree in params.items() if name != "lm_head"}
    assert set(critic_params) == set(body) | {"value_head"}
    np.testing.assert_array_equal(apply(critic, critic_params, inputs), np.zeros((3, S)))
    head = {"kernel": jnp.ones((16, 1)), "bias": jnp.full((1,), 2.0)}
    values_BS = apply(critic, {**body, "value_head": head}, inputs)
    x_BSD = apply(policy, params, inputs, method="hidden")
    np.testing.assert_allclose(values_BS, x_BSD.sum(-1) + 2.0, atol=2e-5)


def test_bfloat16_compute_stays_near_float32():
    config = decoder_config()
    model, params = random_decoder(config)
    half = Decoder(dataclasses.replace(config, dtype="bfloat16"))
    inputs = batch("left", 60)

    def logits_and_gradient(decoder):
        def loss(params):
            logits_BSV = decoder.apply({"params": params}, *inputs)
            return (jax.nn.log_softmax(logits_BSV)[..., 7] * inputs[2]).mean(), logits_BSV

        gradient, logits_BSV = jax.jit(jax.grad(loss, has_aux=True))(params)
        return logits_BSV[inputs[2]], gradient

    for rough, exact in zip(logits_and_gradient(half), logits_and_gradient(model), strict=True):
        assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(rough))
        rough, exact = ravel_pytree(rough)[0], ravel_pytree(exact)[0]
        relative_error = np.linalg.norm(rough - exact) / np.linalg.norm(exact)
        assert 1e-4 < relative_error < 0.06


def test_gradient_on_eight_devices_equals_one():
    model, params = random_decoder(decoder_config())
    tokens_BS = jnp.asarray(np.random.default_rng(0).integers(0, 60, (8, S)))
    mask_BS = jnp.ones_like(tokens_BS, bool)

    @jax.jit
    def gradient(params, tokens_BS, mask_BS):
        def loss(params):
            inputs = (tokens_BS, positions(mask_BS), mask_BS)
            return (model.apply({"params": params}, *inputs) ** 2).mean()

        return jax.grad(loss)(params)

    want = gradient(params, tokens_BS, mask_BS)
    mesh = Mesh(np.asarray(jax.devices()[:8]).reshape(4, 2), ("data", "model"))

    def place(x, *names):
        return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*names)))

    spread = jax.tree.map(lambda x: place(x, *("model", None)[: x.ndim]), params)
    got = gradient(spread, place(tokens_BS, "data"), place(mask_BS, "data"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, want)
