"""A finished run in tables and figures."""

import io
import math

import numpy as np
import pytest
from matplotlib.image import imread
from rich.console import Console

from remix_jax.run import report


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


def training(steps=40, mix=12, rate=2000.0):
    """A run with every figure: accuracy 1 - .75 exp(-rollouts / rate), a stage change, a NaN."""
    noise = np.random.default_rng(0).normal
    run = [{"step": 0, "rollouts": 0, "seconds": 0.0, "eval/short": 0.4, "eval/long": 0.1,
            "eval/mean": 0.25, "eval/response_length": 20.0}]  # fmt: skip
    rollouts = 0
    for k in range(1, steps + 1):
        mixing = k <= mix
        rollouts += 77 if mixing else 128
        accuracy = 1 - 0.75 * math.exp(-rollouts / rate)
        record = {
            "step": k, "stage": "mix" if mixing else "on-policy", "rollouts": rollouts,
            "tokens": 20 * rollouts, "seconds": 0.2 * k, "reward": accuracy + noise(0, 0.03),
            "response_length": 20 + noise(), "entropy": 0.4, "kl_base": 0.001 * k,
            "kl_prev": 0.002, "grad_norm": math.nan if k == 5 else 0.7, "critic_grad_norm": 0.5,
            "seconds/sample": 0.05, "seconds/grade": 0.01, "seconds/learn": 0.1,
            "seconds/eval": 0.04, "seconds/log": 0.0,
        }  # fmt: skip
        for age in range(3 if mixing else 1):
            record |= {
                f"ratio_mean/age{age}": 1 + 0.01 * age, f"ratio_max/age{age}": 2.0 + 4 * age,
                f"clip_share/age{age}": 0.02, f"ess/age{age}": 0.95,
                f"rows/age{age}": 26 * (k > age),
            }  # fmt: skip
        if k % 4 == 0:
            record |= {"eval/short": min(1, accuracy + 0.1), "eval/long": accuracy - 0.1,
                       "eval/mean": accuracy, "eval/response_length": 21.0}  # fmt: skip
        run.append(record)
    return run


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


# Figures


def assert_png(path, width):
    pixels = imread(path)
    assert pixels.shape[1] >= width
    assert pixels[..., :3].std() > 0.02, f"{path} is blank"


def test_the_sheet_is_drawn(tmp_path):
    path = report.draw(training(), tmp_path / "figures")
    assert [p.name for p in path.parent.iterdir()] == ["overview.png"]
    assert_png(path, width=1800)


def test_the_sheet_of_a_run_that_ended_at_once(tmp_path):
    for run in ([], training()[:1], training()[:2]):
        assert report.draw(run, tmp_path).stat().st_size > 3000


def panel_of(title, run):
    axis = report.Figure().subplots()
    (panel,) = [panel for panel in report.PANELS if panel.title == title]
    report.draw_panel(axis, panel, run)
    return axis


def test_dashed_line_stands_at_the_end_of_the_mix_stage():
    run = training(mix=12)
    for x, expected in (("step", 12), ("rollouts", 924), ("seconds", pytest.approx(2.4))):
        assert report.reincarnation(run, x) == expected
    assert report.reincarnation(training(mix=0), "step") is None
    axis = panel_of("KL divergence", run)
    assert [line.get_xdata()[0] for line in axis.lines if line.get_linestyle() == "--"] == [12]


def test_curves_are_the_numbers_of_the_run():
    run = training()
    axis = panel_of("Held-out accuracy", run)
    (mean,) = [line for line in axis.lines if line.get_marker() == "o"]
    assert list(mean.get_xdata()) == [r["rollouts"] for r in run if "eval/mean" in r]
    assert list(mean.get_ydata()) == [r["eval/mean"] for r in run if "eval/mean" in r]
    assert axis.get_legend_handles_labels()[1] == ["short", "long", "mean"]
    _, ages = panel_of("Importance ratio, mean", run).get_legend_handles_labels()
    assert ages == ["fresh", "1 step old", "2 steps old"]
    stack = panel_of("Seconds spent, by phase", run)
    assert stack.dataLim.ymax == pytest.approx(8.0)


def test_running_mean_stops_at_the_reincarnation():
    run = [
        {"step": k, "stage": "mix" if k <= 60 else "on-policy", "kl_base": float(k <= 60)}
        for k in range(1, 121)
    ]
    axis = panel_of("KL divergence", run)
    (smooth,) = [line for line in axis.lines if line.get_label() == "to the base"]
    assert list(smooth.get_ydata()) == [1.0] * 60 + [0.0] * 60
