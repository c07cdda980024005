"""Model directories: goldens, round trips through torch, and every way a directory can be wrong."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from remix_jax.errors import InputError
from remix_jax.models import hf_config, huggingface
from remix_jax.models.decoder import Decoder, RopeScaling
from remix_jax.sharding import make_mesh, shardings
from tests import tiny_models

GOLDENS = ("qwen2_tied", "qwen3_untied_sharded", "llama_tied_rope3", "qwen2_untied_bf16")


def edit_json(path, **changes):
    """Sets fields of a JSON file; a value of `...` removes the field."""
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))


def refused(function, *args, words, **kwargs):
    """Calls `function`, which must refuse in one line that has all of `words`."""
    with pytest.raises(InputError) as caught:
        function(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    for word in words:
        assert str(word) in message, message


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


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A saved tiny Qwen2 with a tokenizer; never written to by the tests."""
    folder = tmp_path_factory.mktemp("exported")
    source = tiny_models.write_tokenizer(folder / "tokenizer")
    model, params = tiny_models.random_decoder(tiny_models.decoder_config())
    huggingface.save(model, params, folder / "model")
    for file in source.iterdir():
        (folder / "model" / file.name).write_bytes(file.read_bytes())
    return folder / "model"


@pytest.fixture
def copy(exported, tmp_path):
    """A copy of `exported` for a test to damage."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for file in exported.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
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
        tokenizer = huggingface.load_tokenizer(goldens / "models" / name)
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
        assert huggingface.pad_id(tokenizer) == vectors["pad_token_id"]
    assert huggingface.eos_ids(goldens / "models" / "qwen2_tied", tokenizer) == (2,)


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


def test_load_onto_a_mesh_reads_slices_and_save_puts_them_together(exported, tmp_path, monkeypatch):
    """No device, and no read, ever has a whole matrix that the rules divide."""
    model, plain = huggingface.load(exported)
    mesh = make_mesh((1, 4, 2))
    wanted, biggest = shardings(plain, mesh), {}
    read = huggingface._Stored.read

    def noted(tensor, index):
        part = read(tensor, index)
        biggest[tensor.name] = max(biggest.get(tensor.name, 0), part.size)
        return part

    monkeypatch.setattr(huggingface._Stored, "read", noted)
    _, params = huggingface.load(exported, mesh=mesh)
    for path, x in jax.tree_util.tree_leaves_with_path(params):
        of_tree = functools.reduce(lambda node, key: node[key.key], path, wanted)
        assert x.sharding == of_tree
        name = huggingface._tensor_name(tuple(key.key for key in path))
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


@pytest.mark.parametrize("axes", [("a", None), (None, "a"), ("a", "b")])
def test_each_device_gets_its_slice_of_a_transposed_tensor(tmp_path, axes):
    stored = np.arange(8 * 16, dtype=np.float32).reshape(8, 16)
    safetensors.numpy.save_file({"w": stored}, tmp_path / "w.safetensors")
    sharding = NamedSharding(
        Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("a", "b")), PartitionSpec(*axes)
    )
    tensor = huggingface._Stored(tmp_path / "w.safetensors", "w", (8, 16), "F32")
    x = huggingface._place(tensor, ("q", "kernel"), (16, 8), "float32", sharding)
    np.testing.assert_array_equal(x, stored.T)
    assert x.sharding == sharding


# --- what a damaged or foreign directory says ------------------------------------------------


def test_missing_directory_and_files(copy, tmp_path):
    refused(huggingface.load, tmp_path / "nowhere", words=["nowhere", "no such model directory"])
    refused(huggingface.load, copy / "config.json", words=["no such model directory"])
    (copy / "model.safetensors").unlink()
    refused(huggingface.load, copy, words=[copy, "model.safetensors.index.json"])
    (copy / "config.json").unlink()
    refused(huggingface.load, copy, words=["config.json", "no such file"])


@pytest.mark.parametrize(
    "content", ["", '{"model_type": "qwen2",\n "hid', "[1]", "\x80", "[" * 9999]
)
def test_damaged_config(copy, content):
    (copy / "config.json").write_bytes(content.encode("latin-1"))
    refused(huggingface.load, copy, words=["config.json", "JSON"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "mistral"}, ["model_type", "mistral", "qwen2, qwen3, llama"]),
        ({"model_type": ...}, ["model_type", "qwen2, qwen3, llama"]),
        ({"architectures": ["Qwen2ForRewardModel"]}, ["architectures", "Qwen2ForCausalLM"]),
        ({"hidden_act": "gelu"}, ["hidden_act", "gelu", "silu"]),
        ({"quantization_config": {"bits": 4}}, ["quantization_config"]),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2}}, ["rope_scaling", "yarn", "llama3"]),
        ({"rope_scaling": {"rope_type": "llama3"}}, ["rope_scaling", "factor", "missing"]),
        ({"rope_scaling": {"full_attention": {}}}, ["rope_scaling", "one object"]),
        ({"rope_parameters": {"rope_type": "linear"}}, ["rope_parameters", "linear"]),
        ({"rope_parameters": {"rope_theta": -1}}, ["rope_theta", "-1", "positive"]),
        ({"rope_parameters": 3}, ["rope_parameters"]),
        ({"rope_theta": "big"}, ["rope_theta", "'big'"]),
        ({"partial_rotary_factor": 0.5}, ["partial_rotary_factor", "0.5"]),
        ({"use_sliding_window": True, "sliding_window": 8}, ["use_sliding_window", "false"]),
        ({"layer_types": ["sliding_attention"] * 2}, ["layer_types", "full_attention"]),
        ({"layer_types": 7}, ["layer_types"]),
        ({"hidden_size": ...}, ["hidden_size", "missing"]),
        ({"hidden_size": 16.5}, ["hidden_size", "16.5", "positive integer"]),
        ({"num_hidden_layers": True}, ["num_hidden_layers", "True"]),
        ({"vocab_size": 0}, ["vocab_size", "positive integer"]),
        ({"rms_norm_eps": float("nan")}, ["rms_norm_eps", "nan"]),
        ({"num_key_value_heads": 3}, ["num_key_value_heads 3", "num_attention_heads 4"]),
        ({"head_dim": 5}, ["head_dim", "even"]),
        ({"tie_word_embeddings": "yes"}, ["tie_word_embeddings", "true or false"]),
        (
            {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "attention_bias": True},
            ["attention_bias", "llama"],
        ),
        (
            {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "mlp_bias": True},
            ["mlp_bias", "llama"],
        ),
    ],
)
def test_unsupported_fields_are_named(copy, changes, words):
    edit_json(copy / "config.json", **changes)
    refused(huggingface.load, copy, words=[copy / "config.json", *words])


@pytest.mark.parametrize(
    "changes",
    [
        {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28},
        {"use_sliding_window": True, "sliding_window": None},
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2},
        {"use_sliding_window": True, "sliding_window": 8, "layer_types": ["full_attention"] * 2},
        {"architectures": ..., "head_dim": ..., "num_key_value_heads": 2, "rope_theta": ...},
        {"attention_bias": True, "partial_rotary_factor": 1.0},
        {"rope_scaling": {"type": "default"}},
    ],
)
def test_fields_that_change_nothing_are_accepted(copy, changes):
    config = huggingface.read_config(copy)
    edit_json(copy / "config.json", **changes)
    assert huggingface.read_config(copy) == config


def rewrite(folder, change):
    path = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    change(tensors)
    safetensors.numpy.save_file(tensors, path, metadata={"format": "pt"})


def test_tensors_that_do_not_fit_the_config(copy):
    name, wrong = "model.layers.1.self_attn.k_proj.weight", np.zeros((8, 12), np.float32)
    rewrite(copy, lambda tensors: tensors.update({name: wrong}))
    refused(huggingface.load, copy, words=[name, "(8, 12)", "(8, 16)"])
    rewrite(copy, lambda tensors: tensors.update({name: np.zeros((8, 16), np.int8)}))
    refused(huggingface.load, copy, words=[name, "I8", "BF16"])
    rewrite(copy, lambda tensors: tensors.pop(name))
    refused(huggingface.load, copy, words=[name, "missing", "(8, 16)"])
    edit_json(copy / "config.json", num_hidden_layers=1)
    refused(huggingface.load, copy, words=["model.layers.1.", "no place"])


def test_stored_copy_of_a_tied_matrix(copy):
    _, params = huggingface.load(copy)
    rewrite(copy, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].copy()}))
    old = "model.layers.0.self_attn.rotary_emb.inv_freq"  # in the files of early Llamas
    rewrite(copy, lambda t: t.update({old: np.zeros(2, np.float32)}))
    jax.tree.map(np.testing.assert_array_equal, huggingface.load(copy)[1], params)
    rewrite(copy, lambda t: t["lm_head.weight"].__iadd__(1))
    refused(huggingface.load, copy, words=["lm_head.weight", "tie_word_embeddings"])


@pytest.mark.parametrize("keep", [0, 4, 200, -1])
def test_truncated_weights(copy, keep):
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    refused(huggingface.load, copy, words=[path, "damaged"])


def test_damaged_shard_index(copy):
    path, index = copy / "model.safetensors", copy / "model.safetensors.index.json"
    names = list(safetensors.numpy.load_file(path))
    path.rename(copy / "part.safetensors")
    whole = dict.fromkeys(names, "part.safetensors")
    for weight_map, words in [
        (None, ["weight_map"]),
        ({}, ["weight_map"]),
        (whole | {names[0]: "gone.safetensors"}, ["gone.safetensors", "missing or damaged"]),
        (whole | {names[0]: "../part.safetensors"}, ["../part.safetensors", "file beside it"]),
        (dict.fromkeys(names[1:], "part.safetensors"), ["does not list", names[0]]),
        (whole | {"extra.weight": "part.safetensors"}, ["extra.weight", "does not hold"]),
    ]:
        index.write_text(json.dumps({"weight_map": weight_map}))
        refused(huggingface.load, copy, words=[index.name if words[-1] else "", *words][1:])
    index.write_text("{")
    refused(huggingface.load, copy, words=[index, "JSON"])


def test_unknown_dtype(exported):
    refused(huggingface.load, exported, dtype="float8", words=["float8", "bfloat16"])


# --- where save writes -----------------------------------------------------------------------


def test_save_replaces_only_what_it_made(exported, tmp_path):
    model, params = huggingface.load(exported)
    out = tmp_path / "deep" / "out"
    huggingface.save(model, params, out, like=exported)
    twice = jax.tree.map(lambda x: 2 * x, params)
    huggingface.save(model, twice, out, like=out)  # over itself, tokenizer and all
    jax.tree.map(np.testing.assert_array_equal, huggingface.load(out)[1], twice)
    assert (out / "tokenizer.json").is_file()
    assert [p.name for p in out.parent.iterdir()] == ["out"]
    (out / "notes.txt").write_text("mine")
    refused(huggingface.save, model, params, out, words=[out, "notes.txt"])
    (out / "notes.txt").unlink()
    edit_json(out / "config.json", saved_by=...)  # as any downloaded model
    refused(huggingface.save, model, params, out, words=[out, "not written over"])
    (out / "config.json").unlink()
    refused(huggingface.check_target, out, words=[out, "not written over"])
    jax.tree.map(
        np.testing.assert_array_equal,
        safetensors.numpy.load_file(out / "model.safetensors")["model.norm.weight"],
        np.asarray(twice["final_norm"]["scale"]),
    )
    refused(huggingface.check_target, exported / "config.json", words=["not written over"])
    (tmp_path / "empty").mkdir()
    huggingface.save(model, params, tmp_path / "empty")
    huggingface.load(tmp_path / "empty")


def test_interrupted_save_leaves_the_old_one(exported, tmp_path, monkeypatch):
    model, params = huggingface.load(exported)
    huggingface.save(model, params, tmp_path / "out")
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}

    def interrupt(*args):
        raise KeyboardInterrupt

    for step in ("_write_json", "_swap"):
        monkeypatch.setattr(huggingface, step, interrupt)
        with pytest.raises(KeyboardInterrupt):
            huggingface.save(model, jax.tree.map(jnp.zeros_like, params), tmp_path / "out")
        monkeypatch.undo()
    rename = pathlib.Path.rename
    monkeypatch.setattr(
        pathlib.Path,
        "rename",
        lambda self, to: interrupt() if self.suffix == ".partial" else rename(self, to),
    )
    with pytest.raises(KeyboardInterrupt):
        huggingface.save(model, jax.tree.map(jnp.zeros_like, params), tmp_path / "out")
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_save_writes_the_same_bytes_again(exported, tmp_path):
    model, params = huggingface.load(exported)
    for name in ("one", "two"):
        huggingface.save(model, params, tmp_path / name, like=exported)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
    assert b'"__metadata__":{"format":"pt"}' in (exported / "model.safetensors").read_bytes()[:200]


def test_save_keeps_the_config_and_files_of_like(copy, tmp_path):
    model, params = huggingface.load(copy, dtype="bfloat16")
    edit_json(copy / "config.json", torch_dtype="float32", dtype="float32", max_window_layers=28)
    (copy / "generation_config.json").write_text('{"eos_token_id": [2, 5]}')
    (copy / "README.md").write_text("not ours to copy")
    huggingface.save(model, params, tmp_path / "out", like=copy)
    kept = json.loads((tmp_path / "out" / "config.json").read_text())
    assert kept["torch_dtype"] == kept["dtype"] == "bfloat16"
    assert kept["max_window_layers"] == 28
    carried = {"generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {"config.json", "model.safetensors"} | carried
    for name in carried:
        assert (tmp_path / "out" / name).read_bytes() == (copy / name).read_bytes()
    edit_json(copy / "config.json", torch_dtype=..., dtype=...)
    huggingface.save(model, params, tmp_path / "out", like=copy)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


def test_save_refuses_another_model(copy, tmp_path):
    model, params = huggingface.load(copy)
    edit_json(copy / "config.json", rope_theta=5e5)
    refused(huggingface.save, model, params, tmp_path / "out", like=copy, words=["rope_theta"])
    partial = {name: value for name, value in params.items() if name != "final_norm"}
    with pytest.raises(ValueError, match="final_norm/scale is missing"):
        huggingface.save(model, partial, tmp_path / "out")
    with pytest.raises(ValueError, match="lm_head/kernel is unknown"):
        huggingface.save(model, params | {"lm_head": {"kernel": jnp.ones(2)}}, tmp_path / "out")
    with pytest.raises(ValueError, match=r"final_norm/scale has shape \(2,\), not \(16,\)"):
        huggingface.save(model, params | {"final_norm": {"scale": jnp.ones(2)}}, tmp_path / "out")
    with pytest.raises(ValueError, match="head 'lm'"):
        huggingface.save(Decoder(model.config, head="value"), params, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- tokenizer -------------------------------------------------------------------------------


def test_tokenizer_file_is_obeyed(exported):
    tokenizer = huggingface.load_tokenizer(exported)  # beside a config.json of model_type qwen2
    text = "a  b\n\n\n12  "
    assert [tiny_models.VOCABULARY[i] for i in tokenizer(text)["input_ids"]] == ["<s>", *text]


def test_chat_template_from_a_file_of_its_own(tmp_path):
    folder = tiny_models.write_tokenizer(tmp_path, chat_template=None)
    refused(huggingface.load_tokenizer, folder, words=[folder, "no chat template", "jinja"])
    (folder / "chat_template.jinja").write_text(tiny_models.CHAT_TEMPLATE)
    assert huggingface.load_tokenizer(folder).chat_template == tiny_models.CHAT_TEMPLATE


@pytest.mark.parametrize(
    "template", ["{% for m in messages %}", "{{ raise_exception('no\nuser') }}", "{{ 1 / 0 }}"]
)
def test_chat_template_that_fails(tmp_path, template):
    folder = tiny_models.write_tokenizer(tmp_path, chat_template=template)
    refused(huggingface.load_tokenizer, folder, words=[folder, "chat template", "render"])


def test_damaged_tokenizer(tmp_path):
    folder = tiny_models.write_tokenizer(tmp_path / "model")
    whole = (folder / "tokenizer.json").read_text()
    for content, words in [
        (whole[: len(whole) // 2], ["tokenizer.json", "JSON"]),
        ('{"version": "1.0"}', ["damaged tokenizer"]),
        (whole.replace('"WordLevel"', '"Unheard"'), ["damaged tokenizer"]),
    ]:
        (folder / "tokenizer.json").write_text(content)
        refused(huggingface.load_tokenizer, folder, words=[folder, *words])
    (folder / "tokenizer.json").unlink()
    refused(huggingface.load_tokenizer, folder, words=["tokenizer.json", "no such file"])
    (tiny_models.write_tokenizer(folder) / "tokenizer_config.json").unlink()
    refused(huggingface.load_tokenizer, folder, words=["tokenizer_config.json", "no such file"])
    refused(huggingface.load_tokenizer, tmp_path / "none", words=["no such model directory"])


def test_remote_code_is_not_run(tmp_path):
    folder = tiny_models.write_tokenizer(
        tmp_path, auto_map={"AutoTokenizer": [None, "evil.Evil"]}, tokenizer_class="Evil"
    )
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    huggingface.load_tokenizer(folder)
    assert not (tmp_path / "ran").exists()


def test_token_beyond_the_vocabulary(copy):
    edit_json(copy / "config.json", vocab_size=len(tiny_models.VOCABULARY))
    huggingface.load_tokenizer(copy)
    edit_json(copy / "config.json", vocab_size=len(tiny_models.VOCABULARY) - 1)
    refused(huggingface.load_tokenizer, copy, words=["vocab_size", "'C'"])


def test_every_eos_id(copy):
    tokenizer = huggingface.load_tokenizer(copy)
    generation = copy / "generation_config.json"
    assert huggingface.eos_ids(copy, tokenizer) == (tiny_models.END,)
    edit_json(copy / "config.json", eos_token_id=7)
    assert huggingface.eos_ids(copy, tokenizer) == (7,)
    for value, wanted in [([5, 3, 5], (5, 3)), (0, (0,)), (None, (7,)), ([], (7,))]:
        generation.write_text(json.dumps({"eos_token_id": value}))
        assert huggingface.eos_ids(copy, tokenizer) == wanted
    for value in (["<end>"], -1, 2.0, True, "2"):
        generation.write_text(json.dumps({"eos_token_id": value}))
        refused(huggingface.eos_ids, copy, tokenizer, words=[generation, "eos_token_id"])
    generation.write_text("{")
    refused(huggingface.eos_ids, copy, tokenizer, words=[generation, "JSON"])


def test_pad_falls_back_to_eos(tmp_path):
    whole = huggingface.load_tokenizer(tiny_models.write_tokenizer(tmp_path / "a"))
    assert huggingface.pad_id(whole) == tiny_models.PAD
    no_pad = tiny_models.write_tokenizer(tmp_path / "b", pad_token=None)
    assert huggingface.pad_id(huggingface.load_tokenizer(no_pad)) == tiny_models.END
    neither = tiny_models.write_tokenizer(tmp_path / "c", pad_token=None, eos_token=None)
    tokenizer = huggingface.load_tokenizer(neither)
    refused(huggingface.pad_id, tokenizer, words=["tokenizer_config.json", "pad_token"])
    refused(huggingface.eos_ids, neither, tokenizer, words=["generation_config.json", neither])


def test_one_line_of_any_exception():
    assert hf_config.one_line(ValueError("a\n  b")) == "a b"
    assert hf_config.one_line(KeyError()) == "KeyError"
    assert len(hf_config.one_line(ValueError("x" * 999))) == 200
