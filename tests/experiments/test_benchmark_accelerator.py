"""The accelerator's benchmark, on a CPU and a tiny shape: it runs, and its bound is the formula."""

import sys

import pytest

from experiments import benchmark_accelerator as benchmark
from remix_jax import config_rules, cost
from tests.tiny_models import decoder_config


def test_both_phases_are_measured_and_set_against_the_chip(monkeypatch):
    config = benchmark.benchmark_config(rows=8, micro=4, prompt=3, response=5)
    config_rules.validate(config)
    sizes = decoder_config()
    seconds = benchmark.ours(sizes, config, repeats=1)
    assert len(seconds["decode"]) == len(seconds["learn"]) == 1
    found = benchmark.figures(sizes, config, seconds, seconds["flops"])
    assert found["decode_tokens_per_second"] == pytest.approx(8 * 5 / seconds["decode"][0])
    assert found["learn_tokens_per_second"] == pytest.approx(8 * 8 / seconds["learn"][0])
    assert set(found) == {"decode_tokens_per_second", "learn_tokens_per_second"}, "no peak known"
    peaks = cost.chip("NVIDIA H200")
    monkeypatch.setattr(cost, "chip", lambda: peaks)
    found = benchmark.figures(sizes, config, seconds, seconds["flops"])
    assert found["learn_mfu"] == pytest.approx(seconds["flops"] / seconds["learn"][0] / 989e12)
    assert 0 < found["decode_share_of_bound"] < 1


def test_the_bound_of_decoding_is_one_reading_of_weights_and_cache():
    """Qwen2.5-1.5B: 3.1 GB of weights, 28,672 bytes of cache a slot."""
    sizes = benchmark.huggingface.read_config(
        benchmark.ARCHITECTURES / "DeepSeek-R1-Distill-Qwen-1.5B"
    )
    bound = benchmark.decode_bound(sizes, rows=64, prompt=256, response=1024, rate=4.3e12)
    assert bound == pytest.approx(64 / ((3.1e9 + 64 * 768 * 28_672) / 4.3e12), rel=0.01)


def test_a_torch_side_that_fails_is_told_in_one_line(tmp_path):
    with pytest.raises(benchmark.InputError, match=r"--torch=.*KeyError: 'model'"):
        benchmark.theirs(sys.executable, {}, tmp_path)
