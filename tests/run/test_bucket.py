"""A run whose directory is in a bucket: gs://bucket is a local stand-in (fake_bucket.py)."""

import dataclasses
import importlib.util

import pytest

from remix_jax import files
from remix_jax.errors import InputError
from remix_jax.run import loop
from remix_jax.sinks.metrics import read_metrics
from tests.experiments.runs import quiet, small_config
from tests.run.fake_bucket import bucket


def test_a_run_in_a_bucket_is_continued_there(tmp_path, monkeypatch):
    config = small_config(tmp_path)
    config.steps, config.checkpoint_every = 3, 2
    with bucket(tmp_path / "root", monkeypatch) as there:
        workdir = there / "runs" / "a"
        assert not loop.run(config, "gs://bucket/runs/a", quiet(config)).stopped
        names = {path.name for path in workdir.iterdir()}
        left = {"config.json", "metrics.jsonl", "samples.jsonl", "ledger.json", "checkpoints"}
        assert left | {"tensorboard", "export"} <= names
        assert not names & {".lock", "metrics.jsonl.tmp"}
        assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["2", "3"]
        config = dataclasses.replace(config, steps=4)
        console = quiet(config)
        console.event = (logged := []).append
        assert not loop.run(config, "gs://bucket/runs/a", console).stopped
        assert "continuing after step 3" in logged
        assert [row["step"] for row in read_metrics(workdir)] == [0, 1, 2, 3, 4]
        (there / "other").mkdir()
        (there / "other" / "mine").write_text("x")
        with pytest.raises(InputError, match="gs://bucket/other is not empty and holds no run"):
            loop.run(config, "gs://bucket/other", quiet(config))


def test_a_bucket_out_of_reach_is_one_line():
    if importlib.util.find_spec("gcsfs") is None:
        with pytest.raises(InputError, match=r"^--workdir=gs://b/x needs the package gcsfs: pip"):
            files.resolve("gs://b/x", "--workdir")
