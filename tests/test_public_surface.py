"""What programs outside rely on: names, argument order, and that importing costs nothing."""

import importlib
import inspect
import subprocess
import sys

import pytest

import remix_jax

SURFACE = {
    "remix_jax.rl.masked:aggregate": "x_BT mask_BT mode",
    "remix_jax.rl.advantages:gae": "reward_BT value_BT mask_BT gamma lam",
    "remix_jax.rl.advantages:group_normalized": "reward_B group_B eps=1e-06",
    "remix_jax.rl.advantages:rloo": "reward_B group_B",
    "remix_jax.rl.objectives:ppo": (
        "logp_BT behav_logp_BT adv_BT clip_low=0.2 clip_high=0.2 dual_clip=None"
    ),
    "remix_jax.rl.objectives:mix_ppg": "logp_BT behav_logp_BT prox_logp_BT adv_BT clip=0.2",
    "remix_jax.rl.constraints:k1": "logp_BT anchor_logp_BT",
    "remix_jax.rl.constraints:k2": "logp_BT anchor_logp_BT",
    "remix_jax.rl.constraints:k3": "logp_BT anchor_logp_BT",
    "remix_jax.rl.constraints:kl_convex": "logp_BT base_logp_BT prev_logp_BT lam",
    "remix_jax.rl.schedules:kl_convex_weight": "step",
    "remix_jax.models.huggingface:load": "directory dtype='float32' mesh=None",
    "remix_jax.models.huggingface:save": "model params directory like=None",
    "remix_jax.models.scoring:token_logps": "model params tokens_BT mask_BT",
    "remix_jax:load": "directory dtype='float32' mesh=None",
    "remix_jax:save": "model params directory like=None",
    "remix_jax:grade": "response answers",
    "remix_jax:train": "config workdir",
    "remix_jax:evaluate": "config out=None",
    "remix_jax.rollout.sampler:make": "config policy task mesh=None",
    "remix_jax.rollout.sampler:compiled": "policy task mesh=None",
}


@pytest.mark.parametrize("where", SURFACE)
def test_names_and_arguments(where):
    module, _, name = where.partition(":")
    function = getattr(importlib.import_module(module), name)
    parameters = list(inspect.signature(function).parameters.values())
    given = [argument.partition("=") for argument in SURFACE[where].split()]
    for (name, _, default), parameter in zip(given, parameters, strict=False):
        assert parameter.name == name
        assert not default or repr(parameter.default) == default
    assert len(parameters) >= len(given)
    assert all(p.default is not p.empty for p in parameters[len(given) :]), "more are optional"


def test_every_name_of_the_package_is_there():
    assert set(remix_jax.__all__) <= set(dir(remix_jax))
    for name in remix_jax.__all__:
        assert getattr(remix_jax, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        importlib.import_module("remix_jax").__getattr__("trian")


def test_grading_and_rewards_load_no_jax():
    program = (
        "import remix_jax, sys; import math_grader.pool, remix_jax.rewards;"
        "remix_jax.grade; print('jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
