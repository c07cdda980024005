"""Several methods compared: settings, pairing, tables and figures from JSON alone."""

import copy
import io
import json
import math

import pytest
from rich.console import Console

from remix_jax.errors import InputError
from remix_jax.reporting import comparison, comparison_plot, comparison_tables
from remix_jax.reporting import comparison_numbers as numbers
from tests.reporting import redrawn, synthetic

METHODS = [
    {"name": "ppo", "label": "PPO", "reference": "ppo"},
    {"name": "remix-ppo", "label": "ReMix-PPO", "reference": "ppo"},
]


def line(slope, *, end=6000, seconds=1.0, validation=None):
    """A run on a straight line to .9: .2 + slope a thousand rollouts; evaluated every 500."""
    run = []
    for step, x in enumerate(range(0, end + 1, 500)):
        accuracy = min(0.9, 0.2 + slope * x / 1000)
        run.append({
            "step": step, "rollouts": x, "tokens": 10 * x, "flops": 4e9 * x,
            "seconds": seconds * step, "eval/mean": accuracy, "eval/chain3": accuracy + 0.05,
            "eval/chain7": accuracy - 0.05, "eval/response_length": 11.0,
            "validation/chain5": accuracy if validation is None else validation,
        })  # fmt: skip
    return run


def record(method, slope, seed, *, rate=1e-4, base=None, **how):
    return comparison.trial(
        line(slope, **how), method=method, learning_rate=rate, seed=seed, base=base or f"b{seed}"
    )


def data_of(trials, rates=(1e-4,), seeds=(0, 1, 2), **fields):
    return {
        "about": {"command": "compare"}, "levels": [0.6, 0.7, 0.8], "target": 0.7,
        "equal_learning_rate": 1e-4, "learning_rates": list(rates), "methods": METHODS,
        "selection_seeds": list(seeds), "trials": trials,
    } | fields  # fmt: skip


@pytest.fixture
def data():
    """.7 is at 5000, 4000, 5000 rollouts for PPO and at 2000, 2000, 2500 for ReMix."""
    slopes = {"ppo": (0.1, 0.125, 0.1), "remix-ppo": (0.25, 0.25, 0.2)}
    return data_of([
        record(method, slope, seed, seconds=1.0 if method == "ppo" else 2.0)
        for method, row in slopes.items() for seed, slope in enumerate(row)
    ])  # fmt: skip


def shown(renderable, width=120):
    stream = io.StringIO()
    Console(file=stream, width=width).print(renderable)
    return stream.getvalue()


def rows(markdown, title):
    """Label -> cells of the first Markdown table below a title."""
    lines = iter(markdown.splitlines())
    assert any(text.startswith(f"**{title}") for text in lines), title
    table = {}
    for text in lines:
        if text.startswith("| "):
            name, *cells = [cell.strip() for cell in text.strip("|").split("|")]
            table[name] = cells
        elif table and not text.startswith("|"):
            return table
    return table


# The record of a run


def test_trial_keeps_the_evaluations():
    run = line(0.1)
    run.insert(1, {"step": 0, "rollouts": 76, "reward": 0.5})
    run[3]["eval/mean"] = 0.123456789
    trial = comparison.trial(run, method="ppo", learning_rate=1e-4, seed=3, base="b")
    assert {key: trial[key] for key in ("method", "learning_rate", "seed", "base")} == {
        "method": "ppo", "learning_rate": 1e-4, "seed": 3, "base": "b",
    }  # fmt: skip
    curve = trial["curve"]
    assert curve["rollouts"] == list(range(0, 6001, 500))
    assert curve["accuracy"][2] == 0.12346
    assert curve["flops"][1] == 2e12
    assert curve["validation"][1] == 0.25
    assert curve["response_length"] == [11] * 13
    assert list(curve["suites"]) == ["chain3", "chain7"]
    assert curve["suites"]["chain7"][-1] == 0.75


def test_trial_of_an_older_run_leaves_lists_out():
    run = [
        {key: value for key, value in step.items() if not key.startswith(("flops", "validation"))}
        for step in line(0.1)
    ]
    curve = comparison.trial(run, method="ppo", learning_rate=1e-4, seed=0, base="b")["curve"]
    assert "flops" not in curve
    assert "validation" not in curve
    two = [step | {"validation/a": 0.25, "validation/b": 0.75} for step in run]
    assert comparison.trial(two, method="m", learning_rate=1, seed=0, base="b")["curve"][
        "validation"
    ] == [0.5] * len(run)


def test_trial_refuses_broken_runs():
    def refused(run, match):
        with pytest.raises(InputError, match=match) as error:
            comparison.trial(run, method="ppo", learning_rate=1e-4, seed=0, base="b")
        assert "\n" not in str(error.value)

    refused([{"step": 1, "rollouts": 5, "reward": 0.5}], "no step with eval/mean")
    broken = line(0.1)
    del broken[2]["flops"]
    refused(broken, "flops must be a finite number in all of the 13 evaluations")
    refused([line(0.1)[0] | {"eval/mean": math.nan}], "eval/mean must be a finite number")


# Pairing and ratios


def test_ratios_pair_by_seed_and_not_by_order(data):
    assert numbers.crossings(data, "ppo", "equal", 0.7) == pytest.approx(
        {0: 5000, 1: 4000, 2: 5000}
    )
    expected = {0: 2.5, 1: 2.0, 2: 2.0}
    assert numbers.ratios(data, "remix-ppo", "equal", 0.7) == pytest.approx(expected)
    data["trials"].reverse()
    assert numbers.ratios(data, "remix-ppo", "equal", 0.7) == pytest.approx(expected)
    data["trials"] = [t for t in data["trials"] if (t["method"], t["seed"]) != ("ppo", 1)]
    assert numbers.ratios(data, "remix-ppo", "equal", 0.7) == pytest.approx({0: 2.5, 2: 2.0})
    assert list(numbers.setting(data, "remix-ppo", "equal")) == [0, 1, 2]


def test_ratio_in_other_costs_and_by_base(data):
    ratios = numbers.ratios(data, "remix-ppo", "equal", 0.7, "seconds")
    assert ratios == pytest.approx({0: 10 / 8, 1: 1.0, 2: 1.0})
    for trial in data["trials"]:
        trial["base"] = "even" if trial["seed"] % 2 == 0 else "odd"
    by_base = numbers.ratios_by_base(data, "remix-ppo", "equal", 0.7)
    assert {base: value.median for base, value in by_base.items()} == pytest.approx(
        {"even": 2.25, "odd": 2.0}
    )


def test_levels_that_were_never_reached(data):
    data["trials"][0] = record("ppo", 0.1, 0, end=4000)
    data["trials"][5] = record("remix-ppo", 0.1, 2, end=1000)
    assert numbers.ratios(data, "remix-ppo", "equal", 0.7) == {0: math.inf, 1: 2.0, 2: 0.0}
    assert numbers.ratio(data, "remix-ppo", "equal", 0.7) == (2, 0, math.inf, 3, 3)
    text = comparison_tables.markdown(data)
    costs = rows(text, "Fresh rollouts")
    assert costs["PPO"][2] == "5,000 [4,000–never]"
    assert costs["ReMix-PPO"][2] == "2,000 [2,000–never]"
    assert rows(text, "Times fewer")["ReMix-PPO"][1] == "2.00 [0.00–∞]"
    assert numbers.times(None, None) is None
    assert numbers.times(0, 100) is None


def test_break_even_is_the_price_at_which_both_cost_the_same(data):
    extra = numbers._break_even(4000, 10.0, 1000, 16.0)
    assert 10 + 4000 * extra == pytest.approx(16 + 1000 * extra)
    assert numbers._break_even(1000, 1.0, 4000, 1.0) is None
    assert numbers._break_even(None, None, 4000, 1.0) is None
    assert numbers.break_even(data, "remix-ppo", "equal").median == 0


# Selection


def tuned(**changes):
    """Two rates; by validation PPO is best at 2e-4 and ReMix at 1e-4, by held-out the reverse."""
    validation = {("ppo", 1e-4): 0.4, ("ppo", 2e-4): 0.5, ("remix-ppo", 1e-4): 0.6,
                  ("remix-ppo", 2e-4): 0.55}  # fmt: skip
    slope = {("ppo", 1e-4): 0.15, ("ppo", 2e-4): 0.1, ("remix-ppo", 1e-4): 0.2,
             ("remix-ppo", 2e-4): 0.25}  # fmt: skip
    trials = [
        record(*[key[0], slope[key]], seed, rate=key[1], validation=height)
        for key, height in validation.items()
        for seed in range(3)
    ]
    return data_of(trials, rates=(1e-4, 2e-4), **changes)


def test_best_rate_is_that_of_the_validation_curve():
    data = tuned()
    assert numbers.validation(data, "ppo", 2e-4) == pytest.approx({0: 0.5, 1: 0.5, 2: 0.5})
    assert comparison.best_learning_rate(data, "ppo") == 2e-4
    assert comparison.best_learning_rate(data, "remix-ppo") == 1e-4
    best = comparison.setting(data, "ppo", "best")
    assert [trial["learning_rate"] for trial in best.values()] == [2e-4] * 3
    equal = comparison.setting(data, "ppo", "equal")
    assert [trial["learning_rate"] for trial in equal.values()] == [1e-4] * 3
    # the base is compared at its own best: .7 at 5000 against 2500
    ratios = numbers.ratios(data, "remix-ppo", "best", 0.7)
    assert ratios == pytest.approx(dict.fromkeys(range(3), 2.0))
    text = comparison_tables.markdown(data)
    assert "PPO: its best rate 2e-4 is the greatest that was tried" in text
    assert rows(text, "Mean validation")["PPO"] == ["40.0", "(50.0)"]
    assert "## Equal learning rate, 1e-4" in text
    assert "## Each at its own best" in text


def test_selection_looks_at_its_seeds_alone_and_counts_broken_runs_as_zero():
    data = tuned()
    data["trials"].append(record("ppo", 0.1, 7, validation=1.0))
    assert comparison.best_learning_rate(data, "ppo") == 2e-4
    for i, trial in enumerate(data["trials"]):
        if trial["method"] == "ppo" and trial["learning_rate"] == 2e-4:
            data["trials"][i] = record(
                "ppo", 0.1, trial["seed"], rate=2e-4, validation=0.5, end=3000
            )
    assert numbers.validation(data, "ppo", 2e-4)[0] == pytest.approx(0.25)
    assert comparison.best_learning_rate(data, "ppo") == 1e-4


def test_unequal_tuning_is_refused(tmp_path):
    def refused(change, match):
        data = tuned()
        change(data)
        with pytest.raises(InputError, match=match) as error:
            comparison.write(data, tmp_path / "out")
        assert "\n" not in str(error.value)
        assert not (tmp_path / "out").exists()

    refused(lambda d: d["trials"].pop(), "'remix-ppo' has no trial at learning rate 2e-4 for sele")
    refused(lambda d: d["trials"][4]["curve"].pop("validation"), "no validation accuracy")
    refused(lambda d: d.update(selection_seeds=[]), "none named")
    refused(lambda d: d.update(learning_rates=[1e-4]), "rate is not in learning_rates")
    refused(lambda d: d.update(equal_learning_rate=3e-4), "equal_learning_rate 3e-4 is not in")
    refused(lambda d: d["trials"].append(d["trials"][0]), "ppo at 1e-4, seed 0 is there twice")
    refused(lambda d: d["trials"][1].update(base="other"), "need one base")
    refused(lambda d: d["trials"][1].update(method="x"), "the method is none of ppo, remix-ppo")
    refused(lambda d: d.update(methods=[]), "at least one method")
    refused(lambda d: d.pop("target"), "target missing")
    alone = [{"name": "remix-ppo", "label": "R", "reference": "ppo"}]
    refused(lambda d: d.update(methods=alone), "expected a method that is its own reference")


# Tables


def test_tables_equal_hand_computed_numbers(data):
    text = comparison_tables.markdown(data)
    costs = rows(text, "Fresh rollouts")
    assert costs["ReMix-PPO"] == [
        "1e-4", "1,600 [1,600–2,000]", "2,000 [2,000–2,500]", "2,400 [2,400–3,000]",
    ]  # fmt: skip
    gains = rows(text, "Times fewer")
    assert gains["PPO"] == ["1", "1", "1", "80.0 [80.0–90.0]", "3"]
    assert gains["ReMix-PPO"] == ["2.00 [2.00–2.50]"] * 3 + ["90.0", "3"]
    assert rows(text, "Generated tokens, thousands")["PPO"][2] == "50 [40–50]"
    assert rows(text, "Training FLOPs, 10^12")["PPO"][2:] == [
        "20 [16–20]", "24 [19.2–24]", "1",
    ]  # fmt: skip
    assert rows(text, "Seconds")["ReMix-PPO"][2:] == [
        "8.0 [8.0–10.0]", "9.6 [9.6–12.0]", "1.00 [1.00–1.25]",
    ]  # fmt: skip
    assert rows(text, "Final accuracy by suite")["PPO"] == [
        "85.0 [85.0–95.0]", "75.0 [75.0–85.0]", "80.0 [80.0–90.0]",
    ]  # fmt: skip
    assert rows(text, "Base / method in rollouts to 70 %")["ReMix-PPO"] == [
        "2.50 (1)", "2.00 (1)", "2.00 (1)",
    ]  # fmt: skip
    assert rows(text, "Model, not a measurement")["ReMix-PPO"] == ["0 ms"]
    assert "nothing was tuned" in text
    assert "3 seeds on 3 independently made base models" in text
    assert text.rstrip().endswith("* command: compare")
    assert "## Each at its own best" not in text


def test_best_accuracy_is_the_greatest(data):
    for suite in (
        data["trials"][0]["curve"]["accuracy"],
        *data["trials"][0]["curve"]["suites"].values(),
    ):
        suite[-1] = 0.1
    trials = numbers.setting(data, "ppo", "equal").values()
    assert numbers.accuracies(trials, "accuracy", best=False) == [0.1, 0.9, 0.8]
    assert numbers.accuracies(trials, "accuracy", best=True) == pytest.approx([0.75, 0.9, 0.8])
    assert numbers.accuracies(trials, "chain3", best=True) == pytest.approx([0.8, 0.95, 0.85])
    text = comparison_tables.markdown(data)
    assert rows(text, "Final accuracy by suite")["PPO"][2] == "80.0 [10.0–90.0]"
    assert rows(text, "Best accuracy of the run")["PPO"][2] == "80.0 [75.0–90.0]"


def test_quantities_that_runs_lack_are_left_out(data, tmp_path):
    for trial in data["trials"]:
        del trial["curve"]["flops"], trial["curve"]["seconds"], trial["curve"]["validation"]
    text = comparison_tables.markdown(data)
    assert "FLOPs" not in text
    assert "Model, not" not in text
    assert "tokens" in text
    paths = comparison_plot.draw(data, tmp_path)
    assert [path.name for path in paths] == ["comparison.png", "comparison_ratios.png"]


def test_terminal_shows_both_settings_in_120_columns():
    text = shown(comparison_tables.tables(tuned()))
    assert text.count("Fresh rollouts to a held-out accuracy") == 2
    assert "Equal learning rate, 1e-4: median over seeds [95 % bootstrap interval]" in text
    assert "Each at its own best learning rate" in text
    wide = comparison_tables.tables(synthetic.comparison_data(comparison.trial, seeds=3))
    assert "…" not in shown(wide, 120)


@pytest.mark.parametrize("rate", [5e-5, 1e-4, 2.5e-3, 3.0, 1e-10])
def test_rates_are_written_as_people_do(rate):
    text = numbers.rate_text(rate)
    assert float(text) == rate
    assert "+" not in text
    assert "e-0" not in text


# Figures and files


def test_json_alone_gives_the_same_tables_and_figures(tmp_path):
    data = tuned()
    first, second = tmp_path / "first", tmp_path / "second"
    comparison.write(data, first)
    text = (first / "comparison.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == data
    comparison.write(comparison.read(first / "comparison.json"), second)
    redrawn.assert_same(first, second)
    assert len(redrawn.images(first)) == 4
    for name in ("comparison.json", "comparison.md"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    changed = copy.deepcopy(data)
    changed["trials"][0]["curve"]["accuracy"][2] += 0.3
    comparison_plot.draw(changed, second)
    with pytest.raises(AssertionError):
        redrawn.assert_same(first, second, "comparison.png")
    redrawn.assert_same(first, second, "comparison_tuning.png")


def test_figures_of_many_methods_and_of_one_run(tmp_path):
    many = synthetic.comparison_data(comparison.trial, seeds=3)
    comparison_plot.draw(many, tmp_path / "many")
    assert len(redrawn.images(tmp_path / "many")) == 4
    names = comparison_plot.main_methods(many, "grpo")
    assert names == ["grpo", "remix-grpo"]
    one = data_of([record(name, 0.01, 0) for name in ("ppo", "remix-ppo")])  # neither reaches .7
    comparison.write(one, tmp_path / "one")
    assert len(redrawn.images(tmp_path / "one")) == 3


def test_numbers_that_are_not_finite_are_refused(data, tmp_path):
    data["about"]["wall_seconds"] = math.nan
    with pytest.raises(InputError, match="a number is not finite"):
        comparison.write(data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_files_that_hold_something_else(tmp_path):
    path = tmp_path / "comparison.json"
    with pytest.raises(InputError, match="expected a JSON file of results"):
        comparison.read(path)
    for text in ("{", "[1]", '{"arms": []}'):
        path.write_text(text)
        with pytest.raises(InputError, match=r"comparison\.json: (expected|about)"):
            comparison.read(path)


@pytest.mark.parametrize("path", redrawn.stored("comparison.json"), ids=str)
def test_stored_results_follow_from_their_json(path, tmp_path):
    comparison.write(comparison.read(path), tmp_path)
    assert (tmp_path / "comparison.md").read_text() == path.with_suffix(".md").read_text()
    redrawn.assert_same(tmp_path, path.parent, "comparison*.png", tolerance=0.02)
