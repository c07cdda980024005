import dataclasses
import json

import numpy as np
import pytest

from remix_jax.data.problems import Cursor, Problem, load_problems, order, take
from remix_jax.errors import InputError

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
        ({"answer": "2"}, "`problem` must be a non-empty text, found no such field"),
        ({"problem": "  ", "answer": "2"}, '`problem` must be a non-empty text, found "  "'),
        ({"problem": 3, "answer": "2"}, "`problem` must be a non-empty text, found 3"),
        ({"problem": "p"}, "found no such field"),
        ({"problem": "p", "answer": None}, "found null"),
        ({"problem": "p", "answer": ""}, 'found ""'),
        ({"problem": "p", "answer": []}, r"found \[\]"),
        ({"problem": "p", "answer": ["2", None]}, r'found \["2", null\]'),
        ({"problem": "p", "answer": [["2"]]}, r'found \[\["2"\]\]'),
        ({"problem": "p", "answer": True}, "found true"),
        ({"problem": "p", "answer": {"a": 1}}, "found {"),
        ({"problem": "p", "answer": float("nan")}, "finite number.*found NaN"),
        ({"problem": "p", "answer": "2", "id": [1]}, "`id` must be a text or an integer"),
        ([1], "expected an object .* found a list"),
        ("text", "expected an object .* found a text"),
        (None, "expected an object .* found null"),
        (2, "expected an object .* found a number"),
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
        ("set.json", "{}", "expected a list of objects, found an object"),
        ("set.json", '[{"problem": ', "not JSON"),
        ("set.json", "[" * 100_000, "not JSON"),
        ("set.jsonl", '{"problem": "p", "answer": "2"}\n{oops}', "line 2: not JSON"),
        ("set.csv", "problem,answer", r"ends in \.json or \.jsonl"),
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
    saved = json.loads(json.dumps(dataclasses.asdict(cursor)))
    expected, _ = take(cursor, 10, 9)
    np.testing.assert_array_equal(take(Cursor(**saved), 10, 9)[0], expected)


@pytest.mark.parametrize(("position", "n_problems"), [(10, 10), (-1, 10), (0, 0)])
def test_cursor_of_another_problem_set_is_refused(position, n_problems):
    with pytest.raises(InputError, match="saved position"):
        take(Cursor(0, 0, position), n_problems, 1)
