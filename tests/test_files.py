"""Files and directories of long work."""

import contextlib
import json
import multiprocessing

import pytest

from remix_jax import files
from remix_jax.errors import InputError


def claim(directory, settings, **more):
    return files.claimed(directory, "settings.json", settings, what="test", flag="--out", **more)


def test_a_directory_is_claimed_once_and_continued(tmp_path):
    out = tmp_path / "out"
    with claim(out, {"a": 1, "b": [1, 2]}) as mirror:
        assert mirror.local == out
        assert json.loads((out / "settings.json").read_text()) == {"a": 1, "b": [1, 2]}
        with pytest.raises(InputError, match="another process works on this test"):
            claim(out, {"a": 1, "b": [1, 2]}).__enter__()
    with claim(out, {"a": 1, "b": (1, 2)}):
        assert json.loads((out / "settings.json").read_text()) == {"a": 1, "b": [1, 2]}


def claim_briefly(directory):
    with claim(directory, {"a": 1}):
        pass


def test_the_lock_holds_against_other_processes_and_ends_with_them(tmp_path):
    context = multiprocessing.get_context("fork")
    ended = []
    with claim(tmp_path, {"a": 1}):
        process = context.Process(target=claim_briefly, args=(tmp_path,))
        process.start()
        process.join()
        ended.append(process.exitcode)
    process = context.Process(target=claim_briefly, args=(tmp_path,))
    process.start()
    process.join()
    assert [*ended, process.exitcode] == [1, 0]


def test_other_work_is_refused_and_left_as_it_is(tmp_path):
    with claim(tmp_path / "a", {"a": 1}):
        pass
    with pytest.raises(InputError, match=r"holds a test with a = 1, now 2: give another --out"):
        claim(tmp_path / "a", {"a": 2}).__enter__()
    with pytest.raises(InputError, match="refused by its own check"):
        claim(tmp_path / "a", {}, check=lambda *_: refuse("refused by its own check")).__enter__()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine").write_text("x")
    with pytest.raises(InputError, match="is not empty and holds no test: give another --out"):
        claim(tmp_path / "b", {}).__enter__()
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["mine"]
    for content in ("{", "[1]", "[" * 100_000):
        (tmp_path / "a" / "settings.json").write_text(content)
        with pytest.raises(InputError, match=r"^[^\n]*$"):
            claim(tmp_path / "a", {}).__enter__()
    with pytest.raises(InputError, match="--out=/proc/x cannot be used"):
        claim(files.resolve("/proc/x", "--out"), {}).__enter__()


def refuse(message):
    raise InputError(message)


def read(path):
    return [record for _, record in files.json_lines(path)]


def test_lines_are_read_back_without_a_half_written_last_one(tmp_path):
    path = tmp_path / "lines.jsonl"
    with contextlib.closing(files.JsonLines(path)) as lines:
        lines.write({"a": float("nan")})
        lines.write({"a": "\udc80 λ"})
    with path.open("a") as file:
        file.write('{"a": ')
    with pytest.warns(UserWarning, match="half-written"):
        assert read(path) == [{"a": "NaN"}, {"a": "\udc80 λ"}]
    path.write_text('{"a": 1}\n[2]\n{"a": 3}\n')
    with pytest.raises(InputError, match=r"lines.jsonl, line 2: damaged"):
        read(path)


def test_paths_of_flags(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.resolve("~/runs", "--workdir") == tmp_path / "runs"
    assert files.resolve(f"file://{tmp_path}/a", "--workdir") == tmp_path / "a"
    with pytest.raises(InputError, match="--workdir=hdfs://x/y: must be a local path, gs://"):
        files.resolve("hdfs://x/y", "--workdir")
