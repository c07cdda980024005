"""Model directories, as files: what damaged ones say, where save writes, tokenizers."""

import json
import os
import pathlib
import shutil

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from remix_jax.errors import InputError
from remix_jax.models import hf_tokenizer, huggingface
from remix_jax.models.decoder import Decoder
from tests import tiny_models
from tests.tiny_models import edit_json


def refused(function, *args, words, **kwargs):
    """Calls `function`, which must refuse in one line that has all of `words`."""
    with pytest.raises(InputError) as caught:
        function(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    for word in words:
        assert str(word) in message, message


# --- what a damaged or foreign directory says ------------------------------------------------


def test_a_model_of_the_hub(copy, tmp_path, monkeypatch):
    asked = []

    def download(name, allow_patterns):
        asked.append(name)
        if name != "org/tiny":
            raise OSError("no\nroute")
        return str(copy)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    assert huggingface.read_config("org/tiny") == huggingface.read_config(copy)
    assert huggingface.model_digest("org/tiny") == huggingface.model_digest(copy)
    assert asked == ["org/tiny"]  # once
    words = ["org/other: no such model", "no route", "hf download org/other --local-dir org/other"]
    refused(huggingface.read_config, "org/other", words=words)
    (tmp_path / "runs").mkdir()  # a folder of one's own: nobody is asked
    refused(huggingface.read_config, "runs/other", words=["no such model directory"])
    assert asked == ["org/tiny", "org/other"]


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
        ({"tie_word_embeddings": "yes"}, ["tie_word_embeddings", "true, false"]),
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


def test_weights_that_are_no_numbers(copy):
    name = "model.layers.1.self_attn.k_proj.weight"
    for value in (np.nan, np.inf):
        rewrite(copy, lambda tensors, value=value: tensors[name].__setitem__((3, 2), value))
        refused(huggingface.load, copy, words=[name, "holds NaN or infinity"])


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_pointer_in_place_of_a_file(copy, file):
    (copy / file).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    load = hf_tokenizer.load_tokenizer if file == "tokenizer.json" else huggingface.load
    refused(load, copy, words=[file, "Git LFS pointer", "git lfs pull"])


def test_a_run_is_no_model_but_holds_one(exported, tmp_path):
    shutil.copytree(exported, tmp_path / "run" / "export")
    for load in (huggingface.load, hf_tokenizer.load_tokenizer):
        refused(load, tmp_path / "run", words=["directory of a run", tmp_path / "run" / "export"])


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

    for step in ("write_json", "fetch"):
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


def test_saved_files_can_be_read_by_others_and_in_half_the_size(exported, tmp_path):
    model, params = huggingface.load(exported)
    huggingface.save(model, params, tmp_path / "half", like=exported, dtype="bfloat16")
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "half").iterdir()}
    assert modes == {0o666 & ~current_umask()}
    assert json.loads((tmp_path / "half" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    loaded = huggingface.load(tmp_path / "half", dtype="bfloat16")[1]
    jax.tree.map(np.testing.assert_array_equal, loaded, rounded)


def current_umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_save_refuses_another_model(copy, tmp_path):
    model, params = huggingface.load(copy)
    edit_json(copy / "config.json", rope_theta=5e5)
    refused(huggingface.save, model, params, tmp_path / "out", like=copy, words=["rope_theta"])
    partial = {name: value for name, value in params.items() if name != "final_norm"}
    with pytest.raises(ValueError, match=r"final_norm/scale has shape None, .* has \(16,\)"):
        huggingface.save(model, partial, tmp_path / "out")
    with pytest.raises(ValueError, match=r"lm_head/kernel has shape \(2,\), .* has None"):
        huggingface.save(model, params | {"lm_head": {"kernel": jnp.ones(2)}}, tmp_path / "out")
    with pytest.raises(ValueError, match=r"final_norm/scale has shape \(2,\), .* has \(16,\)"):
        huggingface.save(model, params | {"final_norm": {"scale": jnp.ones(2)}}, tmp_path / "out")
    with pytest.raises(ValueError, match="head 'lm'"):
        huggingface.save(Decoder(model.config, head="value"), params, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- tokenizer -------------------------------------------------------------------------------


def test_tokenizer_file_is_obeyed(exported):
    tokenizer = hf_tokenizer.load_tokenizer(exported)  # beside a config.json of model_type qwen2
    text = "a  b\n\n\n12  "
    assert [tiny_models.VOCABULARY[i] for i in tokenizer(text)["input_ids"]] == ["<s>", *text]


def test_chat_template_from_a_file_of_its_own(tmp_path):
    folder = tiny_models.write_tokenizer(tmp_path, chat_template=None)
    refused(hf_tokenizer.load_tokenizer, folder, words=[folder, "no chat template", "jinja"])
    (folder / "chat_template.jinja").write_text(tiny_models.CHAT_TEMPLATE)
    assert hf_tokenizer.load_tokenizer(folder).chat_template == tiny_models.CHAT_TEMPLATE


@pytest.mark.parametrize(
    "template", ["{% for m in messages %}", "{{ raise_exception('no\nuser') }}", "{{ 1 / 0 }}"]
)
def test_chat_template_that_fails(tmp_path, template):
    folder = tiny_models.write_tokenizer(tmp_path, chat_template=template)
    refused(hf_tokenizer.load_tokenizer, folder, words=[folder, "chat template", "render"])


def test_damaged_tokenizer(tmp_path):
    folder = tiny_models.write_tokenizer(tmp_path / "model")
    whole = (folder / "tokenizer.json").read_text()
    for content, words in [
        (whole[: len(whole) // 2], ["tokenizer.json", "JSON"]),
        ('{"version": "1.0"}', ["damaged tokenizer"]),
        (whole.replace('"WordLevel"', '"Unheard"'), ["damaged tokenizer"]),
    ]:
        (folder / "tokenizer.json").write_text(content)
        refused(hf_tokenizer.load_tokenizer, folder, words=[folder, *words])
    (folder / "tokenizer.json").unlink()
    refused(hf_tokenizer.load_tokenizer, folder, words=["tokenizer.json", "no such file"])
    (tiny_models.write_tokenizer(folder) / "tokenizer_config.json").unlink()
    refused(hf_tokenizer.load_tokenizer, folder, words=["tokenizer_config.json", "no such file"])
    refused(hf_tokenizer.load_tokenizer, tmp_path / "none", words=["no such model directory"])


def test_remote_code_is_not_run(tmp_path):
    folder = tiny_models.write_tokenizer(
        tmp_path, auto_map={"AutoTokenizer": [None, "evil.Evil"]}, tokenizer_class="Evil"
    )
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    hf_tokenizer.load_tokenizer(folder)
    assert not (tmp_path / "ran").exists()


def test_token_beyond_the_vocabulary(copy):
    edit_json(copy / "config.json", vocab_size=len(tiny_models.VOCABULARY))
    hf_tokenizer.load_tokenizer(copy)
    edit_json(copy / "config.json", vocab_size=len(tiny_models.VOCABULARY) - 1)
    refused(hf_tokenizer.load_tokenizer, copy, words=["vocab_size", "'C'"])


def test_every_eos_id(copy):
    load = hf_tokenizer.load_vocabulary
    generation = copy / "generation_config.json"
    end = tiny_models.END  # the tokenizer's own always ends a response as well
    assert load(copy).eos_ids == (end,)
    edit_json(copy / "config.json", eos_token_id=7)
    assert load(copy).eos_ids == (7, end)
    for value, wanted in [([5, 3, 5], (5, 3)), (0, (0,)), (None, (7,)), ([], (7,)), (end, ())]:
        generation.write_text(json.dumps({"eos_token_id": value}))
        assert load(copy).eos_ids == (*wanted, end)
    for value in (["<end>"], -1, 2.0, True, "2", 151643):
        generation.write_text(json.dumps({"eos_token_id": value}))
        refused(load, copy, words=[generation, "eos_token_id"])
    generation.write_text("{")
    refused(load, copy, words=[generation, "JSON"])


def test_pad_falls_back_to_eos(tmp_path):
    load = hf_tokenizer.load_vocabulary
    assert load(tiny_models.write_tokenizer(tmp_path / "a")).pad_id == tiny_models.PAD
    no_pad = tiny_models.write_tokenizer(tmp_path / "b", pad_token=None)
    assert load(no_pad).pad_id == tiny_models.END
    neither = tiny_models.write_tokenizer(tmp_path / "c", pad_token=None, eos_token=None)
    refused(load, neither, words=["generation_config.json", neither])
    (neither / "generation_config.json").write_text('{"eos_token_id": 2}')
    refused(load, neither, words=[neither / "tokenizer_config.json", "pad_token"])
