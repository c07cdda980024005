import dataclasses
import json

import numpy as np
import pyarrow.parquet
import pytest

from remix_jax.data.problems import HASH_INSTRUCTION, INSTRUCTION, Problem, load_problems
from remix_jax.errors import InputError
from remix_jax.rollout.draws import Cursor, order, take

ROWS = [
    {"problem": "1 + 1", "answer": "2", "id": "a"},
    {"problem": "half", "answer": [0.5, "1/2"], "source": "ignored"},
    {"problem": "uni\u2028code", "answer": 3, "id": 7},
]
EXPECTED = [
    Problem("1 + 1", ("2",), "a"),
    Problem("half", (0.5, "1/2"), "set-1"),
    Problem("uni\u2028code", (3,), "7"),
]


def write(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_reads_json_and_jsonl(tmp_path):
    as_list = write(tmp_path, "set.json", json.dumps(ROWS, indent=2))
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)
    as_lines = write(tmp_path, "set.jsonl", f"\n{lines}\n\n")
    assert load_problems(as_list) == EXPECTED
    assert load_problems(str(as_lines)) == EXPECTED


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"answer": "2"}, "expected `problem` and `answer`, or .*; found the fields answer$"),
        ({"input": "2", "target": 3}, "found the fields input, target$"),
        ({"problem": "  ", "answer": "2"}, '`problem` must be a non-empty text, found "  "'),
        ({"problem": 3, "answer": "2"}, "`problem` must be a non-empty text, found 3"),
        ({"problem": "p"}, "expected `problem` and `answer`, or .*; found the fields problem$"),
        ({"problem": "p\ud835", "answer": "2"}, "half a character"),
        ({"problem": "p", "answer": ["\ud835"]}, "half a character"),
        ({"problem": "p", "answer": "2", "id": "\ud835"}, "half a character"),
        ({"problem": "p", "answer": None}, "found null"),
        ({"problem": "p", "answer": ""}, 'found ""'),
        ({"problem": "p", "answer": []}, r"found \[\]"),
        ({"problem": "p", "answer": ["2", None]}, r'found \["2", null\]'),
        ({"problem": "p", "answer": [["2"]]}, r'found \[\["2"\]\]'),
        ({"problem": "p", "answer": True}, "found true"),
        ({"problem": "p", "answer": {"a": 1}}, "found {"),
        ({"problem": "p", "answer": float("nan")}, "finite number.*found NaN"),
        ({"problem": "p", "answer": "2", "id": [1]}, "`id` must be a text or an integer"),
        ([1], r"expected an object .* found \[1\]"),
        ("text", 'expected an object .* found "text"'),
        (None, "expected an object .* found null"),
        (2, "expected an object .* found 2"),
    ],
)
def test_malformed_row_is_named(tmp_path, row, message):
    good = ROWS[0]
    lines = write(tmp_path, "set.jsonl", f"{json.dumps(good)}\n\n{json.dumps(row)}\n")
    with pytest.raises(InputError, match=rf"set\.jsonl, line 3: .*{message}") as caught:
        load_problems(lines)
    assert "\n" not in str(caught.value)
    as_list = write(tmp_path, "set.json", json.dumps([good, row]))
    with pytest.raises(InputError, match=rf"set\.json, row 2: .*{message}"):
        load_problems(as_list)


def test_long_values_are_cut_in_messages(tmp_path):
    path = write(tmp_path, "set.json", json.dumps([{"problem": "p", "answer": [None] * 9999}]))
    with pytest.raises(InputError) as caught:
        load_problems(path)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("set.jsonl", "", "holds no problem"),
        ("set.jsonl", "\n \n", "holds no problem"),
        ("set.json", "", "holds no problem"),
        ("set.json", "[]", "holds no problem"),
        ("set.json", "{}", "expected a list of objects, found {}"),
        ("set.json", '[{"problem": ', "not JSON"),
        ("set.json", "[" * 100_000, "not JSON"),
        ("set.jsonl", '{"problem": "p", "answer": "2"}\n{oops}', "line 2: not JSON"),
        ("set.csv", "problem,answer", r"ends in \.json, \.jsonl or \.parquet"),
    ],
)
def test_malformed_file(tmp_path, name, text, message):
    with pytest.raises(InputError, match=message) as caught:
        load_problems(write(tmp_path, name, text))
    assert "\n" not in str(caught.value)


def test_unreadable_file(tmp_path):
    with pytest.raises(InputError, match="no such problem file"):
        load_problems(tmp_path / "absent.jsonl")
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="UTF-8"):
        load_problems(tmp_path / "bytes.jsonl")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(InputError, match="not a readable"):
        load_problems(tmp_path / "folder.json")


def test_malformed_rows_are_skipped_by_choice(tmp_path):
    bad = [{"problem": "p", "answer": None}, "text"]
    lines = [json.dumps(row) for row in (bad[0], ROWS[0], bad[1], ROWS[1])]
    path = write(tmp_path, "set.jsonl", "\n".join([*lines, "{oops"]))
    skipped = []
    problems = load_problems(path, skipped)
    assert [p.problem for p in problems] == ["1 + 1", "half"]
    assert problems[1].id == "set-3", "a name is the row's place, whatever was skipped before it"
    places = [message.removeprefix(f"{path}, ").partition(":")[0] for message in skipped]
    assert places == ["line 1", "line 3", "line 5"]
    with pytest.raises(InputError, match="holds no problem"):
        load_problems(write(tmp_path, "bad.json", json.dumps(bad)), [])


def test_gsm8k_rows(tmp_path):
    rows = [
        {"question": "How many?", "answer": "6 * 7 = <<6*7=42>>42\n#### 42"},
        {"question": "How much?", "answer": "#### a\n#### 1,234 "},
        {"question": "Plain?", "answer": 7},
        {"problem": "not GSM8K", "answer": "#### 1"},
    ]
    problems = load_problems(write(tmp_path, "gsm.json", json.dumps(rows)))
    assert [p.answers for p in problems] == [("42",), ("1,234",), (7,), ("#### 1",)]
    assert problems[0].problem == "How many?"
    rows = [{"question": "How many?", "answer": "no number\n#### "}]
    with pytest.raises(InputError, match="row 1: `answer` must be"):
        load_problems(write(tmp_path, "gsm.json", json.dumps(rows)))


def chat(content, **row):
    return {"prompt": [{"role": "user", "content": content}], "reward_model": row}


def test_chat_rows_lose_the_instruction_that_is_added_again(tmp_path):
    rows = [
        chat(f"1 + 1 {INSTRUCTION}", ground_truth="2", style="rule"),
        chat("half", ground_truth=[0.5, "1/2"]),
    ]
    problems = load_problems(write(tmp_path, "chat.json", json.dumps(rows)))
    assert [(p.problem, p.answers) for p in problems] == [("1 + 1", ("2",)), ("half", (0.5, "1/2"))]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (chat(""), "`prompt` must be a non-empty text"),
        (chat("p") | {"prompt": []}, "`prompt` must be a text or a list of messages"),
        (chat("p") | {"prompt": ["p"]}, "`prompt` must be a text or a list of messages"),
        (chat("p") | {"prompt": [{"role": "system", "content": "p"}]}, "`prompt` must be a text"),
        (chat("p"), "`ground_truth` must be .* found null"),
        (chat("p", ground_truth=None), "`ground_truth` must be .* found null"),
        (chat("p") | {"reward_model": "2"}, '`reward_model` must be an object, found "2"'),
        ({"problem": "p", "answers_json": ["oops"]}, "`answers_json` must be"),
        ({"question": "", "answer": "2"}, "`question` must be a non-empty text"),
    ],
)
def test_malformed_rows_of_other_forms_are_named(tmp_path, row, message):
    with pytest.raises(InputError, match=rf"set\.json, row 1: {message}"):
        load_problems(write(tmp_path, "set.json", json.dumps([row])))


def test_parquet(tmp_path):
    rows = [chat(f"p{i} {INSTRUCTION}", ground_truth=float(i)) for i in range(5)]
    rows.append(chat("q", ground_truth=None))
    path = tmp_path / "set.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=2)
    with pytest.raises(InputError, match=r"set\.parquet, row 6: `ground_truth` must be"):
        load_problems(path)
    problems = load_problems(path, [])
    assert problems == [Problem(f"p{i}", (float(i),), f"set-{i}") for i in range(5)]
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(InputError, match="not a readable parquet file") as caught:
        load_problems(path)
    assert "\n" not in str(caught.value)


def loaded(tmp_path, *rows, **kwargs):
    return load_problems(write(tmp_path, "rows.json", json.dumps(rows)), **kwargs)


def test_every_column_is_kept(tmp_path):
    row = chat("1 + 1", ground_truth="2") | {"data_source": "mine", "extra_info": {"index": 7}}
    (problem,) = loaded(tmp_path, row)
    assert problem.columns == row
    assert hash(problem) == hash(dataclasses.replace(problem, columns={}))


def test_rows_without_an_answer_are_taken_where_none_is_needed(tmp_path):
    rows = [{"prompt": "Write a poem."}, {"prompt": "p", "answer": {"tests": []}}]
    first, second = loaded(tmp_path, *rows, needs_answer=False)
    assert first.problem == "Write a poem."
    assert (first.answers, second.answers) == ((), ())
    assert second.columns["answer"] == {"tests": []}


def test_messages_before_the_problem_are_kept(tmp_path):
    system, user, assistant = (
        {"role": role, "content": role} for role in ("system", "user", "assistant")
    )
    rows = [{"prompt": [system, user, assistant, user], "answer": 1}]
    (problem,) = loaded(tmp_path, *rows)
    assert problem.problem == "user"
    assert problem.context == (("system", "system"), ("user", "user"), ("assistant", "assistant"))


@pytest.mark.parametrize(
    ("row", "answers"),
    [
        ({"solution": "So it is $\\boxed{\\frac{1}{2}}$."}, ("\\frac{1}{2}",)),
        ({"solution": "$7$"}, ("$7$",)),
        ({"solution": "work", "answer": 3}, (3,)),
        ({"answer": '["14", "15"]'}, ("14", "15")),
        ({"reward_model": {"ground_truth": '["14"]'}}, ("14",)),
        ({"reward_model": {"ground_truth": "['14', 'it\\'s 15']"}}, ("14", "it's 15")),
        ({"answer": "[0, 1]"}, ("[0, 1]",)),
        ({"answer": "['a', 1]"}, ("['a', 1]",)),
        ({"answer": "['a'"}, ("['a'",)),
        ({"answer": "[a"}, ("[a",)),
        ({"answer": float(np.float32(0.1))}, (0.1,)),
        ({"answer": 123456789.0}, (123456789.0,)),
    ],
)
def test_answers_in_other_forms(tmp_path, row, answers):
    (problem,) = loaded(tmp_path, {"prompt": "p"} | row)
    assert problem.answers == answers


def test_rows_of_verls_gsm8k_ask_for_the_hash_form(tmp_path):
    """As verl's examples/data_preprocess/gsm8k.py writes them."""
    rows = [
        chat(f"How many? {HASH_INSTRUCTION}", ground_truth="72"),
        chat("How many? Answer after ####.", ground_truth="72"),
        chat(f"How many? {INSTRUCTION}", ground_truth="72"),
        chat("How many?", ground_truth="72") | {"data_source": "openai/gsm8k"},
        chat("How many?", ground_truth="72"),
    ]
    problems = loaded(tmp_path, *rows)
    assert [p.asks for p in problems] == ["hash", "hash", "boxed", "hash", ""]
    assert [p.instructed for p in problems] == [False, True, False, False, False]
    assert {p.problem for p in problems} == {"How many?", "How many? Answer after ####."}


def test_home_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path, "set.json", json.dumps(ROWS))
    assert load_problems("~/set.json") == EXPECTED


def test_order_is_a_permutation_fixed_by_seed_and_epoch():
    assert sorted(order(3, 0, 50)) == list(range(50))
    np.testing.assert_array_equal(order(3, 0, 50), order(3, 0, 50))
    assert (order(3, 0, 50) != order(3, 1, 50)).any()
    assert (order(3, 0, 50) != order(4, 0, 50)).any()


@pytest.mark.parametrize("count", [1, 4, 10, 23])
def test_every_problem_once_an_epoch(count):
    """Whatever the batch size, the stream is the epochs' orders one after the other."""
    n, cursor, taken = 10, Cursor(seed=5), []
    while len(taken) < 60:
        indices, cursor = take(cursor, n, count)
        assert indices.shape == (count,)
        taken += indices.tolist()
        assert (cursor.epoch, cursor.position) == divmod(len(taken), n)
    epochs = [taken[i : i + n] for i in range(0, 60, n)]
    assert epochs == [order(5, epoch, n).tolist() for epoch in range(6)]


def test_taking_nothing_moves_nothing():
    indices, cursor = take(Cursor(1, 2, 3), 10, 0)
    assert indices.shape == (0,)
    assert cursor == Cursor(1, 2, 3)


def test_cursor_goes_on_from_saved_data():
    _, cursor = take(Cursor(seed=7), 10, 13)
    saved = json.loads(json.dumps(cursor._asdict()))
    expected, _ = take(cursor, 10, 9)
    np.testing.assert_array_equal(take(Cursor(**saved), 10, 9)[0], expected)


@pytest.mark.parametrize(("position", "n_problems"), [(10, 10), (-1, 10), (0, 0)])
def test_cursor_of_another_problem_set_is_refused(position, n_problems):
    with pytest.raises(InputError, match="saved position"):
        take(Cursor(0, 0, position), n_problems, 1)
