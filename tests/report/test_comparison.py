"""Several methods compared: settings, pairing, tables and figures from JSON alone."""

import io
import math

import pytest
from rich.console import Console

from experiments.report import comparison_figures, comparison_tables, files
from experiments.report.comparison import Comparison
from experiments.report.figures import line_style
from tests.report.runs import METHODS, comparison, images, record, rows, tuned


@pytest.fixture
def data():
    """.7 is at 5000, 4000, 5000 rollouts for PPO and at 2000, 2000, 2500 for ReMix."""
    slopes = {"ppo": (0.1, 0.125, 0.1), "remix-ppo": (0.25, 0.25, 0.2)}
    return comparison([
        record(method, slope, seed, seconds=1.0 if method == "ppo" else 2.0)
        for method, row in slopes.items() for seed, slope in enumerate(row)
    ])  # fmt: skip


def markdown(data):
    return comparison_tables.markdown(Comparison(data))


# Pairing and ratios


def test_ratios_pair_by_seed_and_not_by_order(data):
    runs = Comparison(data)
    assert dict(runs.crossings("ppo", "equal", 0.7)) == pytest.approx({0: 5000, 1: 4000, 2: 5000})
    expected = {0: 2.5, 1: 2.0, 2: 2.0}
    assert dict(runs.ratios("remix-ppo", "equal", 0.7)) == pytest.approx(expected)
    assert dict(runs.ratios("ppo", "equal", 0.7, base="remix-ppo"))[0] == pytest.approx(0.4)
    data["trials"].reverse()
    assert dict(Comparison(data).ratios("remix-ppo", "equal", 0.7)) == pytest.approx(expected)
    data["trials"] = [t for t in data["trials"] if (t["method"], t["seed"]) != ("ppo", 1)]
    runs = Comparison(data)
    assert dict(runs.ratios("remix-ppo", "equal", 0.7)) == pytest.approx({0: 2.5, 2: 2.0})
    assert list(runs.runs("remix-ppo", "equal").index) == [0, 1, 2]


def test_ratio_in_other_costs_and_by_base(data):
    ratios = Comparison(data).ratios("remix-ppo", "equal", 0.7, "seconds")
    assert dict(ratios) == pytest.approx({0: 10 / 8, 1: 1.0, 2: 1.0})
    for trial in data["trials"]:
        trial["base"] = "even" if trial["seed"] % 2 == 0 else "odd"
    by_base = Comparison(data).ratios_by_base("remix-ppo", "equal", 0.7)
    medians = {base: value.median for base, value in by_base.items()}
    assert medians == pytest.approx({"even": 2.25, "odd": 2.0})


def test_a_base_may_have_a_base_itself(data, tmp_path):
    """As adapters' have: each method is compared with its own, and stands in each table once."""
    data["methods"] = [*METHODS, {"name": "low", "label": "Low", "reference": "remix-ppo"}]
    data["trials"] += [record("low", 0.125, seed) for seed in range(3)]
    runs = Comparison(data)
    assert runs.families == {"ppo": ["ppo", "remix-ppo"], "remix-ppo": ["remix-ppo", "low"]}
    assert dict(runs.ratios("low", "equal", 0.7))[0] == pytest.approx(0.5)
    assert sum(line.startswith("| ReMix-PPO | 1e-4") for line in markdown(data).splitlines()) == 4
    files.write("comparison", data, tmp_path)
    assert images(tmp_path)


def test_levels_that_were_never_reached(data):
    data["trials"][0] = record("ppo", 0.1, 0, end=4000)
    data["trials"][5] = record("remix-ppo", 0.1, 2, end=1000)
    found = Comparison(data).ratios("remix-ppo", "equal", 0.7)
    assert dict(found) == {0: math.inf, 1: 2.0, 2: 0.0}
    text = markdown(data)
    assert rows(text, "**Fresh rollouts")["PPO"][2] == "5,000 [4,000–never]"
    assert rows(text, "**Fresh rollouts")["ReMix-PPO"][2] == "2,000 [2,000–never]"
    assert rows(text, "**Times fewer")["ReMix-PPO"][1] == "2.00 [0.00–∞]"
    neither = comparison([record(name, 0.01, 0) for name in ("ppo", "remix-ppo")])
    assert Comparison(neither).ratios("remix-ppo", "equal", 0.7).isna().all()
    start = Comparison(neither).ratios("remix-ppo", "equal", 0.2)
    assert start.isna().all(), "no ratio to what costs nothing"


def test_break_even_is_the_price_at_which_both_cost_the_same(data):
    """PPO takes 5000 rollouts in 10 s, ReMix 2000 in 8 s times `slow`."""
    assert Comparison(data).break_even("remix-ppo", "equal").median == 0
    for trial in data["trials"][3:]:
        trial["curve"]["seconds"] = [2 * s for s in trial["curve"]["seconds"]]
    found = Comparison(data).break_even("remix-ppo", "equal")
    prices = [(16 - 10) / 3000, (16 - 8) / 2000, (20 - 10) / 2500]
    assert found.median == pytest.approx(sorted(prices)[1])
    assert found.used == 3
    assert Comparison(data).break_even("ppo", "equal") is None


# Selection


def test_best_rate_is_that_of_the_validation_curve():
    data = tuned()
    runs = Comparison(data)
    assert dict(runs.validation("ppo", 2e-4)) == pytest.approx({0: 0.5, 1: 0.5, 2: 0.5})
    assert runs.best == {"ppo": 2e-4, "remix-ppo": 1e-4}
    assert list(runs.runs("ppo", "best")["learning_rate"]) == [2e-4] * 3
    assert list(runs.runs("ppo", "equal")["learning_rate"]) == [1e-4] * 3
    # the base is compared at its own best: .7 at 5000 against 2500
    ratios = runs.ratios("remix-ppo", "best", 0.7)
    assert dict(ratios) == pytest.approx(dict.fromkeys(range(3), 2.0))
    text = markdown(data)
    assert "PPO: its best rate 2e-4 is the greatest that was tried" in text
    assert "ReMix-PPO: its best rate 1e-4 is the smallest that was tried" in text
    assert rows(text, "**Mean validation")["PPO"] == ["40.0", "(50.0)"]
    assert "## Equal learning rate, 1e-4" in text
    assert "## Each at its own best" in text
    data["trials"].append(record("ppo", 0.1, 7, validation=1.0))
    assert Comparison(data).best["ppo"] == 2e-4, "seed 7 is no selection seed"


# Tables and figures


def test_tables_equal_hand_computed_numbers(data):
    text = markdown(data)
    assert rows(text, "**Fresh rollouts")["ReMix-PPO"] == [
        "1e-4", "1,600 [1,600–2,000]", "2,000 [2,000–2,500]", "2,400 [2,400–3,000]",
    ]  # fmt: skip
    gains = rows(text, "**Times fewer")
    assert gains["PPO"] == ["1", "1", "1", "80.0 [80.0–90.0]", "3"]
    assert gains["ReMix-PPO"] == ["2.00 [2.00–2.50]"] * 3 + ["90.0", "3"]
    assert rows(text, "**Generated tokens, thousands")["PPO"][2] == "50 [40–50]"
    assert rows(text, "**Training FLOPs, 10^12")["PPO"][2:] == ["20 [16–20]", "24 [19.2–24]", "1"]
    assert rows(text, "**Seconds")["ReMix-PPO"][2:] == [
        "8.0 [8.0–10.0]", "9.6 [9.6–12.0]", "1.00 [1.00–1.25]",
    ]  # fmt: skip
    assert rows(text, "**Final accuracy by suite")["PPO"] == [
        "85.0 [85.0–95.0]", "75.0 [75.0–85.0]", "80.0 [80.0–90.0]",
    ]  # fmt: skip
    by_base = rows(text, "**Base / method in rollouts to 70 %")["ReMix-PPO"]
    assert by_base == ["2.50 (1)", "2.00 (1)", "2.00 (1)"]
    assert rows(text, "**Model, not a measurement")["ReMix-PPO"] == ["0 ms"]
    assert "nothing was tuned" in text
    assert "3 seeds on 3 independently made base models" in text
    assert text.rstrip().endswith("* command: compare")
    assert "## Each at its own best" not in text


def test_best_accuracy_is_the_greatest(data):
    curve = data["trials"][0]["curve"]
    for suite in (curve["accuracy"], *curve["suites"].values()):
        suite[-1] = 0.1
    runs = Comparison(data)
    assert list(runs.accuracies("ppo", "equal", "accuracy")) == [0.1, 0.9, 0.8]
    best = runs.accuracies("ppo", "equal", "eval/chain3", best=True)
    assert list(best) == pytest.approx([0.8, 0.95, 0.85])
    text = markdown(data)
    assert rows(text, "**Final accuracy by suite")["PPO"][2] == "80.0 [10.0–90.0]"
    assert rows(text, "**Best accuracy of the run")["PPO"][2] == "80.0 [75.0–90.0]"


def test_quantities_that_runs_lack_are_left_out(data):
    for trial in data["trials"]:
        del trial["curve"]["flops"], trial["curve"]["seconds"], trial["curve"]["validation"]
    text = markdown(data)
    assert "FLOPs" not in text
    assert "Model, not" not in text
    assert "tokens" in text
    figures = comparison_figures.draw(Comparison(data))
    assert list(figures) == ["comparison", "comparison_ratios"]


def test_terminal_shows_both_settings_in_120_columns():
    data = tuned()
    data["methods"] = [m | {"label": f"{m['label']} without reincarnation"} for m in METHODS]
    stream = io.StringIO()
    Console(file=stream, width=120).print(comparison_tables.terminal(Comparison(data)))
    text = stream.getvalue()
    assert text.count("Fresh rollouts to a held-out accuracy") == 2
    assert "Equal learning rate, 1e-4: median over seeds [95 % bootstrap interval]" in text
    assert "Each at its own best learning rate" in text
    assert "…" not in text
    assert text.count("seeds \n") + text.count("seeds\n") == 2


def test_json_alone_gives_the_figures(tmp_path, data):
    """Runs of which none reaches the target, and figures that change with their data."""
    one = comparison([record(name, 0.01, 0) for name in ("ppo", "remix-ppo")])
    files.write("comparison", one, tmp_path / "one")
    first = images(tmp_path / "one")
    assert set(first) == {"comparison.png", "comparison_ratios.png", "comparison_seconds.png"}
    one["trials"][0]["curve"]["accuracy"][2] += 0.3
    files.write("comparison", one, tmp_path / "two")
    second = images(tmp_path / "two")
    assert (first["comparison.png"] != second["comparison.png"]).any()
    assert (first["comparison_ratios.png"] == second["comparison_ratios.png"]).all()


def test_figures_show_few_curves_and_each_method_in_its_own_style():
    names = ["ppo", "remix-ppo", "mix-ppo", "utd-ppo", "remix-plus-ppo"]
    methods = [{"name": n, "label": n, "reference": "ppo"} for n in names]
    trials = [record(n, 0.2, 0) for n in names]
    runs = Comparison(comparison(trials, methods=methods))
    shown = comparison_figures.main_methods(runs, "ppo")
    assert shown == ["ppo", "remix-ppo", "remix-plus-ppo"]
    styles = [tuple(line_style(i).values()) for i in range(14)]
    assert len(set(styles)) == 14
