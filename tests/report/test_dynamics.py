"""Training dynamics: records, tables and figures from JSON alone."""

import math

import numpy as np
import pytest

from experiments.report import dynamics, dynamics_figures, files
from remix_jax.errors import InputError
from tests.report.runs import images, rows


def trained(time=1100.0, seed=0, mix=12, steps=40, ages=3):
    """Metrics of a run: accuracy 1 - .78 exp(-rollouts / time) every fourth step, rows of ages."""
    normal, rollouts = np.random.default_rng(seed).normal, 0
    run = [{"step": 0, "rollouts": 0, "eval/mean": 0.22}]
    for step in range(1, steps + 1):
        mixing = step <= mix
        rollouts += 77 if mixing else 128
        record = {
            "step": step, "stage": "mix" if mixing else "on-policy", "rollouts": rollouts,
            "reward": 0.5, "response_length": 10.5 + 0.1 * normal(), "entropy": 0.2, "ess": 0.9,
            "grad_norm": 0.4, "kl_base": 0.001 * step, "clip_share": 0.01, "ratio_mean": 1.0,
            "ratio_max": 1.1 + abs(normal()),
        }  # fmt: skip
        record |= {"kl_prev": 0.002} if mixing else {}
        for age in range(ages if mixing else 1):
            record |= {
                f"ratio_mean/age{age}": 1 - 0.01 * age, f"ratio_max/age{age}": 2.0 + age,
                f"clip_share/age{age}": 0.01, f"rows/age{age}": 25 * (step > age),
            }  # fmt: skip
        if step % 4 == 0:
            record["eval/mean"] = 1 - 0.78 * math.exp(-rollouts / time)
        run.append(record)
    return run


PANELS = {
    "methods": ("Methods", {"PPO": (None, {"ages": 1}), "ReMix-PPO": (None, {})}),
    "m": ("Passes m", {f"m = {m}": (m, {"time": 9.0**m * 100}) for m in (1, 2, 4)}),
    "collapse": ("Collapse", {"neither": (None, {"time": 60000.0}), "with KL": (None, {})}),
}


@pytest.fixture(scope="module")
def data():
    panels, trials = [], []
    for name, (title, arms) in PANELS.items():
        shown = [{"name": a, "label": a, "value": value} for a, (value, _) in arms.items()]
        panels.append({"name": name, "title": title, "arms": shown})
        for arm, (_, how) in arms.items():
            for seed in range(2):
                trials.append(
                    dynamics.record(trained(seed=seed, **how), panel=name, arm=arm, seed=seed)
                )
    return {
        "about": {"commit": "abc"}, "levels": [0.6, 0.7, 0.8], "panels": panels, "trials": trials,
        "findings": [{"claim": "It grows.", "verdict": "seen", "evidence": "1 against 1."}],
    }  # fmt: skip


def test_a_record_thins_by_means_and_by_the_greatest():
    run = [
        {"step": k, "rollouts": 10 * k, "entropy": float(k), "ratio_max": float(k % 5), "ess": 0.5}
        for k in range(1, 2 * dynamics.POINTS + 1)
    ]
    run[0]["eval/mean"], run[-1]["eval/mean"] = 0.25, 0.75
    run[2]["entropy"], run[4]["ess"] = math.nan, math.inf
    record = dynamics.record(run, panel="p", arm="a", seed=3)
    series = record.pop("series")
    assert record == {"panel": "p", "arm": "a", "seed": 3, "reincarnation": None}
    assert series["eval/mean"] == {"rollouts": [10, 960], "value": [0.25, 0.75]}
    assert len(series["ratio_max"]["value"]) == dynamics.POINTS
    assert series["ratio_max"]["value"][:3] == [2, 4, 1]  # of 1 2 | 3 4 | 0 1
    assert series["ratio_max"]["rollouts"][:2] == [15, 35]
    assert series["entropy"]["value"][:2] == [1.5, 4.5]  # the NaN of step 3 is left out
    assert set(series["ess"]["value"]) == {0.5}


def test_a_record_keeps_ages_with_rows_and_the_reincarnation():
    run = trained(steps=40, mix=12)
    record = dynamics.record(run, panel="p", arm="a", seed=0)
    series = record["series"]
    assert record["reincarnation"] == 12 * 77
    for name in ("ratio_mean", "ratio_max", "clip_share"):
        assert [len(series[f"{name}/age{age}"]["value"]) for age in range(3)] == [40, 11, 10]
    assert series["ratio_mean/age2"]["rollouts"][0] == 3 * 77
    assert len(series["kl_prev"]["value"]) == 12
    assert {"response_length", "kl_base", "reward", "grad_norm", "clip_share"} <= set(series)
    with pytest.raises(InputError, match="p, a, seed 0: no step with eval/mean"):
        dynamics.record(run[1:4], panel="p", arm="a", seed=0)


def series_of(**values):
    return {"series": {name: {"rollouts": x, "value": y} for name, (x, y) in values.items()}}


def test_numbers_of_a_trial():
    own = series_of(entropy=([0, 512, 1536, 2048], [4.0, 2.0, 1.0, 3.0]))
    assert dynamics.mean(own, "entropy") == 2.5
    assert dynamics.last(own, "entropy") == 3
    assert dynamics.greatest(own, "entropy") == 4
    assert dynamics.early(own, "entropy") == 1.5
    for measure in (dynamics.mean, dynamics.last, dynamics.greatest, dynamics.early):
        assert math.isnan(measure(own, "ess"))
    aged = series_of(**{f"ratio_mean/age{k}": ([0, 1], [1.0, 1 - k / 10]) for k in (0, 2, 10)})
    assert dynamics.ages_of([own, aged]) == [0, 2, 10]
    assert dynamics.oldest_mean(aged, "ratio_mean") == 0.5
    assert math.isnan(dynamics.oldest_mean(own, "ratio_mean"))


def test_a_run_that_broke_off_has_accuracy_0_from_there():
    run = trained()[:9]
    broken = dynamics.record(run, panel="p", arm="a", seed=0, broken=True)
    assert dynamics.last(broken, "eval/mean") == 0
    assert dynamics.early(broken, "eval/mean") == 0
    assert dynamics.last(broken, "entropy") == 0.2
    level = run[-1]["eval/mean"]
    assert dynamics.reached([broken], level - 0.01).median == math.inf, "not held"


def test_tables_equal_hand_computed_numbers():
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
    text = dynamics.markdown(data)
    table = rows(text, "## The share p")
    assert table["p = .1"] == [
        "2", "500", "never [2,000–never]", "60.4 [60.2–60.5]", "75.0 [70.0–80.0]",
        "11.50 [11.00–12.00]", "-", "-", "-", "-",
    ]  # fmt: skip
    assert table["p = .2"][:5] == ["1", "500", "1,667", "60.7", "90.0"]
    assert "* **not seen**: It grows. 1 against 1." in text
    assert text.endswith("* commit: abc\n")


def test_json_alone_gives_a_figure_for_each_panel(tmp_path, data):
    files.write("dynamics", data, tmp_path)
    assert set(images(tmp_path)) == {
        "dynamics_methods.png", "dynamics_ages.png", "sweep_m.png", "collapse.png",
    }  # fmt: skip
    assert files.read("dynamics", tmp_path / "dynamics.json") == data
    ppo = data | {"panels": [data["panels"][0] | {"arms": data["panels"][0]["arms"][:1]}]}
    assert list(dynamics_figures.draw(ppo)) == ["dynamics_methods"], "PPO's rows have one age"
