"""Model directories, read and written: goldens, and round trips through torch and meshes."""

import functools
import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from jax.sharding import Mesh

from remix_jax.models import hf_tokenizer, huggingface
from remix_jax.models.decoder import Decoder, RopeScaling
from remix_jax.sharding import make_mesh, shardings
from tests import tiny_models
from tests.tiny_models import edit_json

GOLDENS = ("qwen2_tied", "qwen3_untied_sharded", "llama_tied_rope3", "qwen2_untied_bf16")


def logits_of(model, params, tokens_BS, mask_BS):
    positions_BS = np.maximum(np.cumsum(mask_BS, axis=1) - 1, 0)
    run = jax.jit(lambda p, *rows: model.apply({"params": p}, *rows))
    return np.asarray(run(params, tokens_BS, positions_BS, mask_BS))


def ragged_rows(vocab_size):
    rng = np.random.default_rng(1)
    mask_BS = (np.arange(20)[None] >= np.array([0, 5, 13])[:, None]).astype(np.int32)
    return rng.integers(0, vocab_size, (3, 20)).astype(np.int32), mask_BS


def torch_logits(directory, tokens_BS, mask_BS, dtype="float32"):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        directory, dtype=getattr(torch, dtype), attn_implementation="eager", local_files_only=True
    ).eval()
    tokens, mask = torch.tensor(tokens_BS), torch.tensor(mask_BS)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        out = model(input_ids=tokens, attention_mask=mask, position_ids=positions)
    return out.logits.float().numpy()


def torch_directory(kind, folder, dtype="float32", **changes):
    """A random torch model with nothing left at its initial value, as save_pretrained writes it."""
    torch = pytest.importorskip("torch")
    import transformers

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 60}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
    special = {"bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0}
    own = {
        "Qwen2": {"tie_word_embeddings": True},
        "Qwen3": {"tie_word_embeddings": False, "head_dim": 6},
        "Llama": {
            "tie_word_embeddings": False,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 5e5,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            },
        },
    }[kind]
    config = getattr(transformers, f"{kind}Config")(**sizes, **heads, **special, **own, **changes)
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForCausalLM")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    return folder


# --- goldens ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GOLDENS)
def test_golden_logits_and_token_logps(goldens, name):
    model, params = huggingface.load(goldens / "models" / name)
    vectors = np.load(goldens / "models" / f"{name}.npz")
    # Both sides hold the same texts; token_logp of the left one is NaN in the files.
    wanted = vectors["right/token_logp"][vectors["right/token_logp_mask"] == 1]
    for side in ("left", "right"):
        tokens, mask = vectors[f"{side}/input_ids"], vectors[f"{side}/attention_mask"]
        logits = logits_of(model, params, tokens, mask)
        at = mask == 1
        np.testing.assert_allclose(logits[at], vectors[f"{side}/logits"][at], atol=1e-4, rtol=0)
        logp = np.asarray(jax.nn.log_softmax(logits))
        token_logp = np.take_along_axis(logp[:, :-1], tokens[:, 1:, None], axis=2)[..., 0]
        at = vectors[f"{side}/token_logp_mask"][:, 1:] == 1
        np.testing.assert_allclose(token_logp[at], wanted, atol=5e-5, rtol=0)
    tokens = vectors["unpadded1/input_ids"][None]
    logits = logits_of(model, params, tokens, np.ones_like(tokens))[0]
    np.testing.assert_allclose(logits, vectors["unpadded1/logits"], atol=1e-4, rtol=0)


def test_golden_bfloat16_weights_keep_every_bit(goldens, tmp_path):
    source = goldens / "models" / "qwen2_untied_bf16"
    model, params = huggingface.load(source, dtype="bfloat16")
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}
    vectors = np.load(goldens / "models" / "qwen2_untied_bf16.npz")
    tokens, mask = vectors["right/input_ids"], vectors["right/attention_mask"]
    logits = logits_of(model, params, tokens, mask)
    assert logits.dtype == np.float32
    gap = np.abs(logits - vectors["right/logits_bf16_compute"])[mask == 1]
    assert gap.max() < 0.5
    huggingface.save(model, params, tmp_path / "out", like=source)
    before = safetensors.numpy.load_file(source / "model.safetensors")
    after = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert after[name].dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(after[name].view(np.uint16), value.view(np.uint16))


def test_golden_tokenizer_vectors(goldens):
    vectors = json.loads((goldens / "models" / "tokenizer_vectors.json").read_text())
    for name in (*GOLDENS, "tokenizer"):
        vocabulary = hf_tokenizer.load_vocabulary(goldens / "models" / name)
        tokenizer = vocabulary.tokenizer
        for case in vectors["encode"]:
            ids = tokenizer(case["text"], add_special_tokens=False)["input_ids"]
            assert ids == case["ids"]
            assert tokenizer.decode(ids) == case["decoded"]
            skipped = tokenizer.decode(ids, skip_special_tokens=True)
            assert skipped == case["decoded_skip_special"]
        for case in vectors["chat"]:
            ids = tokenizer.apply_chat_template(
                case["messages"],
                add_generation_prompt=case["add_generation_prompt"],
                return_dict=False,
            )
            assert ids == case["ids"]
        assert vocabulary.pad_id == vectors["pad_token_id"]
        assert vocabulary.eos_ids == (2,)


# --- round trips -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["Qwen2", "Qwen3", "Llama"])
def test_torch_to_jax_to_torch(tmp_path, kind):
    source = torch_directory(kind, tmp_path / "source")
    rows = ragged_rows(60)
    at = rows[1] == 1
    wanted = torch_logits(source, *rows)
    assert np.std(wanted[at]) > 0.5  # the comparison means something
    model, params = huggingface.load(source)
    ours = logits_of(model, params, *rows)
    np.testing.assert_allclose(ours[at], wanted[at], atol=1e-4, rtol=0)
    for like in (None, source):
        huggingface.save(model, params, tmp_path / "out", like=like)
        back = torch_logits(tmp_path / "out", *rows)
        np.testing.assert_allclose(back[at], wanted[at], atol=1e-4, rtol=0)
        assert huggingface.read_config(tmp_path / "out") == model.config


@pytest.mark.parametrize("kind", ["Qwen2", "Llama"])
def test_both_spellings_of_config_are_read_alike(tmp_path, kind):
    source = torch_directory(kind, tmp_path / "source")
    path = source / "config.json"
    rope = dict(json.loads(path.read_text())["rope_parameters"])
    config = huggingface.read_config(source)
    theta = rope.pop("rope_theta")
    scaling = rope if rope["rope_type"] != "default" else None
    edit_json(
        path,
        rope_parameters=...,
        dtype=...,
        layer_types=...,
        rope_theta=theta,
        rope_scaling=scaling,
        torch_dtype="float32",
        transformers_version="4.51.0",
    )
    assert huggingface.read_config(source) == config
    if scaling is not None:
        edit_json(path, rope_scaling={"type": rope.pop("rope_type"), **rope})
        assert huggingface.read_config(source) == config


def test_our_config_has_torchs_values(tmp_path):
    """What transformers makes of a config.json written without `like` is what was meant."""
    transformers = pytest.importorskip("transformers")
    scaling = RopeScaling(4.0, 1.5, 5.0, 32)
    config = tiny_models.decoder_config(
        architecture="llama",
        qkv_bias=False,
        tied_embeddings=False,
        rope_theta=3e5,
        norm_eps=1e-5,
        rope_scaling=scaling,
    )
    huggingface.save(*tiny_models.random_decoder(config), tmp_path / "out")
    theirs = transformers.AutoConfig.from_pretrained(tmp_path / "out", local_files_only=True)
    assert theirs.architectures == ["LlamaForCausalLM"]
    assert str(theirs.dtype).endswith("float32")
    assert theirs.rms_norm_eps == 1e-5
    assert theirs.rope_parameters["rope_theta"] == 3e5
    assert theirs.rope_parameters["rope_type"] == "llama3"
    assert theirs.rope_parameters["original_max_position_embeddings"] == 32
    assert huggingface.read_config(tmp_path / "out") == config


def test_bfloat16_export_is_bfloat16_for_torch(tmp_path):
    source = torch_directory("Qwen2", tmp_path / "source", dtype="bfloat16")
    model, params = huggingface.load(source, dtype="bfloat16")
    huggingface.save(model, params, tmp_path / "out", like=source)
    huggingface.save(model, params, tmp_path / "plain")
    rows = ragged_rows(60)
    wanted = torch_logits(source, *rows)
    for out in ("out", "plain"):
        transformers = pytest.importorskip("transformers")
        loaded = transformers.AutoConfig.from_pretrained(tmp_path / out, local_files_only=True)
        assert str(loaded.dtype) == "torch.bfloat16"
        np.testing.assert_array_equal(torch_logits(tmp_path / out, *rows), wanted)


def test_sharded_save_loads_here_and_in_torch(exported, tmp_path, monkeypatch):
    model, params = huggingface.load(exported)
    monkeypatch.setattr(huggingface, "SHARD_BYTES", 6_000)
    huggingface.save(model, params, tmp_path / "out", like=exported)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 2
    assert files == sorted(p.name for p in (tmp_path / "out").glob("*.safetensors"))
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in jax.tree.leaves(params))
    _, again = huggingface.load(tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, again, params)
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    rows = ragged_rows(60)
    ours = logits_of(model, params, *rows)[rows[1] == 1]
    theirs = torch_logits(tmp_path / "out", *rows)[rows[1] == 1]
    np.testing.assert_allclose(theirs, ours, atol=1e-4, rtol=0)


def test_loaded_tree_is_the_decoders_own(exported):
    model, params = huggingface.load(exported)
    slot = jnp.zeros((1, 1), jnp.int32)
    fresh = Decoder(model.config).init(jax.random.key(0), slot, slot, slot)["params"]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, fresh)
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("axes", [(1, 4, 2), (1, 8, 1), (1, 1, 8)], ids=str)
def test_load_onto_a_mesh_reads_slices_and_save_puts_them_together(
    exported, tmp_path, monkeypatch, axes
):
    """No device, and no read, ever has a whole matrix that the rules divide."""
    model, plain = huggingface.load(exported)
    mesh = make_mesh(axes)
    wanted, biggest = shardings(plain, mesh), {}
    read = huggingface._read

    def noted(file, name, index):
        part = read(file, name, index)
        biggest[name] = max(biggest.get(name, 0), part.size)
        return part

    monkeypatch.setattr(huggingface, "_read", noted)
    _, params = huggingface.load(exported, mesh=mesh)
    for path, x in jax.tree_util.tree_leaves_with_path(params):
        of_tree = functools.reduce(lambda node, key: node[key.key], path, wanted)
        assert x.sharding == of_tree
        name = huggingface.tensor_name(tuple(key.key for key in path))
        assert biggest[name] == x.addressable_shards[0].data.size
    gate = params["layers_0"]["gate"]["kernel"]
    assert gate.addressable_shards[0].data.size * 8 == gate.size
    jax.tree.map(np.testing.assert_array_equal, params, plain)
    huggingface.save(model, params, tmp_path / "out", like=exported)
    jax.tree.map(np.testing.assert_array_equal, huggingface.load(tmp_path / "out")[1], plain)


def test_a_mesh_without_the_rules_axes_holds_copies(exported):
    devices = np.array(jax.devices())
    _, params = huggingface.load(exported, mesh=Mesh(devices, ("data",)))
    for x in jax.tree.leaves(params):
        assert x.sharding.is_fully_replicated
        assert x.devices() == set(devices)
