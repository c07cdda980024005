"""The bank of traces: what is written is read, and damage is told in one line."""

import json

import numpy as np
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


def edit(directory, **changes):
    path = directory / traces.BANK_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_read_is_written(tmp_path):
    traces.save(BANK, tmp_path / "bank")
    assert traces.load(tmp_path / "bank", "0123") == BANK
    assert (BANK.attempts, BANK.flops, BANK.solved) == (105, 26_000_003.0, 2)


def test_saving_again_leaves_one_bank(tmp_path):
    traces.save(BANK, tmp_path)
    more = BANK._replace(traces=[*BANK.traces, Trace("x", ("1",), (1,), (2,), 1, 0.0)])
    traces.save(more, tmp_path)
    assert traces.load(tmp_path) == more
    assert len(list(tmp_path.iterdir())) == 2
    traces.save(BANK._replace(traces=[]), tmp_path)
    assert traces.load(tmp_path).traces == []


def test_problems_are_found_by_text_and_answers():
    asked = [
        Problem("2 + 2 =", ("4",), "a"),
        Problem("2 + 2 =", ("5",), "b"),
        Problem("ünlösbar =", ("3",), "c"),
    ]
    assert traces.traces_of(BANK, asked) == [BANK.traces[2], None, None]


def test_a_kill_between_the_two_files_leaves_the_bank_before(tmp_path, monkeypatch):
    traces.save(BANK, tmp_path)
    write = traces._write

    def killed(path, content):
        if path.name == traces.BANK_FILE:
            raise KeyboardInterrupt
        write(path, content)

    monkeypatch.setattr(traces, "_write", killed)
    with pytest.raises(KeyboardInterrupt):
        traces.save(BANK._replace(traces=BANK.traces[:1]), tmp_path)
    assert traces.load(tmp_path) == BANK


def cut(directory):
    (path,) = directory.glob("*.npz")
    path.write_bytes(path.read_bytes()[:-20])


def with_objects(directory):
    """Arrays that only a pickle could restore, under a checksum that fits."""
    (path,) = directory.glob("*.npz")
    np.savez(path, prompt_ids=np.array([{}], dtype=object))
    digest = traces.hashlib.sha256(path.read_bytes()).hexdigest()
    edit(directory, sha256=digest)


def with_answers(directory):
    problems = json.loads((directory / traces.BANK_FILE).read_text())["problems"]
    edit(directory, problems=[p | {"answers": [["2"]]} for p in problems])


DAMAGE = {
    "no bank": (lambda d: (d / traces.BANK_FILE).unlink(), "holds no trace bank"),
    "cut JSON": (lambda d: (d / traces.BANK_FILE).write_text('{"format": 1,'), "damaged"),
    "a list": (lambda d: (d / traces.BANK_FILE).write_text("[]"), "damaged"),
    "no arrays": (lambda d: next(d.glob("*.npz")).unlink(), "damaged"),
    "cut arrays": (cut, "is not what was written"),
    "pickled arrays": (with_objects, "damaged"),
    "a problem less": (lambda d: edit(d, problems=[]), "do not fit 0 problems"),
    "another format": (lambda d: edit(d, format=2), "format 2, expected 1"),
    "answers of no kind": (with_answers, "no list of texts and numbers"),
    "no sampler": (lambda d: edit(d, sampler=None), "damaged"),
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
