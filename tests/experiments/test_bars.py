"""The bars, from the results that are stored in the repository."""

import math

from experiments import bars
from experiments.report import files
from tests.experiments.runs import run_main


def collapse(**ends):
    """dynamics.json's part that the bars read: accuracy at the end of each arm's runs."""
    trials = [
        {"panel": "collapse", "arm": arm.replace("_", " "), "seed": seed,
         "series": {"eval/mean": {"rollouts": [0, 4600], "value": [0.25, end]}}}
        for arm, values in ends.items()
        for seed, end in enumerate(values)
    ]  # fmt: skip
    return {"trials": trials}


def test_bars_are_the_medians_of_the_stored_runs():
    runs = files.read("comparison", bars.RESULTS / "comparison" / "comparison.json")
    trained = collapse(**{"no KL, no T": (0.1, 0.3, 0.15), "no KL, T = 10": (0.8, 0.9, 0.6)})
    found = {bar.claim: bar for bar in bars.bars(runs, trained)}
    assert len(found) == 11
    ratio = runs.ratios("remix-ppo", "equal", 0.7).median()
    assert found["1. equal rate: PPO / ReMix-PPO, rollouts to 70%"].measured == ratio
    assert found["6. collapse: accuracy at the end without KL and T"].measured == 0.15
    assert found["6. collapse: accuracy at the end without KL and T"].met
    assert found["6. rescue: the same with T = 10"].measured == 0.8


def test_a_bar_is_met_on_its_own_side_only():
    assert bars.Bar("more", 1.0, 1.5).met
    assert not bars.Bar("more", 1.0, 0.5).met
    assert bars.Bar("less", 1.0, 0.5, at_most=True).met
    assert not bars.Bar("less", 1.0, 1.5, at_most=True).met
    assert not bars.Bar("nothing", 0.0, math.nan).met


def test_missing_results_are_one_line():
    wrong = run_main("--comparison=/nowhere", module="experiments.bars")
    assert wrong.returncode == 2
    assert "nowhere" in wrong.stderr
    assert len(wrong.stderr.strip().splitlines()) == 1
