"""Records of runs, files, and the best learning rate: one rule for all kinds of results."""

import json
import math

import numpy as np
import pytest

from experiments import trials
from experiments.report import files, results
from experiments.report.comparison import Comparison
from experiments.report.family import Family
from experiments.report.prefix import Prefix
from experiments.tables import rate_text
from remix_jax.errors import InputError
from tests.report.runs import line, record, tuned

WHO = {"method": "ppo", "learning_rate": 1e-4, "seed": 3, "base": "b"}


def test_a_record_keeps_the_evaluations():
    run = line(0.1)
    run.insert(1, {"step": 0, "rollouts": 76, "reward": 0.5})
    run[3]["eval/mean"] = 0.123456789
    found = results.record(run, **WHO)
    assert {key: found[key] for key in WHO} == WHO
    assert "broken" not in found
    curve = found["curve"]
    assert curve["rollouts"] == list(range(0, 6001, 500))
    assert curve["accuracy"][2] == 0.12346
    assert curve["flops"][1] == 2e12
    assert curve["validation"][1] == 0.25
    assert curve["response_length"] == [11] * 13
    assert list(curve["suites"]) == ["chain3", "chain7"]
    assert curve["suites"]["chain7"][-1] == 0.75
    paid = results.record(run, **WHO, accuracy="eval/chain7", paid=5e11, broken=True)
    assert paid["broken"] is True
    assert paid["curve"]["flops"][:2] == [5e11, 25e11]
    assert paid["curve"]["accuracy"] == paid["curve"]["suites"]["chain7"]


def test_figures_that_a_run_lacks_are_left_out_and_validation_is_averaged():
    run = [
        {key: value for key, value in step.items() if not key.startswith(("flops", "validation"))}
        for step in line(0.1)
    ]
    curve = results.record(run, **WHO)["curve"]
    assert "flops" not in curve
    assert "validation" not in curve
    two = [step | {"validation/a": 0.25, "validation/b": 0.75} for step in run]
    assert results.record(two, **WHO)["curve"]["validation"] == [0.5] * len(run)


def test_runs_with_holes_are_refused():
    def refused(run, match):
        with pytest.raises(InputError, match=match) as error:
            results.record(run, **WHO)
        assert "method ppo" in str(error.value)
        assert "\n" not in str(error.value)

    refused([{"step": 1, "rollouts": 5, "reward": 0.5}], "no step with eval/mean")
    holed = line(0.1)
    del holed[2]["flops"]
    refused(holed, "flops must be a finite number in all of the 13 evaluations")
    refused([line(0.1)[0] | {"eval/mean": math.nan}], "eval/mean must be a finite number")


# The best learning rate


def area(curve, x, end):
    """The reference: a fine sum under the curve, 0 behind its last point, over the budget."""
    at = (np.arange(20_000) + 0.5) * end / 20_000
    return float(np.interp(at, curve[x], curve["validation"], left=0, right=0).mean())


@pytest.mark.parametrize("kind", ["comparison", "prefix", "family"])
def test_a_run_that_breaks_off_is_not_chosen_for_its_first_steps(kind):
    """At 2e-4 every method rises twice as fast and breaks off at half the budget."""

    def trial(name, rate, seed):
        steps = 7 if rate == 2e-4 else 13
        run = line(0.1 * rate / 1e-4)[:steps]
        for step in run:
            step["eval/middle"] = step["eval/mean"]
        own = {"method": name, "learning_rate": rate, "seed": seed}
        return results.record(run, **own, base="b", broken=steps < 13) | {"by_prefix": {}}

    names = ("ppo", "grpo", "prefix", "prefix-only")
    data = {
        "learning_rates": [1e-4, 2e-4], "selection_seeds": [0, 1], "equal_learning_rate": 1e-4,
        "methods": [{"name": n, "label": n, "reference": n, "prefixed": True} for n in names],
        "trials": [trial(n, r, s) for n in names for r in (1e-4, 2e-4) for s in range(2)],
        "target": 0.7, "rollouts": [1000, 6000],
    }  # fmt: skip
    flops = 4e9 * 6000
    made = {"comparison": Comparison, "family": Family}.get(kind, Prefix)
    runs = made(data | ({"budget": 0.9 * flops} if kind == "prefix" else {}))
    assert runs.best == dict.fromkeys(names, 1e-4)
    x, end = ("flops", 0.9 * flops) if kind == "prefix" else ("rollouts", 6000)
    for rate in (1e-4, 2e-4):
        curve = trial("ppo", rate, 0)["curve"]
        assert runs.validation("ppo", rate)[0] == pytest.approx(area(curve, x, end), abs=1e-3)
    whole = [t | {"broken": False} for t in data["trials"]]
    for found in whole:  # the same rates without the break: the faster one is chosen
        slope = 0.1 * found["learning_rate"] / 1e-4
        found["curve"] = results.record(line(slope), **WHO)["curve"]
        found["curve"]["suites"]["middle"] = found["curve"]["accuracy"]
    again = made(runs.data | {"trials": whole})
    assert again.best == dict.fromkeys(names, 2e-4)


def test_a_broken_run_ends_at_zero_and_holds_no_level_at_its_last_evaluation():
    made = [record("ppo", 0.1, 0, base="b", end=5000, broken=True)]
    made += [record("ppo", 0.1, 1, base="b")]
    made += [record("remix-ppo", 0.2, seed, base="b") for seed in range(2)]
    runs = Comparison(tuned() | {"trials": made, "learning_rates": [1e-4]})
    assert list(runs.accuracies("ppo", "equal", "accuracy")) == pytest.approx([0, 0.8])
    assert list(runs.accuracies("ppo", "equal", "eval/chain3")) == pytest.approx([0, 0.85])
    assert list(runs.crossings("ppo", "equal", 0.65)) == pytest.approx([4500, 4500])
    assert list(runs.crossings("ppo", "equal", 0.7)) == pytest.approx([math.inf, 5000])
    assert list(runs.ratios("remix-ppo", "equal", 0.7)) == pytest.approx([math.inf, 2])


def test_methods_without_rollouts_are_tuned_by_flops_and_ties_take_the_smaller_rate():
    def trial(rate, validation):
        curve = {"rollouts": [0, 0, 0], "flops": [0, 1e9, 2e9], "accuracy": [0.2, 0.5, 0.6]}
        own = {"method": "sft", "learning_rate": rate, "seed": 0}
        return own | {"curve": curve | {"validation": validation}}

    data = {
        "methods": [{"name": "sft", "label": "SFT"}], "learning_rates": [3e-4, 1e-4],
        "selection_seeds": [0], "rollouts": [512, 1024],
        "trials": [trial(1e-4, [0.2, 0.4, 0.4]), trial(3e-4, [0.2, 0.5, 0.3])],
    }  # fmt: skip
    runs = Family(data)
    assert runs.validation("sft", 1e-4)[0] == pytest.approx((0.3 + 0.4) / 2)
    assert runs.validation("sft", 3e-4)[0] == pytest.approx((0.35 + 0.4) / 2)
    assert runs.best == {"sft": 3e-4}
    assert list(runs.accuracies("sft", 1024)) == [0.6]
    assert np.isnan(runs.accuracies("sft", 512)).all()
    equal = [trial(rate, [0.2, 0.4, 0.4]) for rate in (3e-4, 1e-4)]
    assert Family(data | {"trials": equal}).best == {"sft": 1e-4}


def test_methods_are_tuned_alike_and_then_run_on_all_seeds():
    """Methods a and b, b best at 2e-4; a gets all seeds at 2e-4 too, as the equal rate."""
    height = {("a", 1e-4): 0.5, ("a", 2e-4): 0.4, ("b", 1e-4): 0.3, ("b", 2e-4): 0.4}
    asked = []

    def train(keys):
        asked.append(keys)
        return [
            trials.Done(line(0.1, validation=height[key[:2]]), False).record(key, base="b")
            for key in keys
        ]

    methods = [{"name": name, "label": name} for name in ("b", "a")]
    data = {"methods": methods, "learning_rates": [1e-4, 2e-4], "rollouts": [1000]}
    found = trials.tuned(data, Family, train, seeds=3, tuning=2, equal=[("a", 2e-4)])
    grid, more = asked
    assert grid == [(m, r, s) for m in ("b", "a") for r in (1e-4, 2e-4) for s in (0, 1)]
    assert more == [("b", 2e-4, 2), ("a", 1e-4, 2), ("a", 2e-4, 2)]
    assert found["selection_seeds"] == [0, 1]
    assert [tuple(t.values())[:3] for t in found["trials"]] == grid + more
    one = trials.tuned(data | {"learning_rates": [1e-4]}, Family, train, seeds=3, tuning=2)
    assert one["selection_seeds"] == [0, 1, 2]
    assert len(one["trials"]) == 6


# Files


def test_wrong_data_are_one_clear_line_and_write_nothing(tmp_path):
    def refused(change, match):
        data = tuned()
        change(data)
        with pytest.raises(InputError, match=match) as error:
            files.write("comparison", data, tmp_path / "out")
        assert "\n" not in str(error.value)
        assert not (tmp_path / "out").exists()

    refused(lambda d: d["trials"].pop(), "'remix-ppo' has no trial .* 2e-4 for selection seed 2")
    refused(lambda d: d["trials"][4]["curve"].pop("validation"), "no trial with validation acc")
    refused(lambda d: d.update(selection_seeds=[]), "none named")
    refused(lambda d: d["trials"].append(d["trials"][0]), "ppo at 1e-4, seed 0 is there twice")
    refused(lambda d: d["trials"][1].update(base="other"), "paired and need one base")
    refused(lambda d: d.pop("target"), "'target' missing")
    alone = [{"name": "remix-ppo", "label": "R", "reference": "ppo"}]
    refused(lambda d: d.update(methods=alone), "no method 'ppo' among remix-ppo")
    refused(lambda d: d["about"].update(seconds=math.nan), "a number is not finite")
    path = tmp_path / "comparison.json"
    for text in ("{", "[1]", '{"arms": []}'):
        path.write_text(text)
        with pytest.raises(InputError, match=r"comparison\.json: (expected|'methods' missing)"):
            files.read("comparison", path)
    with pytest.raises(InputError, match="expected a JSON file of results"):
        files.read("comparison", tmp_path / "nowhere.json")


def test_files_hold_the_data_as_they_are(tmp_path):
    data = tuned()
    results.write_json(data, tmp_path / "results.json")
    text = (tmp_path / "results.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == data
    assert text.count("\n") == 1 + len(data) + 1 + len(data["trials"]) + 1
    assert results.read_json(tmp_path / "results.json") == data


@pytest.mark.parametrize("rate", [5e-5, 1e-4, 2.5e-3, 3.0, 1e-10])
def test_rates_are_written_as_people_do(rate):
    text = rate_text(rate)
    assert float(text) == rate
    assert "+" not in text
    assert "e-0" not in text
