"""The files of figures that a run writes: whole lines, cut to a checkpoint, on a full disk too."""

import contextlib
import json
import math

import numpy as np
import pytest

from remix_jax.errors import InputError
from remix_jax.files import JsonLines
from remix_jax.sinks.metrics import FILES, Record, cut, read_metrics
from tests.sinks.step_figures import step


def strict(text):
    def refuse(name):
        raise AssertionError(f"not strict JSON: {name}")

    return json.loads(text, parse_constant=refuse)


def write(record, step_figures):
    figures = dict(step_figures)
    record.write(figures.pop("step"), figures)


@contextlib.contextmanager
def recording(directory):
    with contextlib.closing(Record(directory)) as record:
        yield record


def test_metrics_round_trip_as_strict_json(tmp_path):
    first = step(1, loss=math.nan, ratio_max=math.inf, kl_base=-math.inf)
    with recording(tmp_path) as record:
        write(record, first)
        write(record, step(2, entropy=np.float32(0.25), n_fresh=np.int64(77)))
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


def test_samples_keep_any_text_and_shape(tmp_path):
    sample = {
        "prompt": 'two\nlines, "quotes", \u2028 and λ',
        "response": "broken \udc80 byte",
        "reward": np.float32(1.0),
        "correct": True,
        "reason": None,
        "mean_ratio": math.nan,
        "logp": np.array([-0.5, -math.inf]),
    }
    with recording(tmp_path) as record:
        record.samples(4, [sample])
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
    with pytest.warns(UserWarning, match="half-written"), recording(tmp_path) as record:
        record.write(2, {"reward": 0.75})
    assert [record["reward"] for record in read_metrics(path)] == [0.5, 0.75]


def test_whole_last_line_without_a_newline_is_kept(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}')
    with recording(tmp_path) as record:
        record.write(3, {})
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2, 3]


def test_half_written_line_longer_than_one_block(tmp_path):
    path = tmp_path / "samples.jsonl"
    path.write_text('{"step": 1}\n' + '{"response": "' + "x" * 200_000)
    with pytest.warns(UserWarning, match="half-written"), recording(tmp_path) as record:
        record.samples(2, [{}])
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_damage_before_the_last_line_is_an_error_with_its_place(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": \n{"step": 3}\n')
    with pytest.raises(InputError, match=r"metrics.jsonl, line 2"):
        read_metrics(tmp_path)
    path.write_text("{}\n{}\n")
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
    """The first attempt got beyond the checkpoint, and was killed."""
    known = {}
    with recording(tmp_path) as record:
        for at in (1, 2, 3):
            write(record, step(at, reward=at / 4))
            record.samples(at, [{"i": 0}, {"i": 1}])
            record.sync()
            known[at] = [(tmp_path / name).read_bytes() for name in FILES]
    with (tmp_path / "samples.jsonl").open("a") as file:
        file.write('{"step": 4, "resp')
    for _ in range(2):  # the second time there is nothing to drop
        assert cut(tmp_path, 2) is None
        assert [(tmp_path / name).read_bytes() for name in FILES] == known[2]
    with recording(tmp_path) as record:
        write(record, step(3, reward=0.75))
        record.samples(3, [{"i": 0}, {"i": 1}])
    assert [(tmp_path / name).read_bytes() for name in FILES] == known[3]
    assert cut(tmp_path, -1) is None  # from the beginning
    assert [(tmp_path / name).stat().st_size for name in FILES] == [0] * len(FILES)
    assert cut(tmp_path / "new", -1) is None  # nothing there


def test_continuing_says_what_is_missing_and_leaves_damage(tmp_path):
    metrics, samples = tmp_path / "metrics.jsonl", tmp_path / "samples.jsonl"
    metrics.write_text('{"step": 1}\n{"step": 3}\n')
    samples.write_text('{"step": 1, "i": 0}\n{"step": 2}\n{"step": 2}\n{"st')
    with pytest.warns(UserWarning, match="half-written"):
        note = cut(tmp_path, 2)
    assert metrics.read_text() == '{"step": 1}\n'
    assert samples.read_text() == '{"step": 1, "i": 0}\n{"step": 2}\n{"step": 2}\n'
    assert note == f"{metrics} has no line of step 2: what is missing stays missing"
    metrics.write_text('{"step": "x"}\n{"step": 3}\n')
    with pytest.raises(InputError, match="line 1"):
        cut(tmp_path, 1)
    assert metrics.read_text() == '{"step": "x"}\n{"step": 3}\n'


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
        assert "File too large" in lines.error
        assert (tmp_path / "lines.jsonl").read_text() == '{"step": 1}\n'
    with pytest.raises(OSError, match="too large"):
        lines.sync()
    file_limit(1000)
    lines.write({"step": 4})
    assert lines.error is None
    lines.sync()
    text = (tmp_path / "lines.jsonl").read_text()
    assert text == "".join(f'{{"step": {at}}}\n' for at in (1, 2, 3, 4))
    file_limit(50)
    lines.write({"step": 5})
    with pytest.raises(OSError, match="too large"):
        lines.close()
    assert (tmp_path / "lines.jsonl").read_text() == text
