"""The benchmark's arithmetic, report and refusals; measuring itself is left to the command."""

import json
import subprocess
import sys

import pytest

from experiments import benchmark, benchmark_peers, benchmark_report, peers
from experiments.benchmark_peers import LapClock
from remix_jax.config_rules import validate
from remix_jax.errors import InputError

TINY = benchmark.SIZES["tiny"]


def _result(*, generate, update, reference=0.1, old=0.0, decode=1.0, scale=2.0):
    """A process with one step; CPU-seconds are `scale` times the wall seconds."""
    seconds = {"generate": generate, "update": update, "reference": reference, "old": old}
    return {
        "steps": [{phase: [s, scale * s] for phase, s in seconds.items()}],
        "decode": [[decode, scale * decode]],
        "load": [0.5, 1.0],
        "peak_memory_mib": 300.0,
        "versions": {"python": "3.11"},
    }


def _run(side, setting, **seconds):
    return {"side": side, "setting": setting, "result": _result(**seconds)}


RUNS = [
    _run("remix_jax", "1 core", generate=0.1, update=0.1, decode=0.25),
    _run("remix_jax", "1 core", generate=0.3, update=0.3, decode=0.5),
    _run("remix_jax", "1 core", generate=0.2, update=0.1, decode=1.0),
    _run("trl", "1 core", generate=0.4, update=0.3, old=0.2, decode=2.0, scale=1.0),
    _run("trl", "2 cores", generate=0.3, update=0.2, old=0.2, decode=1.0, scale=4.0),
]


def test_the_clock_charges_every_moment_to_one_phase(monkeypatch):
    ticks = iter([0.0, 1.0, 3.0, 6.0])
    monkeypatch.setattr(benchmark_peers.time, "perf_counter", lambda: next(ticks))
    monkeypatch.setattr(benchmark_peers.time, "process_time", lambda: 0.0)
    clock = LapClock()
    assert clock.switch("generate") == "other"
    assert clock.switch("other") == "generate"
    assert clock.take() == {"other": (4.0, 0.0), "generate": (2.0, 0.0)}
    assert clock.laps == {}


def test_medians_and_ranges():
    phases = benchmark_report.phase_spreads([run["result"] for run in RUNS[:3]], "wall")
    assert phases["generate"] == pytest.approx((0.2, 0.1, 0.3))
    assert phases["step"] == pytest.approx((0.4, 0.3, 0.7))  # of sums, not the sum of medians
    cpu = benchmark_report.phase_spreads([run["result"] for run in RUNS[:3]], "cpu")
    assert cpu["step"] == pytest.approx((0.8, 0.6, 1.4))


def test_each_measure_is_taken_in_the_sides_own_best_setting():
    summary = benchmark_report.summarize(TINY, RUNS)
    assert summary["cpu"]["step"]["trl"]["setting"] == "1 core"
    assert summary["wall"]["step"]["trl"]["setting"] == "2 cores"
    assert summary["cpu"]["step"]["ratio"] == pytest.approx(0.8 / 1.0)
    assert summary["wall"]["step"]["ratio"] == pytest.approx(0.4 / 0.8)
    assert summary["wall"]["decode"]["trl"]["setting"] == "2 cores"
    assert summary["cpu"]["decode"]["trl"]["setting"] == "1 core"
    assert summary["wall"]["decode"]["ratio"] == pytest.approx(2.0)
    assert summary["cpu"]["decode"]["ratio"] == pytest.approx((1 / 1.0) / (1 / 2.0))
    assert benchmark_report.best_settings(TINY, RUNS, "trl") == {"1 core", "2 cores"}


def test_decode_rate_counts_every_response_token():
    rate = benchmark_report.decode_spread(TINY, [RUNS[0]["result"]], "wall")
    assert rate.median == pytest.approx(256 * 48 / 0.25)


def _record(runs):
    return {
        "machine": {"processor": "a processor", "cores": 4, "load": [0.1, 0.2, 0.3]},
        "cores": 2,
        "load_after": [1.5, 1.0, 1.0],
        "sizes": {
            "tiny": {
                "problem": benchmark.dataclasses.asdict(TINY),
                "parameters": 102976,
                "runs": runs,
                "summary": benchmark_report.summarize(TINY, runs),
            }
        },
    }


def test_report_says_what_was_measured_and_whether_the_target_was_met():
    text = benchmark_report.markdown(_record(RUNS))
    assert "takes 0.80 of TRL's CPU-seconds (target: at most 0.5; MISSED)" in text
    assert "gives 2.00 times the tokens per second" in text
    assert "load average 0.1 before, 1.5 after" in text
    assert "| whole RL step | 0.8 (0.6 to 1.4) | 1 (1 to 1) | 0.80 |" in text
    assert "none: the sampler's are kept" in text
    fast = [_run("remix_jax", "1 core", generate=0.01, update=0.01), *RUNS[3:]]
    assert "at most 0.5; met" in benchmark_report.markdown(_record(fast))


def test_report_needs_a_measurement():
    with pytest.raises(ValueError, match="no measurement"):
        benchmark_report.spread([])


def test_small_model_has_the_size_it_is_known_by():
    s = benchmark.SIZES["small"]
    head = s.width // s.heads
    attention = 2 * s.width * s.width + 2 * s.width * s.kv_heads * head
    biases = s.width + 2 * s.kv_heads * head
    layer = attention + biases + 3 * s.width * s.ffn_width + 2 * s.width
    assert s.layers * layer + s.vocab_size * s.width + s.width == 12_619_136


@pytest.mark.parametrize("size", benchmark.SIZES.values(), ids=lambda size: size.name)
def test_prompts_are_as_long_as_promised_and_the_same_every_time(size):
    texts = benchmark_peers.prompt_texts(size)
    assert texts == benchmark_peers.prompt_texts(size)
    assert len(texts) * size.group_size == size.rows
    assert {len(text.split()) for text in texts} == {size.prompt_len}
    words = {f"w{i}" for i in range(size.vocab_size - 3)}
    assert words.issuperset(" ".join(texts).split())
    assert size.rows % (size.mini_batches * size.group_size) == 0


def test_every_setting_is_tried_once():
    labels = [setting.label for setting in benchmark.settings(2)]
    assert labels == ["1 core", "1 core, large pages", "2 cores", "2 cores, large pages"]
    assert len(benchmark.settings(1)) == 2


def test_later_rounds_run_the_best_settings_only():
    class Workers:
        def measure(self, side, size, setting, turn):
            slow = 2.0 if setting.threads == 2 else 1.0 + setting.large_pages
            return _result(generate=slow, update=slow, decode=slow)

    runs = benchmark.measure_size(Workers(), TINY, repeats=3, cores=2)
    order = [(run["side"], run["setting"]) for run in runs]
    assert order[:2] == [("remix_jax", "1 core"), ("trl", "1 core")]  # in turn
    assert len(order[:8]) == 8
    assert order[8:] == [("remix_jax", "1 core"), ("trl", "1 core")] * 2


def test_configuration_of_the_trainer_is_valid_and_without_replay():
    from experiments.benchmark_remix import grpo_config

    config = grpo_config("some/model", TINY)
    config.data.train, config.data.suites = "a.json", ("b.json",)  # the benchmark reads no problems
    validate(config)
    assert config.replay.share == 0
    assert config.passes == 1
    assert config.batch_size // config.mini_batch_size == 4
    assert config.kl.coef > 0
    assert not config.has_critic


def test_unknown_size_is_refused():
    with pytest.raises(InputError, match=r"--sizes=tiny,huge: must name some of tiny, small"):
        benchmark.chosen_sizes(["tiny", "huge"])
    with pytest.raises(InputError, match="--sizes"):
        benchmark.chosen_sizes([])
    assert [s.name for s in benchmark.chosen_sizes(["small", "small"])] == ["small"]


def test_more_cores_than_there_are_is_refused():
    with pytest.raises(InputError, match="--cores=100000"):
        benchmark.check_cores(100_000)


def test_failing_pip_is_one_line():
    failing = "import sys; sys.exit('note: x\\nERROR: No matching distribution\\nhint: y')"
    with pytest.raises(InputError) as raised:
        peers._install([sys.executable, "-c", failing])
    assert "ERROR: No matching distribution" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_environment_is_reused_when_it_is_the_right_one(tmp_path, monkeypatch):
    def refuse(command):
        raise AssertionError(f"ran {command}")

    monkeypatch.setattr(peers, "_install", refuse)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").touch()
    (tmp_path / "installed.txt").write_text("\n".join(peers.REQUIREMENTS) + "\n")
    assert peers.python(tmp_path) == tmp_path / "bin" / "python"
    (tmp_path / "installed.txt").write_text("torch==1.0\n")
    with pytest.raises(AssertionError, match="venv"):
        peers.python(tmp_path)


def test_failing_worker_is_one_line_that_names_its_log(tmp_path):
    workers = benchmark.Workers(tmp_path / "python", tmp_path)
    (tmp_path / "python").write_text("#!/bin/sh\necho first\necho the reason\nexit 3\n")
    (tmp_path / "python").chmod(0o755)
    with pytest.raises(RuntimeError, match=r"trl failed \(.*tiny-model.log\): the reason"):
        workers.make_model(TINY)
    spec = json.loads((tmp_path / "processes" / "tiny-model.spec.json").read_text())
    assert spec["size"]["rows"] == 256


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--sizes=huge", "--sizes=huge: must name some of tiny, small"),
        ("--repeats=0", "--repeats=0"),
    ],
)
def test_command_refuses_in_one_line_with_exit_code_2(tmp_path, flag, said):
    command = [sys.executable, "-m", "experiments.benchmark", flag, f"--out={tmp_path}/o"]
    done = subprocess.run(command, cwd=benchmark.ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "o").exists()
