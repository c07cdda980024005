"""The presets of the family, its expert rows in the real loop, and its stored table."""

import importlib
import json

import numpy as np
import pytest

from experiments import family as experiment
from experiments.configs.family import base, sft
from remix_jax import config_rules, schedule
from remix_jax.data.tasks import load_set
from remix_jax.errors import InputError
from remix_jax.reporting import family_report
from remix_jax.rl.family import METHODS
from remix_jax.rollout.experts import with_traces
from remix_jax.rollout.rollouts import load_vocabulary
from remix_jax.run import loop
from tests.experiments.runs import figures, quiet, small_config
from tests.reporting import redrawn


def preset(name):
    return importlib.import_module(f"experiments.configs.family.{name}").get_config()


@pytest.mark.parametrize("name", experiment.PRESETS)
def test_presets_are_valid_and_spend_equal_rollouts(name):
    config = preset(name)
    config_rules.validate(config)
    spent = schedule.planned_rollouts(config)
    assert spent == 0 if name == "sft" else 4096 <= spent < 4096 + 80


def test_every_method_has_a_preset():
    assert {preset(name).objective.method for name in (*experiment.PRESETS, "base")} == set(METHODS)
    samplers = {preset(name).replay.sampler for name in experiment.PRESETS}
    assert samplers == {"uniform", "max_advantage", "highlights"}


def test_traces_alone_are_trained_on_and_exported(tmp_path):
    small, config = small_config(tmp_path), sft.get_config()
    config.steps, config.batch_size, config.score_batch_size = 2, 16, 16
    config.mini_batch_size = config.micro_batch_size = 8
    config.data.suites, config.data.validation = small.data.suites, ""
    config.evaluation.batch_size = 8
    outcome = loop.run(config, tmp_path / "run", quiet(config))
    assert [step["rollouts"] for step in outcome.metrics] == [0, 0, 0]
    rows = figures(tmp_path / "run")
    assert 0 < rows[2]["loss_policy"] < rows[1]["loss_policy"] < 2
    assert rows[1]["n_expert"] == 16
    assert rows[1]["flops"] > 0
    assert json.loads((tmp_path / "run" / "ledger.json").read_text()) == []
    assert (tmp_path / "run" / "export" / "model.safetensors").is_file()


def test_problems_without_a_trace_are_left_out(tmp_path):
    config = preset("luffy")
    vocabulary = load_vocabulary(config.model.path)
    train = load_set(config.data.train, config.data, vocabulary.tokenizer)
    kept, traces = with_traces(train, config, vocabulary)
    assert len(kept.problems) == len(kept.prompts) == len(traces) == 632
    assert all(traces[p.problem, p.answers][-1] in vocabulary.eos_ids for p in kept.problems)
    config.data.response_tokens = 3
    with pytest.raises(InputError, match=r"config\.expert\.bank = .*: has no trace of up to 3"):
        with_traces(train, config, vocabulary)
    config.expert.bank = ""
    assert with_traces(train, config, vocabulary) == (train, {})


def made_up(method, rate, seed, accuracy, validation):
    curve = {"rollouts": [0, 1000, 2000], "accuracy": accuracy, "validation": validation}
    return {"method": method, "learning_rate": rate, "seed": seed, "curve": curve}


def test_the_rate_is_chosen_by_validation_and_accuracy_interpolated():
    trials = [
        made_up("m", 1e-4, 0, [0.0, 0.9, 0.9], [0.1, 0.1, 0.1]),
        made_up("m", 3e-4, 0, [0.2, 0.4, 0.8], [0.2, 0.1, 0.1]),
        made_up("m", 3e-4, 1, [0.2, 0.6, 0.7], [0.0, 0.0, 0.0]),
    ]
    data = {
        "trials": trials,
        "learning_rates": [1e-4, 3e-4],
        "selection_seeds": [0],
        "rollouts": [500, 2000, 3000],
    }
    assert family_report.best_learning_rate(data, "m") == 3e-4
    found = family_report.accuracies(data, "m")
    np.testing.assert_allclose(found[0], [0.3, 0.4])
    np.testing.assert_allclose(found[1], [0.8, 0.7])
    assert found[2] == [None, None]
    assert family_report.median([0.8, 0.7]) == pytest.approx(0.75)
    assert family_report.median([0.8, None]) is None
    with pytest.raises(InputError, match="no trial at 1e-4"):
        family_report.best_learning_rate(data | {"trials": trials[1:]}, "m")


@pytest.mark.parametrize("path", redrawn.stored("family.json"), ids=lambda p: p.parent.name)
def test_the_stored_table_and_figure_follow_from_the_json(path, tmp_path):
    data = family_report.read(path)
    family_report.write(data, tmp_path)
    for name in ("family.json", "family.md"):
        assert (tmp_path / name).read_text() == (path.parent / name).read_text()
    redrawn.assert_same(path.parent, tmp_path, tolerance=0.01)
    page = (redrawn.RESULTS.parents[2] / "docs" / "choosing_a_method.md").read_text()
    assert family_report.table(data) in page, "the page has another table than the results"
    assert {method["name"] for method in data["methods"]} == {
        *experiment.REFERENCES, *experiment.PRESETS,
    }  # fmt: skip
    for method in data["methods"]:
        best = family_report.best_learning_rate(data, method["name"])
        assert len(family_report.trials_of(data, method["name"], best)) == 3


def test_the_base_of_the_presets_is_replayed_grpo():
    config = base.get_config()
    assert (config.objective.method, config.group_size) == ("mix_ppg", 8)
    assert (config.replay.share, config.replay.window, config.passes) == (0.4, 2, 2)
