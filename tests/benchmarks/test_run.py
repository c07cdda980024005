"""An evaluation: what it leaves, continuing after a kill, figures, wrong input."""

import dataclasses
import io
import json
import os
import pathlib
import subprocess
import sys

import pytest

from remix_jax.data.benchmark_sets import BENCHMARKS
from remix_jax.data.problems import Problem
from remix_jax.errors import InputError
from remix_jax.evaluation import record, results, run
from remix_jax.evaluation.reflection import reflects
from remix_jax.evaluation.settings import Settings, row_id, samples_of, validate
from remix_jax.sinks.console import Console

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
FIXTURES = ROOT / "tests" / "fixtures" / "benchmarks"
SETTINGS = Settings(
    model=str(ROOT / "experiments" / "arithmetic" / "base"),
    benchmarks=("aime24", "math500"),
    samples=(2, 1),
    temperature=1.0,
    top_p=1.0,
    prompt_tokens=100,
    response_tokens=6,
    seed=3,
    dtype="float32",
    limit=0,
    batch_size=4,
    data=str(FIXTURES),
    mesh=(1, 1, 1),
)


def evaluate(out, **changes):
    """What is printed and returned."""
    file = io.StringIO()
    console = Console(0, file=file, terminal=False)
    return file.getvalue, run.run(dataclasses.replace(SETTINGS, **changes), out, console)


def generations(out):
    """By (set, place, sample)."""
    records = record.read_generations(out)
    by_key = {(r["set"], r["place"], r["sample"]): r for r in records}
    assert len(by_key) == len(records), "a response was drawn twice"
    return by_key


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "out"
    printed, found = evaluate(out)
    return out, printed(), found


def test_every_generation_is_saved_with_its_verdict(whole):
    out, printed, _ = whole
    records = generations(out)
    assert len(records) == 3 * 2 + 3
    row = records["math500", 1, 0]
    assert row["problem"] == "Evaluate $\\log_2 64$."
    assert row["answers"] == ["6"]
    assert 1 <= row["length"] <= 6
    assert row["truncated"] == (row["length"] == 6) or not row["truncated"]
    assert row["correct"] == (row["verdict"] == "match")
    assert {"response", "answer", "format", "reflection", "problem_id"} <= row.keys()
    two = {records["aime24", 0, i]["response"] for i in (0, 1)}
    assert len(two) == 2, "samples of a problem are drawn apart"
    assert "9 responses to generate in 3 batches" in printed
    assert "batch 3/3 | responses 9/9" in printed
    assert "left 0:00" in printed
    assert "3 problems, 2 samples each, the paper's set has 30" in printed


def test_results_and_settings_are_left(whole):
    out, printed, found = whole
    assert json.loads((out / "results.json").read_text())["mean"] == json.loads(
        json.dumps(found["mean"])
    )
    assert found["settings"]["temperature"] == 1.0
    assert "boxed" in found["settings"]["instruction"]
    assert "model_digest" in (out / "settings.json").read_text()
    text = (out / "results.md").read_text()
    assert "| set | problems | samples | Pass@1 | 95 % |" in text
    assert '* model_digest: "' in text
    assert "mean of 2" in printed
    assert max(map(len, printed.splitlines())) <= 80 + len(str(out))


def test_a_kill_costs_at_most_the_running_batch(whole, tmp_path, monkeypatch):
    """Continued with other batches, the responses are those of the unbroken evaluation."""
    out, calls, real = tmp_path / "out", [], run.respond

    def dying(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(run, "respond", dying)
    with pytest.raises(KeyboardInterrupt):
        evaluate(out)
    assert len(generations(out)) == 4
    path = out / "generations.jsonl"
    path.write_bytes(path.read_bytes()[:-20])  # the last line, as a kill may leave it
    printed, found = evaluate(out, batch_size=3)
    assert "3 responses were there already" in printed()
    assert "6 responses to generate in 3 batches" in printed()
    assert generations(out) == generations(whole[0])
    assert found == whole[2]
    calls.clear()
    evaluate(out)
    assert not calls, "a finished evaluation draws nothing more"


def test_a_mesh_gives_what_one_device_gives(whole, tmp_path):
    """Of four devices for batches of 3 rows: the mesh divides no set's number of responses."""
    printed, found = evaluate(tmp_path / "out", mesh=(1, -1, 2), batch_size=3)
    assert "data 1 x fsdp 4 x tensor 2" in " ".join(printed().split())
    theirs = generations(whole[0])
    ours = generations(tmp_path / "out")
    assert {key: row["response"] for key, row in ours.items()} == {
        key: row["response"] for key, row in theirs.items()
    }
    assert found == whole[2]


def test_another_evaluation_is_not_mixed_in(whole, tmp_path):
    out, before = whole[0], (whole[0] / "generations.jsonl").read_bytes()
    for field, value in (("temperature", 0.5), ("seed", 4), ("limit", 2), ("samples", (2, 2))):
        with pytest.raises(InputError, match=f"holds an evaluation with {field} = ") as caught:
            evaluate(out, **{field: value})
        assert "\n" not in str(caught.value)
    assert (out / "generations.jsonl").read_bytes() == before
    (tmp_path / "other").write_text("")
    with pytest.raises(InputError, match="not empty and holds no evaluation"):
        evaluate(tmp_path)


def test_a_damaged_line_is_named(tmp_path):
    (tmp_path / "generations.jsonl").write_text('{"set": "a"}\n{oops\n{"set": "b"}\n')
    with pytest.raises(InputError, match=r"generations\.jsonl, line 2: damaged"):
        record.read_generations(tmp_path)


def test_dropped_prompts_are_wrong_and_counted(tmp_path):
    changes = {"benchmarks": ("math500",), "samples": (1,), "prompt_tokens": 20}
    printed, found = evaluate(tmp_path / "out", **changes)
    figures = found["sets"]["math500"]
    assert figures["problems"] == 3
    assert 0 < figures["dropped"] < 3
    assert f"{figures['dropped']} dropped: prompt too long" in printed()


def row(place, sample, answer, correct):
    rates = {"length": 10 * (sample + 1), "truncated": False, "format": correct}
    place = {"set": "aime24", "place": place, "sample": sample}
    return place | rates | {"answer": answer, "correct": correct, "reflection": True}


def test_figures_of_known_verdicts():
    rows = [
        *(row(0, i, a, a == "1/2") for i, a in enumerate(["1/2", "3", "3", "1/2"])),
        *(row(1, i, a, a != "9") for i, a in enumerate(["9", "0.5", "\\frac{1}{2}", "8"])),
    ]
    problems = {"aime24": [Problem("p", ("1/2",), str(i)) for i in range(4)]}  # two were dropped
    figures = results.summarise(rows, problems, {"aime24": 4}, {})["sets"]["aime24"]
    assert figures["pass@1"] == pytest.approx((2 + 3) / 16)
    assert figures["pass@k"] == pytest.approx({"1": 5 / 16, "2": (5 / 6 + 1) / 4, "4": 2 / 4})
    assert figures["maj@k"]["4"] == pytest.approx(2 / 4), "0.5 and 1/2 vote together"
    assert figures["dropped"] == 2
    assert figures["response_length"] == 25
    assert figures["format_rate"] == pytest.approx(5 / 8)
    assert figures["reflection_rate"] == 1
    assert figures["interval_method"] == "bootstrap over problems"


def test_the_mean_weighs_sets_equally():
    problems = {"aime24": [Problem("p", (1,), "a")], "amc23": [Problem("p", (1,), "b")] * 3}
    rows = [row(0, 0, "1", True)]
    rows += [row(i, 0, "2", False) | {"set": "amc23", "length": 40} for i in range(3)]
    found = results.summarise(rows, problems, {"aime24": 1, "amc23": 1}, {})
    assert found["mean"]["pass@1"] == 0.5
    assert found["mean"]["response_length"] == 25
    low, high = found["mean"]["interval"]
    assert 0 < low < 0.5 < high < 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Wait, that is wrong.", True),
        ("so 4. WAIT", True),
        ("Let me verify: 2 + 2", True),
        ("We double-check it.", True),
        ("the waiter awaits", False),
        ("It is 4.", False),
    ],
)
def test_reflection(text, expected):
    assert reflects(text) is expected


def test_streams_are_apart_and_fit_31_bits():
    last = list(BENCHMARKS)[-1]
    ids = {row_id(name, p, s) for name in BENCHMARKS for p in (0, 1, 674) for s in (0, 1, 1023)}
    assert len(ids) == len(BENCHMARKS) * 9
    assert row_id(last, 2**14 - 1, 1023) < 2**31


def test_samples_flag():
    names = ("aime24", "math500")
    assert samples_of(["4"], names) == (4, 4)
    assert samples_of(["aime24:32"], names) == (32, 1)
    for wrong in (["x"], ["amc23:3"], ["aime24:"], ["4", "5"], []):
        with pytest.raises(InputError, match="--samples="):
            samples_of(wrong, names)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"benchmarks": ("aime24", "gsm8k")}, "'gsm8k' can be aime24"),
        ({"benchmarks": ("aime24", "aime24")}, "each once"),
        ({"temperature": 0.0}, "greedy decoding has one sample"),
        ({"samples": (0, 1)}, "from 1 to 1024"),
        ({"top_p": 0.0}, r"must be in \(0, 1\]"),
        ({"response_tokens": 0}, "1 or more"),
    ],
)
def test_wrong_settings(changes, message):
    with pytest.raises(InputError, match=message):
        validate(dataclasses.replace(SETTINGS, **changes))


def test_wrong_input_of_the_main_is_one_line(tmp_path):
    flags = [f"--model={SETTINGS.model}", f"--data={tmp_path}", f"--out={tmp_path / 'out'}"]
    done = subprocess.run(
        [sys.executable, "-m", "experiments.evaluate", *flags, "--benchmarks=minerva"],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 2
    assert "put minerva.json (or .jsonl, .parquet)" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="takes 256 positions"):
        evaluate(tmp_path / "out", response_tokens=300)
