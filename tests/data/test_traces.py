"""The bank of traces: what is written is read, and damage is told in one line."""

import json
import pathlib

import pyarrow.parquet
import pytest

from remix_jax.data import traces
from remix_jax.data.problems import Problem
from remix_jax.data.traces import Bank, Trace
from remix_jax.errors import InputError

BANK = Bank(
    model="base",
    weights="4567",
    tokenizer="0123",
    sampler={"temperature": 1.0, "top_k": 0.0},
    traces=[
        Trace("1 + 1 =", ("2", 2.0), (5, 6, 7), (1, 2, 9), 4, 1e6),
        Trace("ünlösbar =", ("3",), (5, 7), (), 100, 2.5e7),
        Trace("2 + 2 =", ("4",), (5,), (8, 9), 1, 3.0),
    ],
)


class Tokenizer:
    def __init__(self, *words):
        self._vocabulary = {word: i for i, word in enumerate(words)}

    def get_vocab(self):
        return self._vocabulary


def test_read_is_written(tmp_path):
    traces.save(BANK, tmp_path / "bank")
    assert traces.load(tmp_path / "bank", "0123") == BANK
    assert (BANK.attempts, BANK.flops, BANK.solved) == (105, 26_000_003.0, 2)


def test_saving_again_leaves_one_bank(tmp_path):
    traces.save(BANK, tmp_path)
    more = BANK._replace(traces=[*BANK.traces, Trace("x", ("1",), (1,), (2,), 1, 0.0)])
    traces.save(more, tmp_path)
    assert traces.load(tmp_path) == more
    assert [path.name for path in tmp_path.iterdir()] == [traces.BANK_FILE]
    traces.save(BANK._replace(traces=[]), tmp_path)
    assert traces.load(tmp_path).traces == []


def test_problems_are_found_by_text_and_answers():
    asked = [
        Problem("2 + 2 =", ("4",), "a"),
        Problem("2 + 2 =", ("5",), "b"),
        Problem("ünlösbar =", ("3",), "c"),
    ]
    assert traces.traces_of(BANK, asked) == [BANK.traces[2], None, None]


def test_a_kill_leaves_the_bank_before(tmp_path, monkeypatch):
    traces.save(BANK, tmp_path)

    def killed(path, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(pathlib.Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        traces.save(BANK._replace(traces=BANK.traces[:1]), tmp_path)
    assert traces.load(tmp_path) == BANK


def edit(directory, columns=(), **changes):
    """Columns in the place of others, and fields of what the bank says of itself."""
    path = directory / traces.BANK_FILE
    table = pyarrow.parquet.read_table(path)
    described = json.loads(table.schema.metadata[traces._KEY]) | changes
    for name, values in dict(columns).items():
        field = table.schema.field(name)
        column = pyarrow.array(values, field.type)
        table = table.set_column(table.schema.get_field_index(name), field, column)
    table = table.replace_schema_metadata({traces._KEY: json.dumps(described)})
    pyarrow.parquet.write_table(table, path)


def flip(directory):
    """A bit of the first column's data."""
    path = directory / traces.BANK_FILE
    content = bytearray(path.read_bytes())
    content[content.index("ünl".encode())] ^= 1
    path.write_bytes(content)


def other_columns(directory):
    table = pyarrow.table({"problem": ["p"]}, metadata={traces._KEY: b"{}"})
    pyarrow.parquet.write_table(table, directory / traces.BANK_FILE)


DAMAGE = {
    "no bank": (lambda d: (d / traces.BANK_FILE).unlink(), "holds no trace bank"),
    "no parquet": (lambda d: (d / traces.BANK_FILE).write_text("{"), "damaged"),
    "cut": (lambda d: (d / traces.BANK_FILE).write_bytes(b"PAR1" * 9), "damaged"),
    "a flipped bit": (flip, "damaged"),
    "other columns": (other_columns, "other columns than a trace bank has"),
    "another format": (lambda d: edit(d, format=1), "another format than 2"),
    "answers of no kind": (
        lambda d: edit(d, {"answers": ['[["2"]]'] * 3}),
        "no list of texts and numbers",
    ),
    "answers of no JSON": (lambda d: edit(d, {"answers": ["[2"] * 3}), "damaged"),
    "ids below 0": (lambda d: edit(d, {"response": [[1], [], [-2]]}), "token ids below 0"),
    "ids that are missing": (lambda d: edit(d, {"response": [[1], [], [None]]}), "token ids below"),
    "no attempts": (lambda d: edit(d, {"attempts": [1, 2, None]}), "damaged"),
    "an unknown field": (lambda d: edit(d, colour="red"), "damaged"),
    "another tokenizer": (lambda d: edit(d, tokenizer="9"), "ids belong to the tokenizer of"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_one_line(case, tmp_path):
    traces.save(BANK, tmp_path)
    change, message = DAMAGE[case]
    change(tmp_path)
    with pytest.raises(InputError) as error:
        traces.load(tmp_path, "0123")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unwritable_directory_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        traces.save(BANK, tmp_path / "file")


def test_a_fingerprint_is_of_ids_and_pieces():
    assert traces.fingerprint(Tokenizer("a", "b")) == traces.fingerprint(Tokenizer("a", "b"))
    assert traces.fingerprint(Tokenizer("a", "b")) != traces.fingerprint(Tokenizer("b", "a"))
