"""Trackers: TensorBoard's files, other packages as fakes of their signatures, the page's own."""

import contextlib
import csv
import importlib
import inspect
import sys
import threading
import types

import pytest
from tensorboardX.proto import event_pb2

from remix_jax.errors import InputError
from remix_jax.sinks import sink
from remix_jax.sinks.builtins import tag
from remix_jax.sinks.sink import Run, Sinks, trackers
from tests import doc_pages
from tests.sinks.step_figures import EVALUATED, step

PAGE = "docs/trackers.md"
SAMPLES = [
    {"prompt": "1 + 1", "response": "2", "reward": 1.0, "tokens": {"text": ["no"], "ratio": [1.0]}},
    {"prompt": "a", "extra": None},
]


def about(directory, history=()):
    return Run(directory, "mine", {"seed": 3}, history)


def drive(made_from, run, steps=(1, 2)):
    """Two steps through the trackers, closed; what failed."""
    with contextlib.closing(Sinks({}, made_from, run)) as sinks:
        for at in steps:
            figures = step(at, loss=float("nan"), **EVALUATED)
            sinks.samples(at, SAMPLES)
            sinks.write(figures.pop("step"), figures)
    return sinks.errors


def scalars(directory):
    """(tag, step) -> value of every scalar that TensorBoard would show, and its texts' tags."""
    found = {}
    for path in directory.glob("events.*"):
        data = path.read_bytes()
        while data:  # length (8), its check (4), record, its check (4)
            size = int.from_bytes(data[:8], "little")
            event = event_pb2.Event.FromString(data[12 : 12 + size])
            found |= {(v.tag, event.step): v.simple_value for v in event.summary.value}
            data = data[16 + size :]
    return found


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_tensorboard_has_steps_and_rollouts_as_axes_and_the_history_once(tmp_path):
    made = trackers(["tensorboard"])
    assert drive(made, about(tmp_path), steps=(1, 2, 3)) == []
    history = [step(at) for at in (1, 2)]
    assert drive(made, about(tmp_path, history), steps=(3,)) == []
    found = scalars(tmp_path / "tensorboard")
    assert [found["1_learning/reward", at] for at in (1, 2, 3)] == [0.5] * 3
    assert found["by_rollouts/eval_mean", 231] == 0.5
    assert found["4_replay/ratio_max/age1", 3] == 3.0
    assert ("3_optimizer/loss", 3) not in found
    assert {"config/text_summary", "sample_0/text_summary"} <= {tag for tag, _ in found}
    assert not any(tag.endswith(("/step", "/stage")) for tag, _ in found)
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1


def test_every_metric_of_the_pages_has_a_group():
    wanted = {"reward/format": 1, "kl_base": 2, "grad_norm": 3, "rows/age0": 4, "seconds/eval": 5}
    for name, group in wanted.items():
        assert tag(name).startswith(f"{group}_")


def test_the_page_s_own_tracker(tmp_path, monkeypatch):
    doc_pages.write_named(PAGE, tmp_path)
    monkeypatch.chdir(tmp_path)
    assert drive(trackers(["my_tracker.py:Table"]), about(tmp_path)) == []
    with open(tmp_path / "accuracy.csv", newline="") as file:
        assert list(csv.reader(file)) == [["1", "77", "0.5"], ["2", "154", "0.5"]]


def test_what_cannot_be_had_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match=r"needs the package wandb \(.*\): pip install wandb$"):
        trackers(["wandb"])
    with pytest.raises(InputError, match=r"--trackers=wandbb: must be tensorboard, wandb, .*py:f"):
        trackers(["wandbb"])
    with pytest.raises(InputError, match=r"nowhere.py"):
        trackers(["nowhere.py:Table"])


class Broken:
    """Fails where it is told to."""

    def __init__(self, where):
        self.where, self.calls = where, []

    def __getattr__(self, name):
        def call(*_):
            self.calls.append(name)
            if name == self.where:
                raise ConnectionError("server\ngone")

        return call


@pytest.mark.parametrize("where", ["write", "samples", "close", "made"])
def test_a_tracker_that_fails_is_named_once_and_the_others_go_on(where, tmp_path):
    seen, broken = Broken("nowhere"), Broken(where)

    def make(_run):
        if where == "made":
            raise ConnectionError("server\ngone")
        return broken

    errors = drive({"bad": make, "good": lambda _: seen}, about(tmp_path), steps=range(1, 6))
    assert errors == ["bad: server gone; it gets no more of this run"]
    assert seen.calls.count("write") == 5
    assert seen.calls[-1] == "close"
    assert broken.calls.count(where) <= 1


def test_a_tracker_that_hangs_holds_up_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(sink, "_CAPACITY", 5)
    forever = threading.Event()
    hanging = types.SimpleNamespace(
        write=lambda *_: forever.wait(60), samples=lambda *_: None, close=lambda: None
    )
    try:
        errors = drive({"slow": lambda _: hanging}, about(tmp_path), steps=range(1, 9))
    finally:
        forever.set()
    assert errors == ["slow: 5 calls behind; it gets no more of this run"]


class Calls:
    """A stand-in for a package: records calls, refuses those that the real signature refuses."""

    def __init__(self):
        self.made = []

    def function(self, name, signature, result=None):
        signature = inspect.signature(eval(f"lambda {signature}: None"))

        def call(*args, **kwargs):
            signature.bind(*args, **kwargs)
            self.made.append((name, args, kwargs))
            return result

        return call

    def of(self, name):
        return [(args, kwargs) for called, args, kwargs in self.made if called == name]


def install(monkeypatch, name, **members):
    """Puts a fake package in place of a real one."""
    package = types.ModuleType(name)
    package.__spec__ = importlib.machinery.ModuleSpec(name, None)
    for member, value in members.items():
        setattr(package, member, value)
    monkeypatch.setitem(sys.modules, name, package)


def test_wandb_as_wandb_0_31_is_called(tmp_path, monkeypatch):
    calls = Calls()
    run = types.SimpleNamespace(
        id="abc",
        log=calls.function("log", "data, step=None, commit=None"),
        define_metric=calls.function(
            "define_metric", "name, step_metric=None, step_sync=None, hidden=None, summary=None"
        ),
        finish=calls.function("finish", "exit_code=None"),
    )
    init = calls.function(
        "init", "entity=None, project=None, dir=None, id=None, name=None, config=None, resume=None",
        run,
    )  # fmt: skip
    table = calls.function("Table", "columns=None, data=None, rows=None", "table")
    install(monkeypatch, "wandb", init=init, Table=table)
    made = trackers(["wandb"])
    for _ in range(2):
        assert drive(made, about(tmp_path)) == []
    first, again = (kwargs for _, kwargs in calls.of("init"))
    assert (first["id"], first["resume"], first["name"]) == (None, None, "mine")
    assert (again["id"], again["resume"]) == ("abc", "allow")
    logged = [args[0] for args, _ in calls.of("log")]
    assert logged[0] == {"step": 1, "samples": "table"}
    assert (logged[1]["step"], logged[1]["1_learning/eval/mean"]) == (1, 0.5)
    assert calls.of("Table")[0][1]["data"][1] == ["a", "", "", "None"]
    assert len(calls.of("finish")) == 2


def test_trackio_as_trackio_0_43_is_called(tmp_path, monkeypatch):
    calls = Calls()
    run = types.SimpleNamespace(
        name="mine",
        log=calls.function("log", "metrics, step=None"),
        finish=calls.function("finish", ""),
    )
    init = calls.function(
        "init", "project, name=None, group=None, config=None, resume='never', embed=True", run
    )
    table = calls.function("Table", "columns=None, data=None, dataframe=None", "table")
    install(monkeypatch, "trackio", init=init, Table=table)
    made = trackers(["trackio"])
    for _ in range(2):
        assert drive(made, about(tmp_path)) == []
    assert [kwargs["resume"] for _, kwargs in calls.of("init")] == ["never", "allow"]
    assert calls.of("log")[1][0][0]["reward"] == 0.5
    assert calls.of("log")[1][1] == {"step": 1}


def test_mlflow_as_mlflow_3_17_is_called(tmp_path, monkeypatch):
    calls = Calls()
    signatures = {
        "get_experiment_by_name": ("name", None),
        "create_experiment": ("name, artifact_location=None, tags=None", "7"),
        "create_run": (
            "experiment_id, start_time=None, tags=None, run_name=None",
            types.SimpleNamespace(info=types.SimpleNamespace(run_id="r1")),
        ),
        "log_batch": ("run_id, metrics=(), params=(), tags=(), synchronous=None", None),
        "log_text": ("run_id, text, artifact_file", None),
        "log_dict": ("run_id, dictionary, artifact_file", None),
        "update_run": ("run_id, status=None, name=None", None),
        "set_terminated": ("run_id, status=None, end_time=None", None),
    }
    client = types.SimpleNamespace(
        **{name: calls.function(name, text, result) for name, (text, result) in signatures.items()}
    )
    install(monkeypatch, "mlflow", MlflowClient=lambda: client)
    entities = types.ModuleType("mlflow.entities")
    entities.Metric = lambda key, value, timestamp, step: (key, value, step)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    made = trackers(["mlflow"])
    for _ in range(2):
        assert drive(made, about(tmp_path)) == []
    assert len(calls.of("create_run")) == 1, "a run that continues is the same there"
    (run_id, metrics), _ = calls.of("log_batch")[0]
    assert run_id == "r1"
    assert ("reward", 0.5, 1) in metrics
    assert calls.of("log_text")[0][0][2] == "samples/step-000001.jsonl"
    assert len(calls.of("set_terminated")) == 2
