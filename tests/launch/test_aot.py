"""Compiling a run for TPU slices and for GPUs, where these compilers are installed."""

import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

from launch import cards
from remix_jax import cost
from remix_jax.errors import InputError

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


def printed(tool, config, *flags):
    """What launch.TOOL prints, where its compiler is installed."""
    package = {"tpu_aot": "libtpu", "gpu_aot": "jax_cuda13_plugin"}[tool]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"the compiler of launch.{tool} is not installed: launch/README.md")
    call = [sys.executable, "-m", f"launch.{tool}", f"--config=experiments/configs/{config}.py"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [*call, *flags], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.rstrip()


@pytest.fixture
def small(tmp_path):
    """Flags that make of remix_ppo_1p5b a run of three layers, with pieces of the vocabulary."""
    sizes = {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_hidden_layers": 3,
        "vocab_size": 16_384,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e4,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
    }
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    changes = {"batch_size": 16, "mini_batch_size": 8, "micro_batch_size": 8}
    changes |= {"data.prompt_tokens": 128, "data.response_tokens": 1024}
    changes |= {"memory.micro_batch_tokens": 1200, "evaluation.batch_size": 16}
    changes |= {"memory.decode_tokens": 4 * 1152, "memory.logit_entries": 4096}
    changes |= {"model.path": str(tmp_path)}
    return [f"--config.{name}={value}" for name, value in changes.items()]


def test_find_stops_at_the_smallest_slice():
    text = printed("tpu_aot", "arithmetic_remix_grpo", "--find=v5e")
    assert text.endswith("smallest v5e slice that fits: v5e:1x1")


def test_a_small_run_compiles_for_a_slice(small):
    mesh = ("--config.mesh.fsdp=2", "--config.mesh.tensor=2")
    text = printed("tpu_aot", "remix_ppo_1p5b", "--topology=v5e:2x2", *small, *mesh)
    for program in ("sampling, 16 rows, 8 at once", "scoring, 2 rows", "learning, mix stage"):
        assert f"{program}: arguments" in text
    assert "a step of decoding: " in text
    # Gradients of matrices are scattered, of the head's pieces too: sums kept whole are small.
    learning = text.partition("learning, mix stage")[2]
    received = dict(re.findall(r"([\w-]+): [\d,]+ calls, ([\d.]+) MiB received", learning))
    assert float(received["reduce-scatter"]) > 4 * float(received["all-reduce"])
    assert text.endswith("fits")


def test_a_small_run_compiles_for_a_card(small):
    flags = ("--cards=rtx4090", "--programs=sampling,learning", "--config.model.attention=plain")
    text = printed("gpu_aot", "remix_ppo_1p5b", *flags, *small)
    assert "on 1 x NVIDIA GeForce RTX 4090: data 1 x fsdp 1 x tensor 1, 21.7 GiB" in text
    kernels = int(re.search(r"a step of decoding: (\d+) kernels", text).group(1))
    assert 3 * 8 < kernels < 3 * 25 + 30
    assert "the same at every step" not in text
    assert text.endswith("fits")


def test_cards_are_described_to_the_compiler():
    for name, card in cards.KNOWN.items():
        chip = cost.chip(card.kind)
        assert 0.9 * chip.memory_bytes < card.memory_gib * 2**30 < 1.07 * chip.memory_bytes, name
        text = cards.description(card, chip)
        assert f'device_description_str: "{card.kind}"' in text
        assert text.count("{") == text.count("}")


def test_no_compiler_is_told_with_what_to_install(monkeypatch):
    monkeypatch.setattr(cards.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"no GPU compiler .*pip install nvidia-cuda-nvcc"):
        cards.toolkit()
