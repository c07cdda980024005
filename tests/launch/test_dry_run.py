"""What a dry run finds wrong with problems, template and rewards that are there already."""

import json
import pathlib

import pytest

from experiments.configs import arithmetic_remix_ppo
from launch import dry_run
from remix_jax.errors import InputError

ROWS = [
    {"problem": "1 +1 +2 +3 . . . . . . . . . . . =", "answer": "7"},
    {"problem": "2 +1 +2 +3 . . . . . . . . . . . . . . . . =", "answer": "8"},
]


@pytest.fixture
def config(tmp_path):
    """A run whose training problems are two, one of them too long; held-out sets are not there."""
    config = arithmetic_remix_ppo.get_config()
    config.data.train = str(tmp_path / "own.jsonl")
    config.data.suites, config.data.validation = (str(tmp_path / "later.jsonl"),), ""
    write(config, ROWS)
    return config


def write(config, rows):
    pathlib.Path(config.data.train).write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_sets_that_are_there_are_read_as_by_the_run(config):
    plan = dry_run.problem_plan(config)
    assert plan["problems, own"] == "1, left out 1 with prompts over 18 tokens"
    assert "problems, later" not in plan
    assert plan["a prompt ends"].endswith("<|assistant|>'")


def test_wrong_rows_limits_and_rewards_are_refused(config):
    config.data.prompt_tokens = 8
    with pytest.raises(InputError, match="over the limit of 8 tokens"):
        dry_run.problem_plan(config)
    config.data.prompt_tokens = 18
    config.reward.functions = ("no_such.py:score",)
    with pytest.raises(InputError, match=r"no_such\.py"):
        dry_run.problem_plan(config)
    config.reward.functions = ()
    write(config, [{"input": "1 +1 =", "target": "2"}])
    with pytest.raises(InputError, match="input, target"):
        dry_run.problem_plan(config)


def test_files_are_read_without_a_tokenizer_too(config, tmp_path):
    config.model.path = str(tmp_path)
    assert dry_run.problem_plan(config) == {}
    write(config, [{"input": "1 +1 =", "target": "2"}])
    with pytest.raises(InputError, match="input, target"):
        dry_run.problem_plan(config)


def test_a_chat_template_that_is_missing_is_named(config, tmp_path):
    base = pathlib.Path(config.model.path)
    for path in base.glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    settings = json.loads((base / "tokenizer_config.json").read_text())
    del settings["chat_template"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    config.model.path = str(tmp_path)
    with pytest.raises(InputError, match="template"):
        dry_run.problem_plan(config)
