"""docs/tasks.md: its own problems and its reasoning-gym run, from what the page alone says."""

import pytest

from experiments.configs import arithmetic_remix_ppo
from remix_jax import plugins
from remix_jax.config import Memory, Model
from remix_jax.data.tasks import load_set
from remix_jax.models.hf_tokenizer import load_tokenizer
from remix_jax.run import loop
from remix_jax.sinks import health
from tests.doc_pages import write_named
from tests.experiments.runs import figures, quiet

PAGE = "docs/tasks.md"
BASE = arithmetic_remix_ppo.get_config().model.path


@pytest.fixture
def page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert write_named(PAGE, tmp_path) == ["train.jsonl", "own.py", "gym.py"]
    return tmp_path


def test_ones_own_problems(page):
    data = plugins.load("own.py:get_config", "config")().data
    tokenizer = load_tokenizer(BASE)
    train, held_out = (load_set(spec, data, tokenizer) for spec in (data.train, *data.suites))
    assert [p.answers for p in train.problems] == [("42",), ("3/4", 0.75)]
    assert train.problems[0].columns["source"] == "mine"
    (finding,) = health.of_problems(train, [held_out], compared=True)
    assert "2 of 2 of held_out" in finding.text


def test_a_run_on_reasoning_gym(page):
    """The embedded model instead of a real one, and few small rows; the rest is the page's."""
    pytest.importorskip("reasoning_gym")
    config = plugins.load("gym.py:get_config", "config")()
    config.model, config.memory = Model(path=BASE), Memory()
    config.steps, config.reincarnation_step, config.checkpoint_every = 1, 0, 0
    config.batch_size, config.group_size, config.mini_batch_size = 4, 2, 4
    config.micro_batch_size = config.score_batch_size = 4
    config.mesh.fsdp = 1
    config.data.prompt_tokens, config.data.response_tokens = 200, 4
    config.evaluation.batch_size = config.evaluation.limit = 4
    loop.run(config, page / "run", quiet(config))
    first, last = figures(page / "run")
    assert first["eval_reward/chain_sum"] == first["eval/chain_sum"] == 0
    assert last["reward"] == last["reward/reasoning_gym"] == 0
    assert last["accuracy"] == 0
