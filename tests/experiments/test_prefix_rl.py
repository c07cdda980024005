"""PrefixRL by the code that users run: collect, train, stop, continue, with and without replay."""

import dataclasses
import json
import os
import pathlib
import signal

import pytest

from experiments.configs import arithmetic_prefix_reinforce
from remix_jax.data import traces
from remix_jax.errors import InputError
from remix_jax.run import loop, resume
from remix_jax.run.setup import prepare
from tests.experiments.runs import figures, quiet, run_main, training_samples

PRESET = "experiments/configs/arithmetic_prefix_reinforce.py"


def small_config(directory: pathlib.Path, share: float = 0.4):
    """Four steps of 16 rows in groups of 4, with replay; one suite of four problems."""
    config = arithmetic_prefix_reinforce.get_config()
    config.steps, config.group_size = 4, 4
    config.batch_size, config.mini_batch_size, config.micro_batch_size = 16, 8, 8
    config.replay.share = share
    config.evaluation = dataclasses.replace(config.evaluation, every=2, samples=1, batch_size=4)
    suite = directory / "hard_test.jsonl"
    source = pathlib.Path(config.data.suites[0])
    suite.write_text("".join(source.read_text().splitlines(keepends=True)[:4]))
    config.data.suites = (str(suite),)
    return config


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    """A bank of the problems of chain3 that the real main made: (problems, bank, its output)."""
    directory = tmp_path_factory.mktemp("bank")
    problems = directory / "chain3.jsonl"
    source = pathlib.Path(arithmetic_prefix_reinforce.get_config().data.train).with_name(
        problems.name
    )
    problems.write_text("".join(source.read_text().splitlines(keepends=True)[:8]))
    done = run_main(
        f"--config={PRESET}", f"--problems={problems}", f"--out={directory / 'bank'}",
        "--attempts=64", "--batch_size=64", "--response_tokens=12",
        module="experiments.collect_traces",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return problems, directory / "bank", done.stdout


@pytest.fixture(scope="module")
def finished(collected, tmp_path_factory):
    """A whole small run of PrefixRL with replay on that bank: (config, workdir)."""
    directory = tmp_path_factory.mktemp("prefixed")
    config = small_config(directory)
    config.data.train, config.prefix.bank = str(collected[0]), str(collected[1])
    loop.run(config, directory / "run", quiet(config))
    return config, directory / "run"


def test_prefixed_rows_are_told_apart_and_replayed(finished):
    config, workdir = finished
    rows = figures(workdir)
    assert [row["rollouts"] for row in rows] == [0, 8, 16, 28, 36]
    assert rows[0]["flops"] == traces.load(config.prefix.bank).flops > 0, (
        "the rejection phase is part of what was spent"
    )
    assert rows[-1]["n_replayed"] > 0
    samples = training_samples(workdir)
    for step in range(1, 5):
        own = [s for s in samples if s["step"] == step]
        with_prefix = [s["reward"] for s in own if "prefix" in s]
        without = [s["reward"] for s in own if "prefix" not in s]
        figures_of = rows[step]
        assert figures_of["reward/prefixed"] == pytest.approx(sum(with_prefix) / len(with_prefix))
        if without:
            mean = sum(without) / len(without)
            assert figures_of["reward/unprefixed"] == pytest.approx(mean)
    prefixed = [s for s in samples if "prefix" in s]
    assert len(prefixed) == 4 * int(0.75 * 36 / 4), "3 : 1, fractions carried over the steps"
    assert all(s["prefix"].startswith(" <think>") for s in prefixed)
    assert not any("\\boxed" in s["prefix"] for s in prefixed)
    right = [s for s in prefixed if s["reward"]]
    assert all(s["answer"] in s["response"] for s in right)


def test_interrupted_and_continued_is_uninterrupted(finished, tmp_path):
    config, whole = finished

    def interrupt(step):
        if step == 1:
            os.kill(os.getpid(), signal.SIGINT)

    workdir = tmp_path / "run"
    outcome = loop.run(config, workdir, quiet(config, interrupt))
    assert outcome.stopped
    assert 0 < figures(workdir)[-1]["step"] < 4
    assert not loop.run(config, workdir, quiet(config)).stopped
    assert figures(workdir) == figures(whole)
    for name in ("samples.jsonl", "ledger.json", "export/model.safetensors"):
        assert (workdir / name).read_bytes() == (whole / name).read_bytes()
    written = json.loads((workdir / "checkpoints" / "4" / "host" / "metadata").read_text())
    saved = json.loads(written["text"])["host"]
    assert saved["prefix_cursor"] == {"seed": 0, "epoch": 0, "position": 6}
    assert saved["cursor"] == {"seed": 0, "epoch": 0, "position": 3}
    setup, told = prepare(config), []
    resume._check(setup, 4, saved, told.append)
    with pytest.raises(InputError, match="gives other prefixes than the run to be continued had"):
        resume._check(setup, 4, saved | {"prefixes": "0"}, told.append)


def test_collecting_says_what_it_does(collected):
    _, bank, said = collected
    made = traces.load(bank)
    assert f"solved {made.solved}/8" in said
    assert "left at most" in said
    assert f"{made.attempts:,}" in said
    assert made.solved >= 6, "one response in three is right"
