"""The five sets in every form: JSON, parquet, prepared by the TFDS builders without TensorFlow."""

import json
import pathlib
import subprocess
import sys

import pytest

from experiments.benchmark_sets import BENCHMARKS, locate
from remix_jax.data.problems import load_problems
from remix_jax.data.tasks import parse
from remix_jax.errors import InputError

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
FIXTURES = ROOT / "tests" / "fixtures" / "benchmarks"
PREPARE = """
import sys
from absl import flags
from experiments import prepare_data
flags.FLAGS(["prepare_data", *sys.argv[1:]])
prepare_data.prepare_data()
from remix_jax.data.problems import load_problems
for line in sys.stdin.read().split():
    print(line, len(load_problems(line)))
assert "tensorflow" not in sys.modules, "TensorFlow was imported"
"""


def prepare(*flags, read=()):
    return subprocess.run(
        [sys.executable, "-c", PREPARE, *flags],
        cwd=ROOT,
        input="\n".join(map(str, read)),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_the_real_sets_have_the_papers_sizes_in_both_forms(shared):
    for name, (stem, size) in BENCHMARKS.items():
        problems = load_problems(locate(shared / "data" / "test", name))
        assert len(problems) == size
        chats = load_problems(locate(shared / "data" / "parquet", name))
        assert [p.answers for p in chats] == [p.answers for p in problems]
        assert [p.problem for p in chats] == [p.problem for p in problems], stem


def test_the_real_training_set_is_refused_at_its_first_row_without_an_answer(shared):
    path = shared / "data" / "train" / "math.json"
    with pytest.raises(InputError, match=r"math\.json, row 887: `answer` must be .* found null"):
        load_problems(path)
    skipped = []
    assert len(load_problems(path, skipped)) == 7474 - len(skipped)
    assert [m.partition(", ")[2].partition(":")[0] for m in skipped] == [
        "row 887", "row 1010", "row 5329", "row 5331",
    ]  # fmt: skip


def test_prepared_sets_are_what_the_files_are(tmp_path):
    """Order, answers as text, number and list, and ids survive; TensorFlow is never imported."""
    source = tmp_path / "train.jsonl"
    rows = [json.dumps({"problem": f"p{i}", "answer": [i, f"{i}.0"]}) for i in range(40)]
    source.write_text("\n".join([*rows, '{"problem": "bad"}']))
    prepared = tmp_path / "deep_scaler" / "mine" / "1.0.0"
    done = prepare(
        f"--out={tmp_path}",
        f"--train={source}",
        "--name=mine",
        "--on_bad_row=skip",
        f"--benchmarks={','.join(BENCHMARKS)}",
        f"--data={FIXTURES}",
        read=[prepared],
    )
    assert done.returncode == 0, done.stderr
    assert "train.jsonl, line 41: expected `problem` and `answer`" in done.stdout
    assert f"{prepared} 40" in done.stdout
    assert load_problems(prepared) == load_problems(source, [])
    assert parse(str(prepared)).name == "mine"
    for name in BENCHMARKS:
        place = locate(tmp_path, name)
        assert parse(str(place)).name == name
        assert load_problems(place) == load_problems(locate(FIXTURES, name))


def test_preparing_refuses_what_it_cannot_read(tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"problem": "p"}')
    done = prepare(f"--out={tmp_path}", f"--train={bad}")
    assert "bad.jsonl, line 1: expected `problem` and `answer`" in done.stderr
    assert sorted(tmp_path.iterdir()) == [bad]


def test_what_is_missing_is_named_with_what_to_put_where(tmp_path):
    with pytest.raises(InputError, match=r"nothing of amc23 \(83 problems\).*put amc\.json \(or"):
        locate(tmp_path, "amc23")
    with pytest.raises(InputError, match="it can be aime24, amc23, math500, minerva, olympiad_b"):
        locate(tmp_path, "aime")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no prepared problems"),
        ({"dataset_info.json": "{oops"}, "TFDS cannot read it"),
        ({"dataset_info.json": "{}", "features.json": "{}"}, "TFDS cannot read it"),
    ],
)
def test_a_directory_that_is_no_prepared_set_is_one_line(tmp_path, files, message):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        load_problems(tmp_path)
    assert "\n" not in str(caught.value)
