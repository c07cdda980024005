"""The console, as a live panel and as plain lines."""

import io
import math
import re

import pytest

from remix_jax.sinks.console import Console
from tests.sinks.step_figures import EVALUATED, step


def show(console, figures):
    figures = dict(figures)
    console.write(figures.pop("step"), figures)


def lines_of(console_steps, **settings):
    """Plain output of a console whose clock advances one second a step."""
    now, stream = [0.0], io.StringIO()
    console = Console(40, 3080, file=stream, terminal=False, clock=lambda: now[0], **settings)
    for figures in console_steps:
        now[0] += 1
        show(console, figures)
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
    assert "50.0 % (first 50.0 %, best 50.0 %) | short 70.0 % | long 30.0 %" in held_out
    for figure in ("step 11/40 mix", "reward 0.500", "accuracy 43.2 %", "21.5", "truncated 1.0 %",
                   "entropy 0.310", "KL to base 0.0123", "ratio by age 1.0001/1.0055", "max 3.50",
                   "clipped 3.1 %", "ESS 95.0 %", "sample 0.250 learn 0.125",
                   "left 0:00:29"):  # fmt: skip
        assert figure in lines[2], figure
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", stream.getvalue())


def test_plain_lines_ignore_environment_that_forces_colour(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    stream = io.StringIO()
    console = Console(10, file=stream)
    console.print_plan({"a": 1})
    show(console, step(1, loss=math.nan))
    console.event("[reincarnation] of the anchor")
    console.warning("step 1: ess 0.4")
    console.close()
    assert "\x1b" not in stream.getvalue()
    assert "* [reincarnation] of the anchor\n! step 1: ess 0.4\n" in stream.getvalue()


@pytest.mark.parametrize("columns", [80, 120])
def test_panel_shows_every_figure(monkeypatch, columns):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    now, stream = [0.0], io.StringIO()
    console = Console(40, 3080, file=stream, terminal=True, clock=lambda: now[0])
    for i in range(1, 12):
        now[0] += 1
        show(console, step(i, **(EVALUATED if i == 7 else {})))
    show(console, step(11) | {"rows/age2": 0, "ratio_mean/age2": 0.0})
    console.samples(11, [{"response": "well,\nso it is 7", "reward": 1.0}])
    console.event("saved [1]")
    console.warning("step 1: [ess] 0.4")
    assert "\x1b[1;31m! step 1: [ess] 0.4" in stream.getvalue()
    console.close()
    console.close()
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue())
    assert "* saved [1]" in text
    last = text[text.rindex("step 11 / 40") :]
    for figure in ("847 / 3,080", "0:00:11 < 0:00:29", "0.500", "43.2 %", "50.0 %", "21.5", "0.310",
                   "0.0123", "1.0042", "3.50", "3.1 %", "95.0 %", "-0.00400", "held-out", "ESS",
                   "first 50.0 %, best 50.0 %", "sample 0.250", "learn 0.125", "12,345",
                   "reward 1.0: ...well, so it is 7"):  # fmt: skip
        assert figure in last, figure
    assert max(map(len, last.splitlines())) <= columns


def test_panel_survives_missing_and_broken_figures(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = io.StringIO()
    console = Console(40, file=stream, terminal=True)
    show(console, {"step": 0, "rollouts": 0, "eval/mean": 0.25})
    show(console, {"step": 1, "loss": math.nan, "ratio_max": math.inf})
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
