"""Training dynamics: records, tables and figures from JSON alone."""

import json
import math

import pytest

from remix_jax.errors import InputError
from remix_jax.reporting import dynamics, dynamics_plot
from remix_jax.reporting import dynamics_numbers as numbers
from tests.reporting import redrawn, synthetic

SMALL = {
    "methods": ("Methods", {"PPO": (None, {"ages": 1}), "ReMix-PPO": (None, {})}),
    "m": ("Passes m", {f"m = {m}": (m, {"time": 9.0**m * 100}) for m in (1, 2, 4)}),
    "collapse": ("Collapse", {"neither": (None, {"time": 60000.0}), "with KL": (None, {})}),
}


@pytest.fixture(scope="module")
def data():
    return synthetic.dynamics_data(dynamics.arm, SMALL, seeds=2, steps=40)


def test_arm_thins_by_means_and_by_the_greatest():
    run = [
        {"step": k, "rollouts": 10 * k, "entropy": float(k), "ratio_max": float(k % 5), "ess": 0.5}
        for k in range(1, 2 * dynamics.POINTS + 1)
    ]
    run[0]["eval/mean"], run[-1]["eval/mean"] = 0.25, 0.75
    run[2]["entropy"], run[4]["ess"] = math.nan, math.inf
    record = dynamics.arm(run, panel="p", arm="a", seed=3)
    assert {key: record[key] for key in ("panel", "arm", "seed")} == {
        "panel": "p", "arm": "a", "seed": 3,
    }  # fmt: skip
    series = record["series"]
    assert series["eval/mean"] == {"rollouts": [10, 960], "value": [0.25, 0.75]}
    assert len(series["ratio_max"]["value"]) == dynamics.POINTS
    assert series["ratio_max"]["value"][:3] == [2, 4, 1]  # of 1 2 | 3 4 | 0 1
    assert series["ratio_max"]["rollouts"][:2] == [15, 35]
    assert series["entropy"]["value"][:2] == [1.5, 4.5]  # the NaN of step 3 is left out
    assert set(series["ess"]["value"]) == {0.5}
    assert record["reincarnation"] is None


def test_arm_keeps_ages_with_rows_and_the_reincarnation():
    run = synthetic.trained(steps=40, mix=12)
    record = dynamics.arm(run, panel="p", arm="a", seed=0)
    series = record["series"]
    assert record["reincarnation"] == 12 * 77
    for name in ("ratio_mean", "ratio_max", "clip_share"):
        assert [len(series[f"{name}/age{age}"]["value"]) for age in range(3)] == [40, 11, 10]
    assert series["ratio_mean/age2"]["rollouts"][0] == 3 * 77
    assert len(series["kl_prev"]["value"]) == 12
    assert {"response_length", "kl_base", "reward", "grad_norm", "clip_share"} <= set(series)
    with pytest.raises(InputError, match="p, a, seed 0: no step with eval/mean"):
        dynamics.arm(run[1:4], panel="p", arm="a", seed=0)


def series_of(**values):
    return {"series": {name: {"rollouts": x, "value": y} for name, (x, y) in values.items()}}


def test_numbers_of_a_trial():
    xs = [0, 512, 1536, 2048]
    own = series_of(entropy=(xs, [4.0, 2.0, 1.0, 3.0]))
    assert numbers.mean(own, "entropy") == 2.5
    assert numbers.last(own, "entropy") == 3
    assert numbers.greatest(own, "entropy") == 4
    assert numbers.at_budget(own, "entropy") == 1.5
    for measure in (numbers.mean, numbers.last, numbers.greatest, numbers.at_budget):
        assert measure(own, "ess") is None
    aged = series_of(**{f"ratio_mean/age{k}": ([0, 1], [1.0, 1 - k / 10]) for k in (0, 2, 10)})
    assert numbers.ages([own, aged]) == [0, 2, 10]
    assert numbers.oldest_mean(aged, "ratio_mean") == 0.5
    assert numbers.oldest_mean(own, "ratio_mean") is None


def test_tables_and_findings():
    def trial(arm, seed, last, lengths):
        accuracy = [0.2, 0.6, last]
        return {"panel": "p", "arm": arm, "seed": seed, "reincarnation": None} | series_of(
            **{"eval/mean": ([0, 1000, 2000], accuracy), "response_length": ([0, 9], lengths)}
        )

    data = {
        "about": {"commit": "abc"}, "levels": [0.4, 0.8],
        "panels": [{"name": "p", "title": "The share p", "arms": [
            {"name": "a", "label": "p = .1", "value": 0.1},
            {"name": "b", "label": "p = .2", "value": 0.2},
        ]}],
        "trials": [trial("a", 1, 0.7, [10, 12]), trial("a", 0, 0.8, [12, 12]),
                   trial("b", 0, 0.9, [9, 9])],
        "findings": [{"claim": "It grows.", "verdict": "not seen", "evidence": "1 against 1."}],
    }  # fmt: skip
    numbers.check(data)
    lines = dynamics.markdown(data).splitlines()
    cells = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]]
        for line in lines
        if line.startswith("| p")
    }
    assert cells["p = .1"] == [
        "2", "500", "never [2,000–never]", "60.4 [60.2–60.5]", "75.0 [70.0–80.0]",
        "11.50 [11.00–12.00]", "-", "-", "-", "-",
    ]  # fmt: skip
    assert cells["p = .2"][:5] == ["1", "500", "1,667", "60.7", "90.0"]
    assert "* **not seen**: It grows. 1 against 1." in lines
    assert "* commit: abc" in lines


def test_json_alone_gives_the_same_tables_and_figures(tmp_path, data):
    first, second = tmp_path / "first", tmp_path / "second"
    dynamics.write(data, first)
    text = (first / "dynamics.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == data
    assert set(redrawn.images(first)) == {
        "dynamics_methods.png", "dynamics_ages.png", "sweep_m.png", "collapse.png",
    }  # fmt: skip
    dynamics.write(dynamics.read(first / "dynamics.json"), second)
    redrawn.assert_same(first, second)
    for name in ("dynamics.json", "dynamics.md"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_ages_are_those_of_the_first_arm_that_replays(data):
    panel = data["panels"][0]
    assert [len(dynamics_plot._ages(data, panel, arm)) for arm in panel["arms"]] == [1, 3]
    alone = data | {"panels": [panel | {"arms": panel["arms"][:1]}], "trials": data["trials"][:2]}
    numbers.check(alone)
    assert dynamics_plot._ages(alone, alone["panels"][0], panel["arms"][0]) == [0]


def test_bad_data_is_one_clear_line(tmp_path, data):
    def refused(match, **changes):
        with pytest.raises(InputError, match=match) as error:
            dynamics.write(data | changes, tmp_path / "out")
        assert "\n" not in str(error.value)
        assert not (tmp_path / "out").exists()

    trials = data["trials"]
    refused("panel 'methods', arm 'ppo' has no trial", trials=trials[2:])
    refused("no such panel and arm", trials=[*trials, trials[0] | {"arm": "x"}])
    refused("methods, ppo, seed 0 is there twice", trials=[*trials, trials[0]])
    refused("at least one panel", panels=[])
    refused("is there twice", panels=[*data["panels"], data["panels"][0]])
    refused(
        "verdict 'maybe' of 'c'; expected one of seen",
        findings=[{"claim": "c", "verdict": "maybe", "evidence": ""}],
    )
    (tmp_path / "dynamics.json").write_text('{"about": {}}')
    with pytest.raises(InputError, match=r"dynamics\.json: levels, panels, trials, findings miss"):
        dynamics.read(tmp_path / "dynamics.json")


@pytest.mark.parametrize("path", redrawn.stored("dynamics.json"), ids=str)
def test_stored_results_follow_from_their_json(path, tmp_path):
    dynamics.write(dynamics.read(path), tmp_path)
    assert (tmp_path / "dynamics.md").read_text() == path.with_suffix(".md").read_text()
    for pattern in ("dynamics*.png", "sweep*.png", "collapse.png"):
        if list(tmp_path.glob(pattern)):
            redrawn.assert_same(tmp_path, path.parent, pattern, tolerance=0.02)
