"""A run that cannot learn says so, and ends where it is to be strict: through the real main."""

import json

from tests.experiments.runs import SMALL, as_flags, run_main, small_config

PRESET = "experiments/configs/arithmetic_remix_ppo.py"


def test_a_strict_run_ends_saved_at_its_first_finding(tmp_path):
    config, workdir = small_config(tmp_path), tmp_path / "run"
    short = [*as_flags(config, *SMALL), "--config.data.response_tokens=2", "--trackers="]
    done = run_main(f"--config={PRESET}", f"--workdir={workdir}", "--strict", *short)
    assert done.returncode == 3, done.stderr
    end = "stopped, for it is strict: no answer found, no signal, truncated; without --strict "
    assert done.stderr.startswith(end), done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("! step 1: truncated")]
    assert "truncated_rate 1 (red above 0.2): responses meet the limit" in line
    assert "Change data.response_tokens" in line
    lines = (workdir / "warnings.jsonl").read_text().splitlines()
    warnings = [(w["step"], w["rule"]) for w in map(json.loads, lines)]
    assert warnings == [(1, "no signal"), (1, "no answer found"), (1, "truncated")]
    assert (workdir / "checkpoints" / "1").is_dir()


def test_a_strict_run_of_held_out_training_problems_does_not_compile(tmp_path):
    flags = [f"--config={PRESET}", f"--workdir={tmp_path / 'run'}", "--strict"]
    same = "experiments/arithmetic/problems/train.jsonl"
    done = run_main(*flags, f"--config.data.suites={same}")
    assert done.returncode == 3, done.stderr
    assert "! held-out problems that are training problems too: 8,192 of 8,192" in done.stdout
    assert "compiling" not in done.stdout
