"""A run as curves and tables."""

import io
import math

import pytest
from rich.console import Console

from remix_jax.run import report
from tests.run.records import training


def shown(renderable, width=120):
    stream = io.StringIO()
    Console(file=stream, width=width).print(renderable)
    return stream.getvalue()


def evaluations(*points, seconds=1.0):
    """A run that was only evaluated: (rollouts, accuracy) points, one a step."""
    return [
        {"step": i, "rollouts": x, "eval/mean": y, "seconds": i * seconds}
        for i, (x, y) in enumerate(points)
    ]


# Crossings


def rollouts_to(run, level, x="rollouts"):
    return report.crossing(*report.curve(run, report.ACCURACY, x), level)


def test_crossing_is_interpolated_between_evaluations():
    run = evaluations((0, 0.2), (100, 0.6), (200, 0.8), (300, 0.9))
    assert rollouts_to(run, 0.7) == pytest.approx(150)
    assert rollouts_to(run, 0.8) == pytest.approx(200)
    assert rollouts_to(run, 0.85) == pytest.approx(250)
    assert rollouts_to(run, 0.7, x="seconds") == pytest.approx(1.5)
    assert rollouts_to(run, 0.7, x="step") == pytest.approx(1.5)


def test_crossing_at_the_start_and_never():
    run = evaluations((0, 0.5), (100, 0.6))
    assert rollouts_to(run, 0.5) == 0
    assert rollouts_to(run, 0.7) is None
    assert rollouts_to([], 0.7) is None
    assert rollouts_to([{"step": 1, "rollouts": 5}], 0.7) is None


def test_one_lucky_evaluation_is_not_a_crossing():
    run = evaluations((0, 0.2), (100, 0.75), (200, 0.5), (300, 0.8), (400, 0.85))
    assert rollouts_to(run, 0.7) == pytest.approx(200 + 100 * 0.2 / 0.3)


def test_crossing_at_the_last_evaluation_and_before_a_collapse():
    assert rollouts_to(evaluations((0, 0.2), (100, 0.4), (200, 0.8)), 0.6) == 150
    collapsed = evaluations((0, 0.2), (100, 0.6), (200, 0.62), (300, 0.1), (400, 0.05))
    assert rollouts_to(collapsed, 0.6) == pytest.approx(100)


def test_crossing_ignores_missing_and_broken_values():
    run = evaluations((0, 0.2), (100, math.nan), (200, 0.8), (300, 0.9))
    run.insert(1, {"step": 1, "rollouts": 50, "reward": 0.9})
    assert rollouts_to(run, 0.5) == pytest.approx(100)


# Tables of one run


def row(text, start):
    """The numbers of the table row that begins with `start`."""
    (line,) = [line for line in text.splitlines() if line.strip().startswith(start)]
    return line.strip().removeprefix(start).split("  ")


def cells(text, start):
    return [cell.strip() for cell in row(text, start) if cell.strip()]


def test_final_table_shows_accuracy_and_cost():
    run = training()
    run[-1]["eval/mean"] = 0.5  # the best is not the last
    text = shown(report.final_table(run))
    best = 1 - 0.75 * math.exp(-run[36]["rollouts"] / 2000)
    assert cells(text, "mean of the suites") == [
        "25.0 %", f"{100 * best:.1f} %", f"{run[36]['rollouts']:,}", "50.0 %",
    ]  # fmt: skip
    assert cells(text, "short")[0] == "40.0 %"
    assert "response_length" not in text
    rollouts = 12 * 77 + 28 * 128
    assert cells(text, "steps") == ["40"]
    assert cells(text, "fresh rollouts") == [f"{rollouts:,}"]
    assert cells(text, "tokens generated") == [f"{20 * rollouts:,}"]
    assert cells(text, "seconds, sample") == ["2.0"]
    assert cells(text, "seconds, learn") == ["4.0"]
    assert cells(text, "seconds in all, without compilation") == ["8.0"]
    reached = rollouts_to(run, 0.7)
    assert cells(text, "rollouts to 70%") == [f"{reached:,.0f}"]
    assert cells(shown(report.final_table(run[:4])), "rollouts to 80%") == ["not reached"]


def test_final_table_of_an_interrupted_run():
    assert "not reached" in shown(report.final_table([]))
    assert "25.0 %" in shown(report.final_table(training()[:1]))


def test_ledger_adds_up():
    ledger = [
        {"fate": "trained 2 times", "rows": 750, "share": 0.75},
        {"fate": "too old [never drawn]", "rows": 250, "share": 0.25},
    ]
    text = shown(report.ledger_table(ledger))
    assert cells(text, "trained 2 times") == ["750", "75.0 %"]
    assert cells(text, "too old [never drawn]") == ["250", "25.0 %"]
    assert cells(text, "generated in all") == ["1,000", "100.0 %"]
