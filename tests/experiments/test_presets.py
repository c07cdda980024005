"""Presets of real models: valid, with the paper's numbers, planned without weights or problems."""

import io
import json
import pathlib
import re

import jax
import jax.numpy as jnp
import pytest

from experiments.configs import (
    gsm8k_0p5b,
    gsm8k_0p5b_verl_ppo,
    gsm8k_0p5b_verl_remix_ppo,
    prefix_1p5b,
    remix_grpo_1p5b,
    remix_ppo_1p5b,
    remix_ppo_1p5b_lora,
    remix_ppo_7b,
    remix_ppo_7b_lora,
)
from launch import dry_run
from remix_jax import schedule
from remix_jax.data.tasks import parse
from remix_jax.errors import InputError
from remix_jax.learner.state import abstract_state, make_learner
from remix_jax.models.slots import empty_cache
from remix_jax.run.setup import prepare, state_bytes
from remix_jax.sinks.console import Console
from tests.experiments.runs import small_config

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
ARCHITECTURES = ROOT / "experiments" / "configs" / "architectures"
# (rollouts of the run, parameters of the model as its card has them, reincarnation within the run)
PLANNED = {
    remix_ppo_1p5b: (79_360, 1_777_088_000, True),
    remix_ppo_7b: (11_520, 7_615_616_512, False),
    remix_grpo_1p5b: (368_640, 1_777_088_000, True),
    gsm8k_0p5b: (22_528, 494_032_768, True),
}


ADAPTED = {  # frozen, trained of policy and critic each; GiB of the state
    remix_ppo_1p5b_lora: (1_777_088_000, 36_929_536, 4.5),
    remix_ppo_7b_lora: (7_615_616_512, 80_740_352, 16.7),
}


def planned(config, architectures=ARCHITECTURES):
    file = io.StringIO()
    dry_run.print_plans(config, Console(config.steps, file=file, terminal=False), architectures)
    return " ".join(file.getvalue().split())


@pytest.mark.parametrize("preset", ADAPTED, ids=lambda p: p.__name__.rpartition(".")[2])
def test_adapters_make_the_state_that_of_the_frozen_weights(preset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    frozen, trained, size = ADAPTED[preset]
    config = preset.get_config()
    config.mesh.fsdp = 1
    text = planned(config)
    assert f"{frozen:,} frozen, adapters of rank 32 with {trained:,} for policy and critic" in text
    assert "applied at every token" in text
    assert f"frozen weights {2 * frozen / 2**30:,.1f} GiB" in text
    _, learner, state = dry_run.described_run(config, ARCHITECTURES)
    assert sum(state_bytes(state).values()) / 2**30 == pytest.approx(size, rel=0.05)
    assert learner.critic.config.lora == learner.policy.config.lora


@pytest.mark.parametrize("preset", PLANNED, ids=lambda p: p.__name__.rpartition(".")[2])
def test_a_preset_prints_its_plan_without_weights(preset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rollouts, size, reincarnates = PLANNED[preset]
    config = preset.get_config()
    config.mesh.fsdp = 1
    text = planned(config)
    assert f"whole run {rollouts:,}" in text
    assert f"parameters {size:,}" in text
    assert ("until reincarnation" in text) == reincarnates
    assert "3.33 expected in the mix stage (m = 2)" in text
    assert f"policy {4 * size / 2**30:,.1f} GiB" in text
    assert "kept for the backward pass, estimate" in text
    assert "not there yet: models/" in text
    assert not list(tmp_path.iterdir())


def test_prefix_rl_is_planned_with_the_papers_numbers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = prefix_1p5b.get_config()
    text = planned(config)
    assert "whole run 409,600" in text
    assert "not there yet: data/traces" in text
    assert (config.batch_groups, config.group_size, config.steps) == (128, 8, 400)
    assert (config.prefix.share, config.prefix.cuts) == (0.75, 3)
    assert (config.prefix.low, config.prefix.high) == (0.4, 0.8)
    assert config.prefix.tokens >= config.prefix.high * config.data.response_tokens
    assert config.rates[0] == 1e-6


def test_the_papers_hyper_parameters():
    ppo, large = remix_ppo_1p5b.get_config(), remix_ppo_7b.get_config()
    grpo = remix_grpo_1p5b.get_config()
    for config in (ppo, large, grpo):
        assert (config.replay.share, config.replay.window, config.passes) == (0.4, 2, 2)
        assert (config.data.prompt_tokens, config.data.response_tokens) == (766, 8192)
        assert (config.rates[0], config.optimizer.grad_clip) == (1e-6, 1.0)
        assert (config.kl.start, config.kl.every, config.kl.floor) == (50, 10, 0.5)
        assert [parse(p).name for p in config.data.suites] == list(remix_ppo_1p5b.SUITES)
    assert (ppo.batch_size, ppo.steps, ppo.reincarnation_step) == (256, 350, 100)
    assert (large.batch_size, large.steps) == (256, 75)
    assert (grpo.batch_size, grpo.group_size, grpo.reincarnation_step) == (2048, 8, 50)
    assert not grpo.has_critic


def test_verls_public_log_and_its_twin(shared):
    """The numbers of the log, the same rollouts in both."""
    log = json.loads((shared / "data" / "verl_gsm8k_ppo.json").read_text())
    was = log["setting"]
    ppo, remix = gsm8k_0p5b_verl_ppo.get_config(), gsm8k_0p5b_verl_remix_ppo.get_config()
    for c in (ppo, remix):
        assert (c.batch_size, c.mini_batch_size) == (was["batch"], was["mini_batch"])
        assert (c.objective.clip, c.objective.entropy_coef) == (was["clip"], was["entropy_coef"])
        assert c.rates == (was["policy_lr"], was["critic_lr"])
        assert c.optimizer.grad_clip == was["grad_clip"]
        assert c.sampling.temperature == was["temperature"]
        assert c.data.prompt_tokens == was["prompt_tokens"]
        assert c.data.response_tokens == was["response_tokens"]
        assert c.kl.coef == was["kl_in_reward_coef"]
        assert c.has_critic
        assert (c.objective.gamma, c.objective.lam) == (1, 1)
        assert schedule.planned_rollouts(c) == len(log["steps"]) * was["batch"]
    assert (ppo.replay.share, ppo.passes, ppo.steps) == (0, was["ppo_epochs"], len(log["steps"]))
    assert (ppo.kl.in_reward, ppo.kl.estimator, ppo.kl.convex) == (True, "k1", False)
    assert (remix.replay.share, remix.passes) == (0.4, 2)
    assert (remix.kl.in_reward, remix.kl.estimator, remix.kl.convex) == (False, "k3", True)
    curve = json.loads((ROOT / "experiments/references/verl_gsm8k_ppo.json").read_text())["figures"]
    assert dict(curve["eval/mean"])[7680] == 0.458
    assert len(curve["accuracy"]) == len(log["steps"])


def test_the_plan_has_the_bytes_of_the_real_state(tmp_path):
    config = small_config(tmp_path)
    setup = prepare(config)
    learner = make_learner(config, setup.learner.policy)
    assert state_bytes(abstract_state(learner)) == state_bytes(setup.state)
    sizes, rows = setup.learner.policy.config, 3
    prompt = jnp.zeros((rows, config.data.prompt_tokens), jnp.int32)
    _, cache = jax.eval_shape(
        lambda params: setup.learner.policy.apply(
            {"params": params}, prompt, prompt, prompt + 1, method="prefill"
        ),
        setup.state.params,
    )
    slots = config.prompt_slots + config.data.response_tokens
    full = jax.eval_shape(lambda cache: empty_cache(cache, rows, slots), cache)
    held = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(full))
    assert dry_run.cache_bytes(sizes, rows, slots) == held
    assert "not there yet" not in planned(config)


def test_what_the_backward_pass_keeps_grows_with_the_micro_batch(tmp_path):
    config = small_config(tmp_path)
    policy = prepare(config).learner.policy
    kept = {}
    for rows in (1, 2, 4):
        learner = make_learner(config, policy)
        kept[rows] = dry_run.backward_bytes(learner, abstract_state(learner), rows)
    logits = config.data.response_tokens * policy.config.vocab_size * 4
    assert kept[4] - kept[2] == pytest.approx(2 * (kept[2] - kept[1]), rel=0.01)
    assert kept[2] == pytest.approx(2 * kept[1], rel=0.05), "parameters are not among it"
    assert kept[2] - kept[1] > logits


def test_the_plan_is_of_one_device_of_the_mesh(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = remix_ppo_1p5b.get_config()
    config.mesh.fsdp, config.mesh.tensor = 8, 2
    text = planned(config)
    assert "mesh data 1 x fsdp 8 x tensor 2" in text
    weights = 4 * PLANNED[remix_ppo_1p5b][1] / 16 / 2**20
    shown = float(re.search(r" policy ([\d.]+) MiB", text).group(1))
    assert weights < shown < 1.002 * weights, "norms and biases are not divided"
    # 28,672 bytes a slot, 8,958 slots, half of them on each device of `tensor`.
    assert "sampling, on-policy stage: cache of each row 122.5 MiB" in text
    config.memory.decode_tokens = 16 * 9216
    assert "sampling, on-policy stage: cache of 128 rows 1.9 GiB" in planned(config)
    config.mesh.tensor = 4
    with pytest.raises(InputError, match="must divide the model's 2 key heads"):
        planned(config)


def test_a_kernel_of_another_device_is_refused():
    config = remix_ppo_1p5b.get_config()
    config.model.attention = "splash"
    with pytest.raises(InputError, match="of kind cpu; splash is for tpu"):
        prepare(config)


def test_a_model_that_nothing_describes_is_named(tmp_path):
    config = remix_ppo_1p5b.get_config()
    config.model.path = str(tmp_path / "Unknown-3B")
    with pytest.raises(InputError, match=r"Unknown-3B: has no config\.json, and none is known"):
        planned(config)
    config = remix_ppo_1p5b.get_config()
    config.data.response_tokens, config.memory.micro_batch_tokens = 140_000, 0
    with pytest.raises(InputError, match="takes 131072 positions"):
        planned(config)
    config.passes = 0
    with pytest.raises(InputError, match=r"config\.passes = 0"):
        planned(config)


def test_a_method_with_numbers_of_its_own_is_planned():
    config = remix_grpo_1p5b.get_config()
    config.objective.method, config.objective.aggregation = "gspo", "seq-mean-token-mean"
    config.objective.method_params = ("low=1e-3",)
    assert "GSPO, low 0.001, high 0.0004" in planned(config)
