"""Supervised finetuning by its main: what is learned, left, continued and refused."""

import json

import numpy as np
import pytest

from experiments import sft
from experiments.configs.arithmetic_remix_ppo import TASK
from remix_jax.data import traces
from remix_jax.errors import InputError
from remix_jax.models import huggingface
from remix_jax.models.hf_tokenizer import load_vocabulary
from tests.experiments.runs import run_main

BASE = TASK / "base"


@pytest.fixture(scope="module")
def rows():
    """Worked solutions as chat messages, prompts and texts; one prompt twice."""
    tokenizer = load_vocabulary(BASE).tokenizer
    bank = traces.load(TASK / "traces_easy")
    said = [
        (t.problem, tokenizer.decode(t.response, skip_special_tokens=True))
        for t in bank.traces
        if t.response
    ][:72]
    found = [{"prompt": asked, "completion": text} for asked, text in said]
    found[0] = {
        "messages": [
            {"role": "user", "content": said[0][0]},
            {"role": "assistant", "content": said[0][1]},
        ]
    }
    found[1] = {
        "prompt": [{"role": "user", "content": said[1][0]}],
        "completion": [{"role": "assistant", "content": said[1][1]}],
    }
    return [found[1], *found]


def test_the_main_finetunes_and_says_what_came_of_it(rows, tmp_path):
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = [f"--model={BASE}", f"--data={data}", f"--out={tmp_path / 'out'}", "--epochs=2"]
    sizes = {"batch_size": 16, "mini_batch_size": 16, "micro_batch_size": 16}
    sizes |= {"optimizer.learning_rate": 1e-3, "lora.rank": 4, "evaluation.batch_size": 8}
    sizes |= {"data.prompt_tokens": 24, "data.response_tokens": 24}
    flags += [f"--config.{name}={value}" for name, value in sizes.items()]
    done = run_main(*flags, module="experiments.sft")
    assert done.returncode == 0, done.stderr
    assert "66 rows to train on, 7 held out" in done.stdout
    found = json.loads((tmp_path / "out" / "held_out.json").read_text())
    assert f"{found['before']:.4f} nats a token before, {found['after']:.4f} after" in done.stdout
    assert found["after"] < 0.9 * found["before"]
    figures = [
        json.loads(line) for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()
    ]
    assert len(figures) == 1 + 8, "two epochs of 66 rows"
    assert figures[-1]["loss_policy"] < figures[1]["loss_policy"]
    assert "eval/boxed" in figures[0], "the held-out rows' boxes are the problems"
    assert (tmp_path / "out" / "adapter" / "adapter_config.json").is_file()
    _, params = huggingface.load(tmp_path / "out" / "export")
    _, base = huggingface.load(BASE)
    assert np.any(params["layers_0"]["q"]["kernel"] != base["layers_0"]["q"]["kernel"])


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ('{"prompt": "1"}', r"line 1: expected `prompt` and `completion`.*found the fields prompt"),
        (
            '{"messages": [{"role": "user", "content": "1"}]}',
            "expected .*found the fields messages",
        ),
        ("[1]", "line 1: expected .* found no object"),
        ("{", "line 1: not JSON"),
        ('{"prompt": "1", "completion": "2"}', "holds 1 rows; some are to train on"),
    ],
)
def test_rows_that_are_none_are_one_line(row, words, tmp_path):
    (tmp_path / "rows.jsonl").write_text(row + "\n")
    with pytest.raises(InputError, match=words):
        sft.read_examples(tmp_path / "rows.jsonl")
