"""A run before its first step: what is refused, and what leaves the directory free."""

import os
import signal

import pytest

from remix_jax import sharding
from remix_jax.errors import InputError
from remix_jax.learner import step
from remix_jax.rollout import sampler
from remix_jax.run import loop, setup
from tests.experiments.runs import quiet, small_config


class Compiling(Exception):
    """Stands for the moment at which a run compiles."""


@pytest.fixture
def stopped_at_compilation(monkeypatch):
    def compile_(*_):
        raise Compiling

    monkeypatch.setattr(loop, "compile_programs", compile_)


def test_before_its_first_step_a_run_claims_nothing_and_overwrites_nothing(
    tmp_path, stopped_at_compilation
):
    config, workdir = small_config(tmp_path), tmp_path / "run"
    with pytest.raises(Compiling):
        loop.run(config, workdir, quiet(config))
    config.batch_size, config.seed = 32, 7  # another run, where nothing is lost
    (workdir / "export").mkdir()
    (workdir / "export" / "README.md").write_text("mine\n")
    with pytest.raises(InputError, match=r"export.*not written over"):
        loop.run(config, workdir, quiet(config))
    assert (workdir / "export" / "README.md").read_text() == "mine\n"


def test_the_plan_says_how_many_rows_are_decoded_at_once(tmp_path, monkeypatch):
    """Memory for four rows of ten, by the config; the programs stand for their makers."""
    config = small_config(tmp_path)
    config.memory.decode_tokens = 4 * (config.data.prompt_tokens + config.data.response_tokens)
    ready = setup.prepare(config)
    made = sharding.Program(None, 1)
    samplers = sampler.Samplers(dict.fromkeys(("mix", "on-policy"), made), made)
    monkeypatch.setattr(sampler, "build", lambda *_: samplers)
    programs = step.Programs(samplers.rollout, made)
    monkeypatch.setattr(step, "build", lambda *_: programs)
    console, plans = quiet(config), []
    monkeypatch.setattr(console, "print_plan", lambda plan, **_: plans.append(plan))
    assert setup.compile_programs(ready, console) == (programs, samplers)
    assert plans[0]["sampling, mix stage: at once"] == "4 of 10 rows"
    assert plans[0]["evaluation: at once"] == "4 of 12 rows"


def test_ctrl_c_while_compiling_ends_the_run_with_a_word(tmp_path, monkeypatch):
    def compile_(*_):
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("went on")

    monkeypatch.setattr(loop, "compile_programs", compile_)
    config = small_config(tmp_path)
    console, events = quiet(config), []
    console.event = events.append
    outcome = loop.run(config, tmp_path / "run", console)
    assert outcome.stopped
    assert any("before the first step" in event for event in events)
