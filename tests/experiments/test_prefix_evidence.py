"""The evidence's arms: valid configs, equal FLOPs, paid once."""

import pathlib

import pytest

from experiments import prefix_evidence
from experiments.configs import arithmetic_prefix_reinforce
from remix_jax import config_rules, schedule
from remix_jax.data import traces
from remix_jax.data.tasks import load_set
from remix_jax.errors import InputError
from remix_jax.models.hf_tokenizer import load_vocabulary
from remix_jax.models.huggingface import model_digest
from remix_jax.rollout import draws


def plan(tmp_path, budget=8e11):
    config = arithmetic_prefix_reinforce.get_config()
    bank = traces.load(config.prefix.bank)
    return prefix_evidence.Plan(config, budget, bank, (3e-4, 6e-4), 3, 1, tmp_path, "large")


@pytest.mark.parametrize("name", prefix_evidence.ARMS)
def test_arms_are_valid_and_spend_the_budget(name, tmp_path):
    made = plan(tmp_path)
    arm, trial = prefix_evidence.ARMS[name], made.trial(name, 6e-4, 2)
    c = trial.config
    config_rules.validate(c)
    assert (c.seed, c.optimizer.learning_rate) == (2, 6e-4)
    assert (c.prefix.bank != "") == arm.prefixed
    assert arm.pays == (arm.tuned or c.prefix.bank != "" or c.expert.bank != "")
    more = plan(tmp_path, budget=8e11 + 1e11).trial(name, 6e-4, 2).config.steps
    assert more > c.steps
    left = 8e11 - (made.bank.flops if arm.pays else 0)
    assert c.steps == prefix_evidence.steps_within(c, made.config.model.path, left)


def test_the_bar_is_read_at_its_rollouts(tmp_path):
    config = plan(tmp_path).bar(1).config
    config_rules.validate(config)
    assert schedule.planned_rollouts(config) == 6144
    assert (config.seed, config.optimizer.learning_rate) == (1, 3e-4)
    assert config.prefix.bank == "large"


def test_a_run_with_prefixes_counts_its_bank_itself(tmp_path):
    made = plan(tmp_path)
    assert made.paid("prefix", 3e-4, 0) == 0
    assert made.paid("grpo", 3e-4, 0) == 0
    assert made.paid("luffy", 3e-4, 0) == made.bank.flops
    directory = made.sft(3e-4, 0)
    directory.mkdir(parents=True)
    (directory / "metrics.jsonl").write_text('{"step": 1, "flops": 1e9}\n')
    assert made.paid("sft-grpo", 3e-4, 0) == made.bank.flops + 1e9


def test_the_shipped_bank_is_of_the_shipped_base_and_shows_no_answer():
    config = arithmetic_prefix_reinforce.get_config()
    bank = traces.load(config.prefix.bank)
    assert bank.weights == model_digest(config.model.path)
    assert bank.accept == "experiments.arithmetic.task:right_working"
    vocabulary = load_vocabulary(config.model.path)
    made = draws.load_prefixes(
        config, load_set(config.data.train, config.data, vocabulary.tokenizer), vocabulary
    )
    assert made.traces == bank.solved == 41
    assert len(made.items) == 3 * 41
    assert made.too_long == made.dropped == 0
    assert not (pathlib.Path(config.prefix.bank) / "bank.parquet").read_bytes().count(b"/work")


def test_a_budget_that_the_bank_eats_up_is_refused(tmp_path):
    class Values:
        learning_rates, seeds, tuning, budget, bar_bank = ["3e-4"], 1, 1, 1e10, ""

    config = arithmetic_prefix_reinforce.get_config()
    with pytest.raises(InputError, match="the bank alone took"):
        prefix_evidence.make_plan(config, Values, tmp_path)
    Values.learning_rates = ["fast"]
    with pytest.raises(InputError, match="numbers above 0"):
        prefix_evidence.make_plan(config, Values, tmp_path)
    config.prefix.bank, config.prefix.tokens = "", 0
    with pytest.raises(InputError, match="name the bank"):
        prefix_evidence.make_plan(config, Values, tmp_path)
