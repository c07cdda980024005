"""What a run writes while it trains: the files, and the console in both of its modes."""

import io
import json
import math
import re

import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from remix_jax.errors import InputError
from remix_jax.sinks.console import Console
from remix_jax.sinks.metrics import (
    JsonLines,
    MetricsWriter,
    SamplesWriter,
    cut,
    read_metrics,
)


def step(index, **more):
    """Figures of one step, as the training loop hands them in."""
    figures = {
        "step": index,
        "stage": "mix",
        "rollouts": 77 * index,
        "reward": 0.5,
        "accuracy": 0.4321,
        "response_length": 21.5,
        "truncated_rate": 0.01,
        "format_rate": 0.99,
        "entropy": 0.31,
        "kl_base": 0.0123,
        "kl_prev": 0.0021,
        "loss": -0.004,
        "grad_norm": 0.7,
        "ratio_mean": 1.0042,
        "ratio_max": 3.5,
        "clip_share": 0.031,
        "ess": 0.95,
        "seconds/sample": 0.25,
        "seconds/learn": 0.125,
        "tokens_per_second": 12345.0,
    }
    for age, ratio in enumerate((1.0001, 1.0055)):
        figures |= {
            f"rows/age{age}": 77 - 26 * age,
            f"ratio_mean/age{age}": ratio,
            f"ratio_max/age{age}": 2.0 + age,
            f"clip_share/age{age}": 0.02,
            f"ess/age{age}": 0.9,
        }
    return figures | more


EVALUATED = {"eval/short": 0.7, "eval/long": 0.3, "eval/mean": 0.5, "eval/response_length": 20.0}


def strict(text):
    def refuse(name):
        raise AssertionError(f"not strict JSON: {name}")

    return json.loads(text, parse_constant=refuse)


def events(directory):
    """(tag, step) -> value of every scalar that TensorBoard would show."""
    scalars = {}
    for path in directory.glob("events.*"):
        data = path.read_bytes()
        while data:  # length (8), its check (4), record, its check (4)
            size = int.from_bytes(data[:8], "little")
            event = event_pb2.Event.FromString(data[12 : 12 + size])
            scalars |= {(v.tag, event.step): v.simple_value for v in event.summary.value}
            data = data[16 + size :]
    return scalars


def test_metrics_round_trip_as_strict_json(tmp_path):
    first = step(1, loss=math.nan, ratio_max=math.inf, kl_base=-math.inf)
    with MetricsWriter(tmp_path) as writer:
        writer.write(first)
        writer.write(step(2, entropy=np.float32(0.25), n_fresh=np.int64(77)))
        lines = (tmp_path / "metrics.jsonl").read_text().splitlines()  # there before closing
    assert len(lines) == 2
    assert strict(lines[0])["loss"] == "NaN"
    assert strict(lines[0])["ratio_max"] == "Infinity"
    assert strict(lines[0])["kl_base"] == "-Infinity"
    assert strict(lines[1])["n_fresh"] == 77
    back = read_metrics(tmp_path)
    assert math.isnan(back[0].pop("loss"))
    assert back[0]["stage"] == "mix"
    assert back[0] == {key: value for key, value in first.items() if key != "loss"}
    assert back[1]["entropy"] == 0.25


def test_tensorboard_has_steps_and_rollouts_as_axes(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(step(3, loss=math.nan, **EVALUATED))
    scalars = events(tmp_path / "tensorboard")
    assert scalars["train/reward", 3] == 0.5
    assert scalars["eval/mean", 3] == 0.5
    assert scalars["by_rollouts/eval_mean", 231] == 0.5
    assert ("train/loss", 3) not in scalars
    assert not any(tag in ("train/stage", "train/step") for tag, _ in scalars)


def test_everything_is_written_and_closed_on_an_exception(tmp_path):
    stream = io.StringIO()
    writer = MetricsWriter(tmp_path, Console(10, file=stream, terminal=True))
    samples = SamplesWriter(tmp_path)

    def interrupted():
        with writer, samples:
            writer.write(step(1))
            samples.write({"step": 1, "response": "a"})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    writer.close()
    samples.close()
    assert [record["step"] for record in read_metrics(tmp_path)] == [1]
    assert events(tmp_path / "tensorboard")["train/reward", 1] == 0.5
    assert len((tmp_path / "samples.jsonl").read_text().splitlines()) == 1
    assert stream.getvalue().rstrip().endswith("\x1b[?25h")  # the cursor is back


def test_a_failing_console_does_not_keep_files_open(tmp_path):
    class Broken:
        def update(self, metrics):
            pass

        def close(self):
            raise OSError("terminal gone")

    writer = MetricsWriter(tmp_path, Broken())
    writer.write(step(1))
    with pytest.raises(OSError, match="terminal gone"):
        writer.close()
    assert events(tmp_path / "tensorboard")["train/reward", 1] == 0.5


def test_samples_keep_any_text_and_shape(tmp_path):
    sample = {
        "step": 4,
        "prompt": 'two\nlines, "quotes", \u2028 and λ',
        "response": "broken \udc80 byte",
        "reward": np.float32(1.0),
        "correct": True,
        "reason": None,
        "mean_ratio": math.nan,
        "logp": np.array([-0.5, -math.inf]),
    }
    with SamplesWriter(tmp_path) as writer:
        writer.write(sample)
    text = (tmp_path / "samples.jsonl").read_text(encoding="utf-8")
    assert text.count("\n") == 1
    back = strict(text)
    assert back["prompt"] == sample["prompt"]
    assert back["response"] == sample["response"]
    assert back["correct"] is True
    assert back["reason"] is None
    assert (back["reward"], back["mean_ratio"]) == (1.0, "NaN")
    assert back["logp"] == [-0.5, "-Infinity"]


def test_half_written_last_line_is_left_out_and_reported(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "reward": 0.5}\n{"step": 2, "rew')
    with pytest.warns(UserWarning, match="half-written"):
        assert read_metrics(tmp_path) == [{"step": 1, "reward": 0.5}]
    with pytest.warns(UserWarning, match="half-written"), MetricsWriter(tmp_path) as writer:
        writer.write({"step": 2, "reward": 0.75})
    assert [record["reward"] for record in read_metrics(path)] == [0.5, 0.75]


def test_whole_last_line_without_a_newline_is_kept(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}')
    with MetricsWriter(tmp_path) as writer:
        writer.write({"step": 3})
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2, 3]


def test_half_written_line_longer_than_one_block(tmp_path):
    path = tmp_path / "samples.jsonl"
    path.write_text('{"step": 1}\n' + '{"response": "' + "x" * 200_000)
    with pytest.warns(UserWarning, match="half-written"), SamplesWriter(tmp_path) as writer:
        writer.write({"step": 2})
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_damage_before_the_last_line_is_an_error_with_its_place(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": \n{"step": 3}\n')
    with pytest.raises(InputError, match=r"metrics.jsonl, line 2"):
        read_metrics(tmp_path)
    path.write_text("[1, 2]\n{}\n")
    with pytest.raises(InputError, match=r"line 1: expected a JSON object with a step"):
        read_metrics(tmp_path)
    with pytest.raises(InputError, match="no metrics here"):
        read_metrics(tmp_path / "elsewhere")


def test_a_resumed_run_reads_as_one(tmp_path):
    path = tmp_path / "metrics.jsonl"
    written = [(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4), (2, 0.25), (3, 0.35)]  # resumed after 1
    path.write_text("".join(f'{{"step": {s}, "reward": {r}}}\n' for s, r in written))
    with path.open("a") as file:
        file.write('{"step": 3, "eval/mean": 0.5}\n')  # a second line of the same step
    assert read_metrics(tmp_path) == [
        {"step": 1, "reward": 0.1},
        {"step": 2, "reward": 0.25},
        {"step": 3, "reward": 0.35, "eval/mean": 0.5},
    ]


def test_continuing_drops_what_came_after_the_checkpoint(tmp_path):
    """By the places that the checkpoint knows: the first attempt got further, and was killed."""
    places = {}
    with MetricsWriter(tmp_path) as metrics, SamplesWriter(tmp_path) as samples:
        for at in (1, 2, 3):
            metrics.write(step(at, reward=at / 4))
            samples.write({"step": at, "i": 0})
            samples.write({"step": at, "i": 1})
            if at == 2:
                places = {"metrics.jsonl": metrics.sync(), "samples.jsonl": samples.sync()}
    whole = {name: (tmp_path / name).read_bytes() for name in places}
    with (tmp_path / "samples.jsonl").open("a") as file:
        file.write('{"step": 4, "resp')
    assert cut(tmp_path, places, 2) == []
    for name, place in places.items():
        assert (tmp_path / name).read_bytes() == whole[name][:place]
    assert cut(tmp_path, places, 2) == []  # nothing to drop
    assert cut(tmp_path / "new", dict.fromkeys(places, 0), 0) == []  # nothing there
    with MetricsWriter(tmp_path) as metrics:
        metrics.write(step(3, reward=0.75))
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole["metrics.jsonl"]
    assert cut(tmp_path, dict.fromkeys(places, 0), 0) == []
    assert [(tmp_path / name).stat().st_size for name in places] == [0, 0]


def test_continuing_cuts_a_changed_file_by_its_steps_and_says_so(tmp_path):
    metrics, samples = tmp_path / "metrics.jsonl", tmp_path / "samples.jsonl"
    metrics.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n')
    samples.write_text('{"step": 1, "i": 0}\n{"step": 2}\n{"step": 2}\n{"step": 3}\n{"st')
    with pytest.warns(UserWarning, match="half-written"):
        notes = cut(tmp_path, {"metrics.jsonl": 30, "samples.jsonl": 500}, 2)
    assert metrics.read_text() == '{"step": 1}\n{"step": 2}\n'
    assert samples.read_text() == '{"step": 1, "i": 0}\n{"step": 2}\n{"step": 2}\n'
    assert ["36 bytes, 30 belong" in notes[0], "500 belong" in notes[1]] == [True, True]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "samples.jsonl"]
    metrics.write_text('{"step": "x"}\n{"step": 3}\n')
    with pytest.raises(InputError, match="line 1"):
        cut(tmp_path, {"metrics.jsonl": 3}, 1)
    assert metrics.read_text() == '{"step": "x"}\n{"step": 3}\n'


def test_tensorboard_shows_every_step_once_after_a_killed_attempt(tmp_path):
    writer = MetricsWriter(tmp_path)  # killed: never closed, its events still in a buffer
    for at in (1, 2, 3):
        writer.write(step(at, reward=at / 4))
    assert cut(tmp_path, {"metrics.jsonl": writer.sync() // 3 * 2 + 1}, 2)
    with MetricsWriter(tmp_path) as second:
        second.write(step(3, reward=0.5))
    scalars = events(tmp_path / "tensorboard")
    assert [scalars["train/reward", at] for at in (1, 2, 3)] == [0.25, 0.5, 0.5]
    assert scalars["by_rollouts/reward", 154] == 0.5
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1


@pytest.fixture
def file_limit():
    """Sets how large a file of this process may become: beyond it a write is cut short or fails."""
    import resource
    import signal

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda n: resource.setrlimit(resource.RLIMIT_FSIZE, (n, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_neither_ends_the_record_nor_leaves_half_a_line(tmp_path, file_limit):
    lines = JsonLines(tmp_path / "lines.jsonl")
    lines.write({"step": 1})
    file_limit(20)
    for at in (2, 3):
        lines.write({"step": at})
        assert "File too large" in lines.trouble
        assert (tmp_path / "lines.jsonl").read_text() == '{"step": 1}\n'
    with pytest.raises(OSError, match="too large"):
        lines.sync()
    file_limit(1000)
    lines.write({"step": 4})
    assert lines.trouble is None
    assert lines.sync() == 48
    text = (tmp_path / "lines.jsonl").read_text()
    assert text == "".join(f'{{"step": {at}}}\n' for at in (1, 2, 3, 4))
    file_limit(50)
    lines.write({"step": 5})
    with pytest.raises(OSError, match="too large"):
        lines.close()
    assert (tmp_path / "lines.jsonl").read_text() == text


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_ends_tensorboard_alone(tmp_path, file_limit):
    with MetricsWriter(tmp_path) as writer:
        file_limit(10)
        writer.write(step(1))
        assert writer.trouble.startswith(f"{tmp_path}/metrics.jsonl: File too large")
        file_limit(100_000)
        writer.write(step(2))
        assert writer.trouble.startswith("tensorboard: File too large")
        assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2]
    with MetricsWriter(tmp_path) as writer:
        assert writer.trouble is None
    assert ("train/reward", 1) in events(tmp_path / "tensorboard")


def lines_of(console_steps, **settings):
    """Plain output of a console whose clock advances one second a step."""
    now, stream = [0.0], io.StringIO()
    console = Console(40, 3080, file=stream, terminal=False, clock=lambda: now[0], **settings)
    for figures in console_steps:
        now[0] += 1
        console.update(figures)
    console.close()
    return console, stream


def test_plain_lines_come_by_time_at_evaluations_and_at_the_end():
    steps = [step(i, **(EVALUATED if i == 7 else {})) for i in range(1, 41)]
    _, stream = lines_of(steps, every_seconds=10.0)
    lines = stream.getvalue().splitlines()
    assert [int(line.split()[1].split("/")[0]) for line in lines if line.startswith("step")] == [
        *(1, 11, 21, 31),
        40,
    ]
    (held_out,) = [line for line in lines if line.startswith("held-out")]
    assert "step 7" in held_out
    assert "50.0 % (best 50.0 %) | short 70.0 % long 30.0 %" in held_out
    for figure in ("step 11/40 mix", "rollouts 847", "reward 0.500", "accuracy 43.2 %", "21.5",
                   "entropy 0.310", "KL 0.0123 base 0.00210 prev", "ratio 1.0042 max 3.50",
                   "by age 1.0001/1.0055", "clip 3.1 %", "ESS 95.0 %", "sample 0.250 learn 0.125",
                   "12,345 tokens/s", "left 0:29"):  # fmt: skip
        assert figure in lines[2], figure
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", stream.getvalue())


def test_plain_lines_ignore_environment_that_forces_colour(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    stream = io.StringIO()
    console = Console(10, file=stream)
    console.print_plan({"a": 1})
    console.update(step(1, loss=math.nan))
    console.event("[reincarnation] of the anchor")
    console.close()
    assert "\x1b" not in stream.getvalue()
    assert "* [reincarnation] of the anchor\n" in stream.getvalue()


@pytest.mark.parametrize("columns", [80, 120])
def test_panel_shows_every_figure(monkeypatch, columns):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    now, stream = [0.0], io.StringIO()
    console = Console(40, 3080, file=stream, terminal=True, clock=lambda: now[0])
    for i in range(1, 12):
        now[0] += 1
        console.update(step(i, **(EVALUATED if i == 7 else {})))
    console.update(step(11) | {"rows/age2": 0, "ratio_mean/age2": 0.0})
    console.event("saved [1]")
    console.close()
    console.close()
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue())
    assert "* saved [1]" in text
    last = text[text.rindex("step 11 / 40") :]
    for figure in ("847 / 3,080", "0:11 < 0:29", "0.500", "43.2 %", "50.0 %", "21.5", "0.310",
                   "0.0123", "0.00210", "1.0042", "3.50", "3.1 %", "95.0 %", "-0.00400",
                   "KL precedent", "age of the row", "ESS", "fresh", "1 step", "1.0055", "90.0 %",
                   "sample 0.250", "learn 0.125", "12,345"):  # fmt: skip
        assert figure in last, figure
    assert "2 steps" not in last  # an age without rows has no figures
    assert max(map(len, last.splitlines())) <= columns


def test_panel_survives_missing_and_broken_figures(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = io.StringIO()
    console = Console(40, file=stream, terminal=True)
    console.update({"step": 0, "rollouts": 0, "eval/mean": 0.25})
    console.update({"step": 1, "loss": math.nan, "ratio_max/age0": math.inf})
    console.close()
    assert "nan" in stream.getvalue()
    assert "inf" in stream.getvalue()


def test_plan_is_a_titled_table():
    stream = io.StringIO()
    Console(40, file=stream).print_plan({"fresh rollouts": 79360, "share [p]": 0.4}, title="Plan")
    text = stream.getvalue()
    assert text.lstrip().startswith("Plan")
    assert re.search(r"fresh rollouts\s+79,360", text)
    assert re.search(r"share \[p\]\s+0\.4", text)
