"""Specs of problem sets: files, generators, options; forms of answers, instructions, overlaps."""

import builtins
import json
import pathlib

import pytest

from remix_jax.config import Data
from remix_jax.data.problems import FORMS, HASH_INSTRUCTION, INSTRUCTION, TAG_INSTRUCTION
from remix_jax.data.tasks import check_sets, load_set, parse, plan
from remix_jax.errors import InputError

FIXTURE = pathlib.Path(__file__).parent.parent / "fixtures" / "tasks" / "verl_gsm8k.parquet"


class Tokenizer:
    """A character a token; the template is the roles and texts."""

    chat_template = "plain"

    def get_chat_template(self):
        return self.chat_template

    def apply_chat_template(self, chat, **_):
        return [ord(x) for x in "".join(f"[{m['role']}]{m['content']}" for m in chat)]

    def decode(self, ids):
        return "".join(map(chr, ids))


TOKENIZER = Tokenizer()


def load(spec, needs_answer=True, **data):
    found = load_set(str(spec), Data(**data), TOKENIZER, needs_answer=needs_answer)
    return found, [TOKENIZER.decode(ids) for ids in found.prompts]


def rows(tmp_path, *content, name="set.json"):
    (tmp_path / name).write_text(json.dumps(content))
    return tmp_path / name


@pytest.mark.parametrize("instruction", ["", INSTRUCTION])
def test_verls_gsm8k_has_one_instruction_and_its_form(instruction):
    """The file as verl's preprocessing writes it, whatever instruction the config has."""
    found, prompts = load(FIXTURE, instruction=instruction)
    assert found.form == "hash"
    assert [p.answers for p in found.problems] == [("24",), ("3600",)]
    assert all(text.count("Let's think") == 1 for text in prompts)
    assert all(text.endswith(f" {HASH_INSTRUCTION}") for text in prompts)
    assert found.problems[0].columns["extra_info"]["answer"].endswith("#### 24")


def test_the_real_gsm8k_files(shared):
    """verl's own files: the prompt is the file's, letter by letter."""
    folder = shared / "data" / "gsm8k"
    if not folder.is_dir():
        pytest.skip("GSM8K in verl's form is not on this machine")
    for name, size in (("test", 1319), ("train", 7473)):
        found, prompts = load(
            folder / f"{name}.parquet", instruction=INSTRUCTION, prompt_tokens=5000
        )
        assert len(found.problems) == size
        assert found.form == "hash"
        for problem, prompt in zip(found.problems, prompts, strict=True):
            assert prompt == "[user]" + problem.columns["prompt"][0]["content"]


def test_the_same_file_trains_with_boxes_where_it_is_asked_to():
    found, prompts = load(f"{FIXTURE}?answer=boxed&instruction={INSTRUCTION}")
    assert found.form == "boxed"
    assert all("####" not in text and text.endswith(INSTRUCTION) for text in prompts)
    found, prompts = load(FIXTURE, answer="boxed")
    assert all("####" not in text for text in prompts)


def test_gsm8ks_own_rows_work_in_both_forms(tmp_path):
    path = rows(tmp_path, {"question": "How many?", "answer": "6 * 7 = 42\n#### 42"})
    for form, sentence in (("hash", HASH_INSTRUCTION), ("boxed", INSTRUCTION)):
        found, prompts = load(path, answer=form, instruction=INSTRUCTION if form == "boxed" else "")
        assert (found.form, found.problems[0].answers) == (form, ("42",))
        assert prompts == [f"[user]How many? {sentence}"]


def test_a_papers_chat_rows_keep_their_instruction_once(tmp_path):
    row = {"prompt": [{"role": "user", "content": f"1 + 1 {INSTRUCTION}"}], "answer": 2}
    for given in ("", INSTRUCTION):
        _, prompts = load(rows(tmp_path, row), instruction=given)
        assert prompts == [f"[user]1 + 1 {INSTRUCTION}"]


def test_prompts_that_instruct_in_their_own_words_get_nothing_more(tmp_path):
    row = {"prompt": "Say 7. Put it in \\boxed{}.", "answer": 7}
    found, prompts = load(rows(tmp_path, row), instruction=INSTRUCTION)
    assert prompts == ["[user]Say 7. Put it in \\boxed{}."]
    assert plan([found], TOKENIZER)["instruction"] == "in the problems"
    with pytest.raises(InputError, match=r"set-0 asks for an answer in .*scored by answer=hash"):
        load(rows(tmp_path, row), answer="hash")


def test_fields_of_other_names(tmp_path):
    path = rows(tmp_path, {"q": "1 + 1", "gold": "2", "answer": "long"})
    found, prompts = load(f"{path}?problem_field=q&answer_field=gold")
    assert prompts == ["[user]1 + 1"]
    assert found.problems[0].answers == ("2",)
    assert found.problems[0].columns == {"q": "1 + 1", "gold": "2", "answer": "long"}
    with pytest.raises(InputError, match="row 1: has no field question; found q, gold, answer"):
        load(f"{path}?problem_field=question")
    with pytest.raises(InputError, match="answer_field is for files"):
        parse("reasoning_gym:chain_sum?answer_field=x")


def test_options_of_a_set(tmp_path):
    path = rows(tmp_path, {"problem": "1 + 1", "answer": 2})
    found, prompts = load(f"{path}?system=Be%20brief.&instruction=So?&name=mine", system_prompt="x")
    assert prompts == ["[system]Be brief.[user]1 + 1 So?"]
    assert found.name == parse(f"{path}?name=mine").name == "mine"
    _, prompts = load(path, system_prompt="x")
    assert prompts == ["[system]x[user]1 + 1"]


@pytest.mark.parametrize(
    ("spec", "data", "message"),
    [
        ("{}?form=boxed", {}, "a file has no option form; it can be instruction, system, answer"),
        ("{}?answer=box", {}, "answer=box can be boxed, hash, reasoning_gym"),
        ("{}?answer", {}, "expected NAME\\?option=value"),
        ("{}?answer=hash&instruction=Use \\boxed{{}}.", {}, "asks for another form than answer=h"),
        ("{}", {"answer": "hash", "instruction": INSTRUCTION}, "asks for another form than answer"),
        ("reasoning_gym:chain_sun", {}, "has no dataset 'chain_sun'; did you mean chain_sum"),
        ("reasoning_gym:chain_sum?max_term=2", {}, "no option max_term; it has min_terms, max_t"),
        ("reasoning_gym:chain_sum?size=0", {}, "size must be a whole number from 1"),
        ("reasoning_gym:chain_sum?max_terms=1", {}, "max_terms"),
    ],
)
def test_what_does_not_fit_is_one_line(tmp_path, spec, data, message):
    path = rows(tmp_path, {"problem": "1 + 1", "answer": 2})
    if spec.startswith("reasoning_gym"):
        pytest.importorskip("reasoning_gym")
    with pytest.raises(InputError, match=message) as caught:
        load(spec.format(path), **data)
    assert "\n" not in str(caught.value)


def test_tags_need_a_reward_function(tmp_path):
    row = {"prompt": "Reply in <answer> </answer> tags.", "answer": "7"}
    with pytest.raises(InputError, match=r"which no built-in reward reads; give reward\.functions"):
        load(rows(tmp_path, row))
    _, prompts = load(rows(tmp_path, row), needs_answer=False, instruction=INSTRUCTION)
    assert prompts == ["[user]Reply in <answer> </answer> tags."]


def test_reasoning_gym():
    pytest.importorskip("reasoning_gym")
    found, prompts = load("reasoning_gym:chain_sum?size=5&seed=7&max_terms=2&max_digits=1")
    assert (found.name, found.form, len(found.problems)) == ("chain_sum", "reasoning_gym", 5)
    entry = found.problems[1].columns
    assert found.problems[1].answers == (entry["answer"],)
    assert entry["metadata"]["num_terms"] == 2
    assert prompts[1] == f"[user]{entry['question']} {TAG_INSTRUCTION}"
    again, _ = load("reasoning_gym:chain_sum?size=4&seed=8&max_terms=2&max_digits=1")
    assert again.problems[0].problem == found.problems[1].problem, "problem i comes of seed + i"
    _, prompts = load("reasoning_gym:chain_sum?size=1&instruction=")
    assert TAG_INSTRUCTION not in prompts[0]
    found, _ = load("reasoning_gym:propositional_logic?size=1")
    assert found.problems[0].answers == (), "its answers are only known to its own score_answer"


def test_reasoning_gym_is_optional(monkeypatch):
    real = builtins.__import__

    def absent(name, *args, **kwargs):
        if name.startswith("reasoning_gym"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(InputError, match=r"pip install reasoning-gym$"):
        load("reasoning_gym:chain_sum")


def gym(seed, size=500, name="chain_sum"):
    return f"reasoning_gym:{name}?seed={seed}&size={size}"


def test_held_out_problems_of_a_generator_are_others():
    check_sets(Data(train=gym(0), suites=(gym(500), gym(0, name="leg_counting"))))
    for seed in (0, 1, 499):
        with pytest.raises(InputError, match=r"shares problems with .* as seed=500$"):
            check_sets(Data(train=gym(0), suites=("a.json", gym(seed))))
    with pytest.raises(InputError, match="shares problems with"):
        check_sets(Data(train="reasoning_gym:chain_sum", validation="reasoning_gym:chain_sum"))


def test_sets_have_names_of_their_own():
    with pytest.raises(InputError, match="2 sets are called test"):
        check_sets(Data(train="t.json", suites=("a/test.json", "b/test.json")))
    check_sets(Data(train="t.json", suites=("a/test.json", "b/test.json?name=other")))
    with pytest.raises(InputError, match=r"a run takes config.evaluation.samples for all sets"):
        check_sets(Data(train="t.json", suites=("a/test.json?samples=4",)))
    assert parse("made/hard/1.0.0").name == "hard"


def test_the_plan_says_how_problems_are_asked(tmp_path):
    train, _ = load(rows(tmp_path, {"problem": "p0", "answer": 1}))
    lines = plan([train], TOKENIZER, train)
    assert lines["answers"] == "in \\boxed{}"
    assert lines["instruction"] == "none (nothing asks for \\boxed{})"
    assert lines["a prompt ends"] == "'[user]p0'"
    verl, _ = load(FIXTURE)
    lines = plan([verl], TOKENIZER, train)
    assert lines["answers"] == "set: in \\boxed{}; verl_gsm8k: a number after ####"


def test_paths_of_specs(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse("~/a.json?answer=hash").path == str(tmp_path / "a.json")
    assert parse("reasoning_gym:chain_sum").path == ""
    assert set(FORMS) == {"boxed", "hash", "reasoning_gym"}
