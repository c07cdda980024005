"""The comparison through its real main; trials that are continued, not repeated."""

import json
import types

import pytest

from experiments import compare, dynamics, trials
from experiments.methods import METHODS
from experiments.report import files
from experiments.trials import Trial
from remix_jax import config_rules
from remix_jax.errors import InputError
from remix_jax.learner.step import compile_learn
from remix_jax.run import loop
from tests.experiments.runs import SMALL, as_flags, quiet, run_main, small_config


def test_the_real_main_tunes_compares_and_continues(tmp_path, monkeypatch):
    """Two methods, two rates, two processes; the second time nothing is trained again."""
    small = small_config(tmp_path)
    small.reincarnation_step = 0  # one stage to compile
    lists = {"methods": ["ppo", "remix-ppo"], "learning_rates": ["1e-4", "3e-4"]}
    chosen = {"bases": 1, "rollouts": 30, "seeds": 1, "tuning": 1}
    given = [f"--{name}={','.join(values)}" for name, values in lists.items()]
    given += [f"--{name}={value}" for name, value in chosen.items()]
    given += [f"--workdir={tmp_path / 'out'}", "--workers=2", *as_flags(small, *SMALL)]
    done = run_main(*given, module="experiments.compare")
    assert done.returncode == 0, done.stderr
    assert "Equal learning rate, 1e-4" in done.stdout
    assert "Each at its own best learning rate" in done.stdout
    runs = files.read("comparison", tmp_path / "out" / "comparison.json")
    data = runs.data
    rates = {"ppo": set(), "remix-ppo": set()}
    for record in data["trials"]:
        rates[record["method"]].add((record["learning_rate"], record["seed"]))
        assert set(record["curve"]) >= {"rollouts", "tokens", "flops", "seconds", "validation"}
    for method, tried in rates.items():
        assert tried == {(1e-4, 0), (3e-4, 0)}, method
        assert runs.best[method] in (1e-4, 3e-4)
    assert data["about"]["command"].startswith("python -m experiments.compare --methods")
    for name in ("comparison.md", "comparison.png", "comparison_ratios.png"):
        assert (tmp_path / "out" / name).stat().st_size > 0
    logs = list((tmp_path / "out" / "runs").rglob("log.txt"))
    assert len(logs) == len(data["trials"])
    values = types.SimpleNamespace(**chosen, **lists, quick=False, models=[])
    plan = compare.make_plan(small, values, tmp_path, workers=1)
    monkeypatch.setattr(trials, "_train", None)
    assert compare.compare(plan, tmp_path / "out", workers=1)["trials"] == data["trials"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"methods": ["ppo", "remix"]}, "each must be one of ppo, remix-ppo"),
        ({"methods": ["remix-ppo"]}, "ratios are to ppo"),
        ({"learning_rates": ["1e-4", "fast"]}, "must be numbers above 0"),
        ({"seeds": 1, "learning_rates": ["1e-4", "2e-4"]}, "must be --tuning=2 or more"),
    ],
)
def test_wrong_flags_are_one_line(tmp_path, more, message):
    given = {"quick": False, "methods": ["ppo"], "learning_rates": ["1e-4"], "seeds": 3}
    values = types.SimpleNamespace(**given | {"tuning": 2, "rollouts": 30, "models": []} | more)
    with pytest.raises(InputError, match=message) as caught:
        compare.make_plan(small_config(tmp_path), values, tmp_path, workers=1)
    assert "\n" not in str(caught.value)


def test_runs_that_differ_in_rate_seed_or_length_share_their_programs(tmp_path):
    config = small_config(tmp_path)
    config.steps, config.reincarnation_step = 3, 2
    loop.run(config, tmp_path / "one", quiet(config), artifacts=False)
    before = compile_learn.cache_info().misses
    other = small_config(tmp_path)
    other.seed, other.optimizer.learning_rate, other.critic.optimizer.learning_rate = 5, 3e-4, 2e-3
    other.steps, other.reincarnation_step = 4, 3
    loop.run(other, tmp_path / "two", quiet(other), artifacts=False)
    assert compile_learn.cache_info().misses == before


def test_a_failed_trial_keeps_its_record_and_is_not_repeated(tmp_path):
    config = small_config(tmp_path)
    config.optimizer.learning_rate = 1e14
    trial = Trial("hot", config)
    done = trials.run([trial], tmp_path / "runs", workers=1)["hot"]
    assert done.broken
    assert done.metrics[0]["step"] == 0
    assert "not finite" in (tmp_path / "runs" / "hot" / "failed").read_text()
    assert trials.finished(tmp_path / "runs" / "hot", config)


def test_the_panels_vary_what_they_say(tmp_path):
    config = small_config(tmp_path)
    panels = {panel.name: panel.arms for panel in dynamics.panels(config)}
    assert [arm.config.replay.share for arm in panels["p"]] == list(dynamics.SHARES)
    assert [arm.config.passes for arm in panels["m"]] == [1, 2, 4, 8]
    assert [arm.config.replay.window for arm in panels["n"]] == [1, 2, 4, 8]
    assert panels["t"][0].config.reincarnation_step == 0
    doomed = panels["collapse"][0].config
    assert (doomed.passes, doomed.replay.share, doomed.kl.coef) == (8, 0.4, 0.0)
    assert doomed.reincarnation_step == 0
    for arm in panels["methods"]:
        assert arm.config == METHODS[arm.name].change(config)
        config_rules.validate(arm.config)


def test_a_finding_is_seen_only_if_every_seed_shows_it():
    def verdict(more, less):
        found = dynamics._finding("claim", dict(enumerate(more)), dict(enumerate(less)), 1, "units")
        return found["verdict"]

    assert verdict([2, 3, 4], [1, 1, 1]) == "seen"
    assert verdict([2, 3, 1], [1, 1, 1]) == "not seen"
    assert verdict([0, 0, 0], [1, 1, 1]) == "reversed"
    assert verdict([], [1.0]) == "not seen"
    json.dumps(dynamics._finding("claim", {0: 1.0}, {0: 2.0}, 1, "units"))
