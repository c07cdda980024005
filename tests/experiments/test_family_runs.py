"""The presets of the family, and its expert rows in the real loop."""

import importlib
import json

import pytest

from experiments import family as experiment
from experiments.configs.family import base, sft
from remix_jax import config_rules, schedule
from remix_jax.data.tasks import load_set
from remix_jax.errors import InputError
from remix_jax.models.hf_tokenizer import load_vocabulary
from remix_jax.rewards import Scorer
from remix_jax.rl.family import METHODS
from remix_jax.rollout.rollouts import with_traces
from remix_jax.run import loop
from tests.experiments.runs import figures, quiet, small_config


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
    kept, traces = with_traces(train, config, vocabulary, Scorer())
    assert len(kept.problems) == len(kept.prompts) == len(traces) == 632
    assert all(traces[p.problem, p.answers][0][-1] in vocabulary.eos_ids for p in kept.problems)
    assert {reward for _, reward in traces.values()} == {1.0}
    halved = Scorer(("math", "overlong?max=20&buffer=20"))
    scored = with_traces(train, config, vocabulary, halved)[1]
    assert all(r == pytest.approx(1 - len(ids) / 20) for ids, r in scored.values())
    config.data.response_tokens = 3
    with pytest.raises(InputError, match=r"config\.expert\.bank = .*: has no trace of up to 3"):
        with_traces(train, config, vocabulary, Scorer())
    config.expert.bank = ""
    assert with_traces(train, config, vocabulary, Scorer()) == (train, {})


def test_the_base_of_the_presets_is_replayed_grpo():
    config = base.get_config()
    assert (config.objective.method, config.group_size) == ("mix_ppg", 8)
    assert (config.replay.share, config.replay.window, config.passes) == (0.4, 2, 2)
