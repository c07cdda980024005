"""The stored results: everything shown of them follows from their JSON, by one command."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.image import imread

from experiments.report import files, results
from experiments.report.intervals import median

ROOT = pathlib.Path(__file__).resolve().parents[2]
RESULTS = ROOT / "experiments" / "results" / "arithmetic"
STORED = [(kind, path) for kind in files.KINDS for path in sorted(RESULTS.rglob(f"{kind}.json"))]


@pytest.mark.parametrize(("kind", "path"), STORED, ids=lambda x: getattr(x, "parent", x))
def test_the_stored_tables_follow_from_their_json(kind, path, tmp_path):
    found = files.read(kind, path)
    assert files.KINDS[kind].markdown(found) == path.with_suffix(".md").read_text()
    results.write_json(results.read_json(path), tmp_path / path.name)
    assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def run(*flags):
    command = [sys.executable, "-m", "experiments.report", *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_one_command_draws_stored_results_again(tmp_path):
    done = run(str(RESULTS / "prefix"), f"--out={tmp_path}")
    assert done.returncode == 0, done.stderr
    stored = {path.name: path for path in (RESULTS / "prefix").iterdir()}
    assert {path.name for path in tmp_path.iterdir()} == set(stored)
    again, before = (imread(p)[..., :3] for p in (tmp_path / "prefix.png", stored["prefix.png"]))
    assert again.shape == before.shape
    assert np.abs(again - before).mean() < 0.02
    wrong = run(str(tmp_path / "nothing"))
    assert wrong.returncode == 2
    assert "neither a run's metrics.jsonl nor comparison.json, dynamics.json" in wrong.stderr
    assert len(wrong.stderr.strip().splitlines()) == 1


def test_the_pages_show_the_headline_of_the_results():
    runs = files.read("comparison", RESULTS / "remix_plus" / "comparison.json")
    for name, text in (("remix-ppo", "2.23 [2.18-2.76]"), ("remix-plus-ppo", "5.02 [4.54-5.19]")):
        found = median(runs.ratios(name, "equal", 0.8))
        assert f"{found.median:.2f} [{found.low:.2f}-{found.high:.2f}]" == text
        for page in ("README.md", "docs/remix_plus.md"):
            assert text in (ROOT / page).read_text(), page
