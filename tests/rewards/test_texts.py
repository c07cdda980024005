"""The text that a reward sees: without end and padding tokens, with all other special ones."""

import json
import shutil

import pytest

import math_grader
from remix_jax.models.hf_tokenizer import load_vocabulary
from remix_jax.rollout.rollouts import texts_of
from tests.doc_pages import ROOT

BASE = ROOT / "experiments" / "arithmetic" / "base"


@pytest.mark.parametrize("special", [False, True])
def test_thinking_marks_stay_where_they_are_special_tokens(tmp_path, special):
    shutil.copytree(BASE, tmp_path / "model")
    path = tmp_path / "model" / "tokenizer.json"
    content = json.loads(path.read_text())
    for token in content["added_tokens"]:
        token["special"] |= special and "think" in token["content"]
    path.write_text(json.dumps(content))
    vocabulary = load_vocabulary(str(tmp_path / "model"))
    tokenizer = vocabulary.tokenizer
    said = " <think> 5 \\boxed{ 5 } </think> 7"
    ids = tokenizer(said, add_special_tokens=False)["input_ids"]
    behind = [vocabulary.eos_ids[0], vocabulary.pad_id, vocabulary.pad_id]
    (text,) = texts_of(vocabulary, [ids + behind])
    assert text == tokenizer.decode(ids)
    assert text.replace(" ", "") == said.replace(" ", "")
    assert math_grader.grade(text, "5").reason == "no-box", "it stands in the thinking alone"
