"""Prompts: the template's text and nothing else, nothing cut, padding on the left."""

import numpy as np
import pytest

from remix_jax.data.tasks import chat, encode_prompts
from remix_jax.errors import InputError
from remix_jax.models.hf_tokenizer import load_tokenizer
from remix_jax.rollout.rollouts import prompt_batch
from tests import tiny_models


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    return load_tokenizer(tiny_models.write_tokenizer(folder))


def text_of(ids):
    return "".join(tiny_models.VOCABULARY[i] for i in ids)


def test_message_is_problem_and_instruction(tokenizer):
    encoded = encode_prompts(tokenizer, [chat("1+1=?", "box it."), chat("a  b\n", "box it.")], 100)
    assert {i: text_of(ids) for i, ids in encoded.items()} == {
        0: "<s>user:1+1=? box it.<end>a:",
        1: "<s>user:a  b\n box it.<end>a:",
    }
    assert text_of(encode_prompts(tokenizer, [chat("1")], 100)[0]) == "<s>user:1<end>a:"


def test_special_tokens_are_not_added_twice(tokenizer):
    assert tokenizer("1")["input_ids"][0] == tiny_models.BOS  # it would add one
    ids = encode_prompts(tokenizer, [chat("1")], 100)[0]
    assert ids.count(tiny_models.BOS) == 1


def test_long_prompts_are_dropped(tokenizer):
    problems = [chat(text) for text in ("a" * 5, "b" * 40, "c" * 6, "d" * 7)]
    shortest = encode_prompts(tokenizer, problems, 100)[0]
    encoded = encode_prompts(tokenizer, problems, len(shortest) + 1)
    assert {i: text_of(ids).count("c") for i, ids in encoded.items()} == {0: 0, 2: 6}
    with pytest.raises(InputError, match=f"limit of 3 tokens; the shortest has {len(shortest)}$"):
        encode_prompts(tokenizer, problems, 3)


def test_truncation_and_padding_written_in_the_file_do_not_apply(tmp_path):
    """A tokenizer.json may carry both; a prompt cut by it would be another problem."""
    saved = tiny_models.char_tokenizer()
    saved.enable_truncation(6)
    saved.enable_padding(length=64)
    tokenizer = load_tokenizer(tiny_models.write_tokenizer(tmp_path, saved))
    encoded = encode_prompts(tokenizer, [chat("1+1+1+1+1+1=?")], 100)
    assert text_of(encoded[0]) == "<s>user:1+1+1+1+1+1=?<end>a:"


def test_bad_input_is_one_line(tokenizer, tmp_path):
    with pytest.raises(InputError, match="no problems"):
        encode_prompts(tokenizer, [], 10)
    with pytest.raises(InputError, match="prompt limit is 0"):
        encode_prompts(tokenizer, [chat("1")], 0)
    template = (
        "{% if '7' in messages[0]['content'] %}{{ raise_exception('no\nsevens') }}{% endif %}x"
    )
    picky = load_tokenizer(tiny_models.write_tokenizer(tmp_path, chat_template=template))
    with pytest.raises(InputError, match=r"^problem 2 \('7'\): the chat template .*no sevens"):
        encode_prompts(picky, [chat("1"), chat("7")], 10)


def test_template_runs_in_a_sandbox(tmp_path):
    template = "{{ messages[0]['content'] }}{{ ''.__class__.__mro__ }}"
    folder = tiny_models.write_tokenizer(tmp_path, chat_template=template)
    with pytest.raises(InputError, match="unsafe"):
        load_tokenizer(folder)


def test_messages_before_the_problem_and_system_prompts():
    context = (("system", "old"), ("user", "u"), ("assistant", "a"))
    roles = [(m["role"], m["content"]) for m in chat("1", "box it.", context=context)]
    assert roles == [*context, ("user", "1 box it.")]
    roles = [(m["role"], m["content"]) for m in chat("1", system="new", context=context)]
    assert roles == [("system", "new"), *context[1:], ("user", "1")]


def test_a_template_that_writes_the_date_writes_the_same_every_day(tmp_path):
    """Llama 3's templates do; a run that passes midnight must continue with its prompts."""
    template = (
        "{% if strftime_now is defined %}{% set day = strftime_now('%d %b %Y') %}{% else %}"
        "{% set day = '26 Jul 2024' %}{% endif %}{{ day }}{{ messages[0]['content'] }}"
    )
    dated = load_tokenizer(tiny_models.write_tokenizer(tmp_path, chat_template=template))
    ids = encode_prompts(dated, [chat("1")], 100)[0]
    assert len(ids) == len("26 Jul 2024" + "1")
    (fixed,) = (dated.encode("26 Jul 20241", add_special_tokens=False),)
    assert ids == fixed


def test_variables_of_the_chat_template(tmp_path):
    """As Qwen3's, which thinks unless it is told otherwise."""
    template = (
        "{{ messages[0]['content'] }}{% generation %}{% if enable_thinking is defined and "
        "enable_thinking is false %}-{% endif %}{% endgeneration %}"
    )
    folder = tiny_models.write_tokenizer(tmp_path, chat_template=template)
    thinks = load_tokenizer(folder)

    def length(variables):
        return len(encode_prompts(thinks, [chat("1")], 100, variables)[0])

    assert length("enable_thinking=false") == length("") + 1 == length("enable_thinking=true") + 1
    for wrong in ("tokenize=false", "enable_thinkin=false"):
        name = wrong.partition("=")[0]
        with pytest.raises(InputError, match=f"no variable {name}$"):
            length(wrong)
    with pytest.raises(InputError, match="must be NAME=VALUE"):
        length("enable_thinking")


def test_problem_text_is_not_a_template(tokenizer):
    ids = encode_prompts(tokenizer, [chat("{{ 1+1 }}")], 100)[0]
    assert "1+1" in text_of(ids)


def test_golden_chat_ids(goldens):
    import json

    vectors = json.loads((goldens / "models" / "tokenizer_vectors.json").read_text())
    tokenizer = load_tokenizer(goldens / "models" / "qwen2_tied")
    cases = [
        case
        for case in vectors["chat"]
        if case["add_generation_prompt"] and case["messages"][-1]["role"] == "user"
    ]
    assert cases
    problems = [case["messages"] for case in cases]
    expected = dict(enumerate(case["ids"] for case in cases))
    assert encode_prompts(tokenizer, problems, 10_000) == expected


def test_a_batch_is_padded_on_the_left_and_filled_with_the_last_prompt():
    tokens_QP, prompt_len_Q = prompt_batch([[5, 6, 7], [8]], 3, 4, 9)
    np.testing.assert_array_equal(tokens_QP, [[9, 5, 6, 7], [9, 9, 9, 8], [9, 9, 9, 8]])
    np.testing.assert_array_equal(prompt_len_Q, [3, 1, 1])
    assert tokens_QP.dtype == prompt_len_Q.dtype == np.int32
    for ids in ([1] * 5, []):
        with pytest.raises(ValueError, match=f"{len(ids)} tokens"):
            prompt_batch([ids], 1, 4, 9)
