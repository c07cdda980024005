"""An evaluation: what it leaves, continuing after a kill, figures, wrong input, flags."""

import dataclasses
import io
import json
import os
import pathlib
import subprocess
import sys

import pytest
from absl import flags

from experiments import evaluate as main
from experiments.benchmark_sets import BENCHMARKS, locate
from remix_jax import config as configs
from remix_jax import evaluation, files
from remix_jax.config import Config, Data, Evaluation, Mesh, Model, Reward
from remix_jax.data.problems import INSTRUCTION, Problem
from remix_jax.data.tasks import ProblemSet
from remix_jax.errors import InputError
from remix_jax.evaluation import evaluate, results, run
from remix_jax.evaluation.run import row_id
from remix_jax.sinks.console import Console
from tests.compiling import on_devices

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
FIXTURES = ROOT / "tests" / "fixtures" / "benchmarks"
BASE = ROOT / "experiments" / "arithmetic" / "base"
AIME, MATH = (f"{locate(FIXTURES, name)}?name={name}" for name in ("aime24", "math500"))
CONFIG = Config(
    seed=3,
    model=Model(path=str(BASE)),
    data=Data(
        suites=(f"{AIME}&samples=2", MATH),
        instruction=INSTRUCTION,
        prompt_tokens=100,
        response_tokens=6,
    ),
    evaluation=Evaluation(temperature=1.0, batch_size=4),
    mesh=Mesh(1, 1, 1),
)


def evaluated(out, config=CONFIG):
    """What is printed and returned."""
    file = io.StringIO()
    found = evaluate(config, out, Console(0, file=file, terminal=False))
    return file.getvalue(), found


def changed(section, config=CONFIG, **values):
    return main.replaced(config, section, **values)


def generations(out):
    """By (set, place, sample)."""
    records = [row for _, row in files.json_lines(out / run.GENERATIONS)]
    by_key = {(r["set"], r["place"], r["sample"]): r for r in records}
    assert len(by_key) == len(records), "a response was drawn twice"
    return by_key


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "out"
    printed, found = evaluated(out)
    return out, printed, found


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
    assert "3 problems, 2 samples each" in printed


def test_results_and_settings_are_left(whole):
    out, printed, found = whole
    assert json.loads((out / "results.json").read_text())["mean"] == json.loads(
        json.dumps(found["mean"])
    )
    assert found["settings"]["temperature"] == 1.0
    assert found["settings"]["instruction"] == [INSTRUCTION] * 2
    assert "model_digest" in (out / "settings.json").read_text()
    text = (out / "results.md").read_text()
    assert "| set | problems | samples | Pass@1 | 95 % |" in text
    assert '* model_digest: "' in text
    assert "mean of 2" in printed
    assert max(map(len, printed.splitlines())) <= 80 + len(str(out))


def test_a_kill_costs_at_most_the_running_batch(whole, tmp_path, monkeypatch):
    """Continued with other batches, the responses are those of the unbroken evaluation."""
    out, calls, real = tmp_path / "out", [], run.score_responses

    def dying(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(run, "score_responses", dying)
    with pytest.raises(KeyboardInterrupt):
        evaluated(out)
    assert len(generations(out)) == 4
    path = out / "generations.jsonl"
    path.write_bytes(path.read_bytes()[:-20])  # the last line, as a kill may leave it
    with pytest.warns(UserWarning, match="left out a half-written last line"):
        printed, found = evaluated(out, changed("evaluation", batch_size=3))
    assert "3 responses were there already" in printed
    assert "6 responses to generate in 3 batches" in printed
    assert generations(out) == generations(whole[0])
    assert found == whole[2]
    calls.clear()
    evaluated(out)
    assert not calls, "a finished evaluation draws nothing more"


def test_a_mesh_gives_what_one_device_gives(whole, tmp_path):
    """Of four devices for batches of 3 rows: the mesh divides no set's number of responses."""
    config = changed("evaluation", batch_size=3)
    printed, found = evaluated(tmp_path / "out", dataclasses.replace(config, mesh=Mesh(1, -1, 2)))
    assert "data 1 x fsdp 4 x tensor 2" in " ".join(printed.split())
    theirs = generations(whole[0])
    ours = generations(tmp_path / "out")
    assert {key: row["response"] for key, row in ours.items()} == {
        key: row["response"] for key, row in theirs.items()
    }
    assert found == whole[2]


def test_another_evaluation_is_not_mixed_in(whole, tmp_path):
    out, before = whole[0], (whole[0] / "generations.jsonl").read_bytes()
    for field, config in (
        ("temperature", changed("evaluation", temperature=0.5)),
        ("seed", changed("", seed=4)),
        ("limit", changed("evaluation", limit=2)),
        ("samples", changed("data", suites=(AIME, MATH))),
        ("instruction", changed("data", instruction="")),
        ("reward", changed("reward", functions=("math", "think_format"))),
    ):
        with pytest.raises(InputError, match=f"holds an? evaluation with {field} = ") as caught:
            evaluated(out, config)
        assert "\n" not in str(caught.value)
    assert (out / "generations.jsonl").read_bytes() == before
    (tmp_path / "other").write_text("")
    with pytest.raises(InputError, match="not empty and holds no evaluation"):
        evaluated(tmp_path)


def test_dropped_prompts_are_wrong_and_counted(tmp_path):
    """And nothing is written where no directory is named."""
    printed, found = evaluated(None, changed("data", suites=(MATH,), prompt_tokens=20))
    figures = found["sets"]["math500"]
    assert figures["problems"] == 3
    assert 0 < figures["dropped"] < 3
    assert f"{figures['dropped']} dropped: prompt too long" in printed


@pytest.fixture
def own_reward(tmp_path):
    path = tmp_path / "own.py"
    path.write_text("def longer(completions, **_):\n    return [len(c) / 2 for c in completions]\n")
    return Reward(functions=(f"{path}:longer",))


def test_ones_own_reward_without_answers(tmp_path, own_reward):
    """Rows without an answer, a function that says nothing of correct: a reward and no Pass@1."""
    (tmp_path / "set.jsonl").write_text('{"prompt": "17 +1"}\n{"prompt": "3"}\n')
    config = changed("data", suites=(str(tmp_path / "set.jsonl"),), instruction="")
    printed, found = evaluated(tmp_path / "out", dataclasses.replace(config, reward=own_reward))
    rows = list(generations(tmp_path / "out").values())
    assert [row["reward"] for row in rows] == [len(row["response"]) / 2 for row in rows]
    assert found["mean"]["reward"] == pytest.approx(sum(row["reward"] for row in rows) / 2)
    assert "pass@1" not in found["sets"]["set"]
    assert "mean of 1" in printed


def row(place, sample, answer, correct):
    rates = {"length": 10 * (sample + 1), "truncated": False, "format": correct}
    place = {"set": "aime24", "place": place, "sample": sample, "reward": float(correct)}
    return place | rates | {"answer": answer, "correct": correct, "reflection": True}


def problem_set(name, problems, samples=1, dropped=0):
    return ProblemSet(name, [Problem("p", (1,), "a")] * problems, [], dropped, samples=samples)


def test_figures_of_known_verdicts():
    rows = [
        *(row(0, i, a, a == "1/2") for i, a in enumerate(["1/2", "3", "3", "1/2"])),
        *(row(1, i, a, a != "9") for i, a in enumerate(["9", "0.5", "\\frac{1}{2}", "8"])),
    ]
    asked = [problem_set("aime24", 2, samples=4, dropped=2)]
    figures = results.summarise(rows, asked, {})["sets"]["aime24"]
    assert figures["pass@1"] == pytest.approx((2 + 3) / 16)
    assert figures["pass@k"] == pytest.approx({"1": 5 / 16, "2": (5 / 6 + 1) / 4, "4": 2 / 4})
    assert figures["maj@k"]["4"] == pytest.approx(2 / 4), "0.5 and 1/2 vote together"
    assert figures["dropped"] == 2
    assert figures["response_length"] == 25
    assert figures["format_rate"] == pytest.approx(5 / 8)
    assert figures["reflection_rate"] == 1
    assert figures["interval_method"] == "bootstrap over problems"


def test_the_mean_weighs_sets_equally():
    asked = [problem_set("aime24", 1), problem_set("amc23", 3)]
    rows = [row(0, 0, "1", True)]
    rows += [row(i, 0, "2", False) | {"set": "amc23", "length": 40} for i in range(3)]
    found = results.summarise(rows, asked, {})
    assert found["mean"]["pass@1"] == 0.5
    assert found["mean"]["response_length"] == 25
    low, high = found["mean"]["interval"]
    assert 0 < low < 0.5 < high < 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Wait, that is wrong.", True),
        ("I re-check and rethink it.", True),
        ("so 4. WAIT", True),
        ("Let me verify: 2 + 2", True),
        ("We double-check it.", True),
        ("the waiter awaits", False),
        ("It is 4.", False),
    ],
)
def test_reflection(text, expected):
    assert bool(results.REFLECTION.search(text)) is expected


def test_streams_are_apart_and_fit_31_bits():
    last = list(BENCHMARKS)[-1]
    assert tuple(BENCHMARKS) == evaluation.BENCHMARKS
    assert row_id("math500", 7, 3) == (2 << 14 | 7) << 10 | 3, "those of earlier results"
    names = [*BENCHMARKS, "mine"]
    ids = {row_id(name, p, s) for name in names for p in (0, 1, 674) for s in (0, 1, 1023)}
    assert len(ids) == len(names) * 9
    assert all(row_id(name, 2**14 - 1, 1023) < 2**31 for name in (last, "mine", "x", "test"))


def flag_values(*given):
    values = flags.FlagValues()
    main.define_flags(values)
    values(["evaluate", *given])
    return values


def config_of(*given, config=None):
    return main.config_of(flag_values(*given), config)


def test_a_model_is_evaluated_by_the_papers_protocol():
    config = config_of(f"--model={BASE}", f"--data={FIXTURES}")
    assert [spec.partition("?")[2] for spec in config.data.suites] == [
        f"name={name}" for name in BENCHMARKS
    ]
    assert (config.data.instruction, config.model.dtype) == (INSTRUCTION, "bfloat16")
    assert (config.data.prompt_tokens, config.data.response_tokens) == (2048, 8192)
    assert (config.evaluation.temperature, config.evaluation.samples) == (0.0, 1)


def test_a_run_is_evaluated_as_it_was_trained(tmp_path):
    """Instruction, form of answer, reward, lengths and decoding; flags go before all of them."""
    was = changed("data", instruction="Box it.", answer="boxed", suites=("held.jsonl",))
    was = changed("evaluation", was, temperature=0.7, samples=3)
    was = changed("reward", was, functions=("math",), weights=(2.0,))
    (tmp_path / "config.json").write_text(configs.to_json(was))
    with pytest.raises(InputError, match="has left no model yet"):
        main.trained(tmp_path)
    (tmp_path / "export").mkdir()
    for directory in (tmp_path, tmp_path / "export"):
        config = config_of(f"--model={directory}")
        assert config == changed("model", was, path=str(tmp_path / "export"))
    config = config_of(
        f"--model={tmp_path}", "--sets=a.jsonl,b.jsonl", "--samples=a:2", "--temperature=0.1",
        "--instruction=", "--dtype=bfloat16", "--reward=gsm8k", "--mesh=2,1,1", "--seed=9",
    )  # fmt: skip
    assert config.data.suites == ("a.jsonl?samples=2", "b.jsonl")
    assert (config.evaluation.temperature, config.evaluation.samples) == (0.1, 1)
    assert (config.data.instruction, config.data.answer) == ("", "boxed")
    assert (config.reward.functions, config.reward.weights) == (("gsm8k",), ())
    assert (config.model.dtype, config.mesh.data, config.seed) == ("bfloat16", 2, 9)
    assert config_of(config=was).model.path == str(BASE), "of --config alone"
    (tmp_path / "config.json").write_text('{"objective": {"sharpness": 1}}')
    with pytest.raises(InputError, match="Objective has no field sharpness"):
        main.trained(tmp_path)


def test_samples_flag():
    specs = ["a/aime24.json", "m.json?name=math500"]
    assert main.with_samples(specs, ["4"]) == (specs, 4)
    assert main.with_samples(specs, []) == (specs, 0)
    assert main.with_samples(specs, ["aime24:32", "math500:2"]) == (
        ["a/aime24.json?samples=32", "m.json?name=math500&samples=2"],
        1,
    )
    for wrong in (["x"], ["amc23:3"], ["aime24:"], ["4", "5"]):
        with pytest.raises(InputError, match="--samples="):
            main.with_samples(specs, wrong)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (changed("data", suites=()), "no set to evaluate"),
        (changed("data", suites=(MATH, MATH)), "2 sets are called math500"),
        (changed("evaluation", temperature=0.0), "greedy decoding has one sample"),
        (changed("data", suites=(f"{MATH}&samples=2000",)), "at most 16,384 .* and 1,024"),
        (changed("evaluation", top_p=0.0), r"must be in \(0, 1\]"),
        (changed("data", response_tokens=300), "takes 256 positions"),
        (changed("data", answer="hash"), "asks for another form than answer=hash"),
        (changed("reward", functions=("maths",)), "maths"),
    ],
)
def test_what_does_not_fit_is_one_line(config, message, tmp_path):
    with pytest.raises(InputError, match=message) as caught:
        evaluated(tmp_path / "out", config)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_wrong_input_of_the_main_is_one_line(tmp_path):
    flags = [f"--model={BASE}", f"--data={tmp_path}", f"--out={tmp_path / 'out'}"]
    done = subprocess.run(
        [sys.executable, "-m", "experiments.evaluate", *flags, "--benchmarks=minerva"],
        cwd=ROOT,
        env=os.environ | on_devices(1),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 2
    assert "put minerva.json (or .jsonl, .parquet)" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
