"""Runs that train adapters, from the first step to what they leave."""

import copy
import os
import shutil
import signal

import jax
import numpy as np
import pytest

from remix_jax.errors import InputError
from remix_jax.models import huggingface, lora, peft
from remix_jax.run import loop, setup
from remix_jax.run.checkpoint import Checkpoints
from tests.experiments.runs import figures, quiet, small_config


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Four steps of ReMix-PPO with reincarnation after the second, on a copy of the base model."""
    folder = tmp_path_factory.mktemp("adapters")
    config = small_config(folder)
    shutil.copytree(config.model.path, folder / "base")
    config.model.path, config.lora.rank = str(folder / "base"), 2
    config.steps, config.reincarnation_step, config.evaluation.every = 4, 2, 0
    return config


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run") / "whole"
    loop.run(config, workdir, quiet(config))
    return workdir


def test_killed_and_continued_it_is_the_unbroken_run(config, whole, tmp_path):
    def interrupt(step):
        if step == 1:  # its figures are written while step 2 learns
            os.kill(os.getpid(), signal.SIGINT)

    assert loop.run(config, tmp_path / "parts", quiet(config, interrupt)).stopped
    assert not loop.run(config, tmp_path / "parts", quiet(config)).stopped
    steps, again = (
        [
            {k: v for k, v in each.items() if not k.startswith(("eval", "valid"))}
            for each in figures(workdir)
        ]
        for workdir in (whole, tmp_path / "parts")  # one that is stopped evaluates once more
    )
    assert steps == again
    assert max(abs(each["sampler_gap"]) for each in steps[1:]) < 1e-5
    for name in ("adapter/adapter_model.safetensors", "export/model.safetensors"):
        assert (whole / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()


def test_what_it_leaves_is_small_and_the_same_policy_twice(config, whole):
    with Checkpoints(whole / "checkpoints", 2) as checkpoints:
        saved = checkpoints._host(4)["sums"]
    assert not [path for path in saved if "frozen" in path or path.endswith("embedding")]
    assert "params/layers_0/q/lora_a" in saved
    policy = setup.prepare(config).learner.policy
    plain, params = huggingface.load(config.model.path)
    adapters = peft.load(policy, whole / "adapter", config.model.path)
    merged = lora.merged(policy.config.lora, lora.joined(params, adapters))
    _, exported = huggingface.load(whole / "export")
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-7), merged, exported)
    moved = abs(exported["layers_0"]["q"]["kernel"] - params["layers_0"]["q"]["kernel"])
    assert moved.max() > 0
    np.testing.assert_array_equal(exported["embed"]["embedding"], params["embed"]["embedding"])
    assert plain.config.lora is None


def test_a_run_starts_from_an_adapter_directory(config, whole):
    config = copy.deepcopy(config)
    config.model.adapter = str(whole / "adapter")
    state = setup.prepare(config).state
    adapters = peft.load(setup.prepare(config).learner.policy, whole / "adapter", config.model.path)
    for part in (state.params, state.base_params, state.prev_params):
        jax.tree.map(np.testing.assert_array_equal, part, adapters)
    config.lora.rank = 3
    with pytest.raises(InputError, match=r"lora.rank = 3: the adapter in .* has 2"):
        setup.prepare(config)


def test_it_does_not_go_on_with_other_weights(config, whole, tmp_path):
    """In place, under the same path; with the weights put back it would."""
    model, params = huggingface.load(config.model.path)
    kept = tmp_path / "kept"
    shutil.copytree(config.model.path, kept)
    shutil.copytree(whole, tmp_path / "run")
    try:
        other = jax.tree.map(lambda x: x * 1.01, params)
        path = os.path.join(config.model.path, huggingface.WEIGHTS)
        huggingface.save(model, other, tmp_path / "other", like=config.model.path)
        shutil.copyfile(tmp_path / "other" / huggingface.WEIGHTS, path)
        with pytest.raises(InputError, match="holds other weights than those that"):
            loop.run(config, tmp_path / "run", quiet(config))
        # The adapters' own directory says it too.
        with pytest.raises(InputError, match="trained on other weights"):
            peft.load(setup.prepare(config).learner.policy, whole / "adapter", config.model.path)
    finally:
        shutil.copyfile(kept / huggingface.WEIGHTS, path)
