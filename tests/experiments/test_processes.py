"""Two processes on this machine: the metrics of one process with as many devices; the end of one
is the end of both."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

from experiments import multiprocess
from remix_jax import processes, schedule
from remix_jax.errors import InputError
from remix_jax.run import loop
from tests.compiling import on_devices
from tests.experiments.runs import figures, quiet, small_config

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
BASE = "experiments/arithmetic/base"
SETS = "tests/fixtures/benchmarks"
PRESET = "experiments/configs/arithmetic_remix_grpo.py"
LOOP = """
import time
from experiments import main
from remix_jax import processes

JOIN = main.define_processes()

def experiment():
    JOIN()
    while True:
        first = processes.is_first()
        rows = processes.divided(5, lambda part: [[i, first] for i in range(5)[part]])
        assert rows == [[0, True], [1, True], [2, False], [3, False], [4, False]]
        print("round", flush=True)
        time.sleep(PAUSE)

main.run(experiment)
"""


def launch(arguments, devices, log):
    """A process that writes to log.out and log.err: a pipe that nobody reads would stop it."""
    environment = (
        os.environ
        | on_devices(devices)
        | {
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": str(ROOT),
        }
    )
    with log.with_suffix(".out").open("w") as out, log.with_suffix(".err").open("w") as err:
        return subprocess.Popen(
            [sys.executable, *arguments], cwd=ROOT, env=environment, stdout=out, stderr=err
        )


def pair(arguments, devices, folder):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = [f"--coordinator=localhost:{port}", "--num_processes=2"]
    return [
        launch([*arguments, *flags, f"--process_id={i}"], devices, folder / f"process{i}")
        for i in range(2)
    ]


@pytest.fixture
def ended():
    """Processes that a test starts, and that nothing survives."""
    processes_ = []
    yield processes_
    for process in processes_:
        process.kill()
        process.wait()


def test_two_processes_train_as_one(tmp_path, ended):
    config = small_config(tmp_path, grpo=True)
    changes = {
        "steps": 2, "reincarnation_step": 0, "mesh.data": 2, "mesh.fsdp": 2, "score_batch_size": 8,
        "kl.start": 0, "data.suites": config.data.suites[:1], "data.validation": "",
        "data.response_tokens": 8, "evaluation.batch_size": 4, "samples_per_step": 12,
    }  # fmt: skip
    kept = ("batch_size", "mini_batch_size", "micro_batch_size", "group_size", "checkpoint_every")
    for name, value in changes.items():
        section, _, field = name.rpartition(".")
        setattr(getattr(config, section) if section else config, field, value)
    changes |= {name: getattr(config, name) for name in kept}
    changes |= {"evaluation.every": 1, "kl.every": 1}
    alone, together = tmp_path / "alone", tmp_path / "together"
    arguments = ["-m", "experiments.train", f"--config={PRESET}", f"--workdir={together}"]
    arguments += [f"--config.{name}={value}" for name, value in changes.items()]
    ended += pair(arguments, 2, tmp_path)
    loop.run(config, alone, quiet(config))
    for i, process in enumerate(ended):
        assert process.wait(timeout=300) == 0, (tmp_path / f"process{i}.err").read_text()
    first, second = ((tmp_path / f"process{i}.out").read_text() for i in range(2))
    assert "data 2 x fsdp 2 x tensor 1, 2 processes" in " ".join(first.split())
    assert "step" not in second, "the first process speaks"
    assert (together / "config.json").read_text() == (alone / "config.json").read_text()
    rows, ledger = figures(alone), json.loads((alone / "ledger.json").read_text())
    assert "loss_value" not in rows[1], "GRPO has no critic"
    assert rows[-1]["rollouts"] == schedule.planned_rollouts(config)
    assert sum(fate["rows"] for fate in ledger) == rows[-1]["rollouts"]
    for ours, theirs in zip(figures(together), figures(alone), strict=True):
        assert ours.pop("stage", None) == theirs.pop("stage", None)
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)
    answers = [
        [
            {k: v for k, v in json.loads(line).items() if k not in ("mean_ratio", "tokens")}
            for line in (workdir / "samples.jsonl").read_text().splitlines()
        ]
        for workdir in (alone, together)
    ]
    assert answers[0] == answers[1], "also of rows that the second process graded"
    assert (alone / "ledger.json").read_text() == (together / "ledger.json").read_text()
    assert (together / "export" / "model.safetensors").stat().st_size > 0
    assert {path.name for path in (together / "checkpoints").iterdir()} == {"2"}


def test_two_processes_evaluate_as_one(tmp_path, ended):
    """Each row is graded once, the first process writes; what it refuses, both do."""
    flags = {"model": BASE, "data": SETS, "benchmarks": "aime24,math500", "samples": "2"}
    flags |= {"temperature": 1, "prompt_tokens": 100, "response_tokens": 6, "batch_size": 4}
    flags |= {"dtype": "float32", "mesh": "1,2,1"}
    arguments = ["-m", "experiments.evaluate"]
    arguments += [f"--{name}={value}" for name, value in flags.items()]
    alone, together = tmp_path / "alone", tmp_path / "together"
    ended += [launch([*arguments, f"--out={alone}"], 2, tmp_path / "alone_log")]
    assert ended[0].wait(timeout=300) == 0, (tmp_path / "alone_log.err").read_text()
    ended += pair([*arguments, f"--out={together}"], 1, tmp_path)
    for i, process in enumerate(ended[1:]):
        assert process.wait(timeout=300) == 0, (tmp_path / f"process{i}.err").read_text()
    second = (tmp_path / "process1.out").read_text()
    assert "responses" not in second, "the first process speaks"
    for name in ("results.json", "generations.jsonl"):
        assert (together / name).read_text() == (alone / name).read_text()


def test_what_the_first_process_refuses_all_do():
    def refused():
        raise InputError("no room")

    assert processes.first_does(lambda: [1, None]) == [1, None]
    with pytest.raises(InputError, match="no room"):
        processes.first_does(refused)


@pytest.mark.parametrize(("killed", "pause"), [(0, 1000), (1, 0.1)])
def test_the_end_of_a_process_ends_the_other(killed, pause, tmp_path, ended):
    """Also of one that does not wait for the other at that moment (it sleeps)."""
    script = tmp_path / "loop.py"
    script.write_text(LOOP.replace("PAUSE", str(pause)))
    ended += pair([script], 1, tmp_path)
    logs = [tmp_path / f"process{i}.out" for i in range(2)]
    begin = time.monotonic()
    while not all("round" in log.read_text() for log in logs):
        assert time.monotonic() - begin < 200
        assert all(process.poll() is None for process in ended)
        time.sleep(0.1)
    ended[killed].send_signal(signal.SIGKILL)
    assert ended[1 - killed].wait(timeout=60) != 0
    said = (tmp_path / f"process{1 - killed}.err").read_text()
    assert "process 0 of 2: failed" in said or "distributed service" in said, said


def test_flags_that_do_not_belong_together():
    for arguments, message in (
        (("here:1", 2, None, False), "needs --num_processes=N and --process_id"),
        (("here:1", 2, 2, False), "from 0 to N - 1, not 2 and 2"),
        ((None, 2, 0, False), "need --coordinator"),
    ):
        with pytest.raises(InputError, match=message):
            multiprocess.start(*arguments)


def test_the_environment_tells_of_other_processes():
    assert not multiprocess.in_cluster({})
    assert not multiprocess.in_cluster({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"})
    assert multiprocess.in_cluster({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2"})
    assert not multiprocess.in_cluster({"TPU_WORKER_HOSTNAMES": "localhost"})
    assert multiprocess.in_cluster({"TPU_WORKER_HOSTNAMES": "10.0.0.1,10.0.0.2"})
    assert multiprocess.local_devices({}) is None
    node = {"SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_GPUS_ON_NODE": "8"}
    assert multiprocess.local_devices(node) == list(range(8))
    assert multiprocess.local_devices(node | {"SLURM_STEP_TASKS_PER_NODE": "8(x2)"}) is None
    assert processes.divided(3, lambda part: list("abc")[part]) == ["a", "b", "c"]
