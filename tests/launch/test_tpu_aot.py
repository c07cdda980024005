"""Counting what a compiled program does, and compiling for a TPU slice where its compiler is."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from launch import hlo, jaxpr_flops
from remix_jax.models import attention

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


def loop(x, w):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]


def test_products_count_as_often_as_they_run():
    x, w = jnp.ones((8, 16)), jnp.ones((5, 16, 16))
    once = 2 * 8 * 16 * 16
    count = jaxpr_flops.count
    assert count(jax.make_jaxpr(loop)(x, w), 1) == 5 * once
    again = jax.grad(lambda w: jax.checkpoint(loop)(x, w).sum())
    assert count(jax.make_jaxpr(again)(w), 1) == 4 * 5 * once, "forward twice, backward"

    def decoding(x):
        return jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ w[0], x)

    assert count(jax.make_jaxpr(decoding)(x), 7) == 7 * once


def test_the_kernel_counts_visible_pairs():
    B, K, M, T, E = 2, 2, 3, 512, 128
    q, k = jnp.ones((B, K, M, T, E)), jnp.ones((B, K, T, E))
    mask = jnp.ones((B, T), jnp.int32)

    def total(q, k, v):
        return attention.splash(q, k, v, mask, 0).sum()

    pairs = B * K * M * T * (T + 1) / 2
    forward = jax.make_jaxpr(total)(q, k, k)
    assert jaxpr_flops.count(forward, 1) == 2 * 2 * pairs * E
    backward = jax.make_jaxpr(jax.grad(total, argnums=(0, 1, 2)))(q, k, k)
    beside = 2 * B * K * M * T * E  # out . dout, made outside of the kernel
    assert jaxpr_flops.count(backward, 1) == (2 + 3 + 4) * 2 * pairs * E + beside


def compiled_text(function, *arguments):
    return jax.jit(function).lower(*arguments).compile().as_text()


def test_memory_traffic_follows_the_loop():
    short, long = (
        hlo.Program(compiled_text(loop, jnp.ones((64, 64)), jnp.ones((n, 64, 64)))) for n in (3, 30)
    )
    assert long.loops() == [30]
    weights = 4 * 64 * 64
    per_turn = (long.traffic(1).memory - short.traffic(1).memory) / 27
    assert 3 * weights <= per_turn < 12 * weights, "a matrix, its input and output, some copies"


def test_collectives_follow_the_loop():
    mesh = jax.make_mesh((8,), ("tensor",), axis_types=(AxisType.Auto,))

    def summed(x):
        def turn(x, _):
            return jnp.tanh(jax.lax.psum(x, "tensor")), None

        return jax.lax.scan(turn, x, length=5)[0]

    mapped = jax.shard_map(summed, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False)
    traffic = hlo.Program(compiled_text(mapped, jnp.ones((16, 32)))).traffic(1)
    assert traffic.calls == {"all-reduce": 5}
    assert traffic.received["all-reduce"] == 5 * 2 * (7 / 8) * 16 * 32 * 4


TPU_TEXT = """HloModule jit_f, is_scheduled=true

%cond (p.1: (s32[], f32[8,128])) -> pred[] {
  %limit = s32[]{:T(128)} constant(28)
  %p.1 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  %at = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  ROOT %lt = pred[]{:T(512)} compare(%at, %limit), direction=LT
}

%begin (a: f32[8,128]) -> f32[32,128] {
  %a = f32[8,128]{1,0} parameter(0)
  ROOT %ag.1 = f32[32,128]{1,0:S(1)} all-gather(%a), channel_id=7, replica_groups=GROUPS
}

%body (p.2: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %p.2 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p.2), index=0
  %x = f32[8,128]{1,0:T(8,128)} get-tuple-element(%p.2), index=1
  %f.1 = f32[32,128]{1,0:S(1)} fusion(%x), kind=kCustom, calls=%begin
  %f.2 = f32[32,128]{1,0:S(1)} fusion(%x), kind=kCustom, calls=%begin
  %y = f32[8,128]{1,0:T(8,128)} custom-call(%f.2), custom_call_target="k"
  ROOT %t = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) tuple(%i, %y)
}

ENTRY %main (x.1: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %x.1 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  ROOT %w = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) while(%x.1), condition=%cond, body=%body
}
"""


@pytest.mark.parametrize(
    "groups",
    ["{{0,1,2,3},{4,5,6,7}}", "[2,4]<=[8]", "mesh['a'=2,'b'=4] {'b'}"],
    ids=["listed", "counted", "named"],
)
def test_the_spellings_of_the_tpu_compiler(groups):
    """No trip count is said; one collective is spread over two fusions; S(1) is no main memory."""
    program = hlo.Program(TPU_TEXT.replace("GROUPS", groups))
    assert program.loops() == [28]
    traffic = program.traffic(1)
    part = 8 * 128 * 4
    assert traffic.calls == {"all-gather": 28}
    assert traffic.received == {"all-gather": 28 * 3 * part}
    assert traffic.memory == 28 * 3 * part  # x is read twice, y is written


SLICES_TEXT = """HloModule jit_g, is_scheduled=true

ENTRY %main (w: s8[4096]) -> s8[1024] {
  %w = s8[4096]{0:T(1024)} parameter(0)
  %s.1 = ((s8[4096]{0}), s8[1024]{0:S(1)}, s32[]{:S(2)}) slice-start(%w), slice={[0:1024]}
  %d.1 = s8[1024]{0:T(1024)S(1)} slice-done(%s.1)
  %s.2 = ((s8[4096]{0}), s8[512]{0}, s32[]{:S(2)}) slice-start(%w), slice={[1024:1536]}
  ROOT %d.2 = s8[512]{0:T(1024)} slice-done(%s.2)
}
"""


def test_a_slice_fetched_beside_other_work_reads_itself_alone():
    """1,024 bytes into the fast memory, 512 read and written in the main one."""
    assert hlo.Program(SLICES_TEXT).traffic(1).memory == 1024 + 2 * 512


def compiled_ahead(config, *flags):
    """What launch.tpu_aot prints, where it can run."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip('the TPU compiler is not installed: pip install "jax[tpu]"')
    call = [sys.executable, "-m", "launch.tpu_aot", f"--config=experiments/configs/{config}.py"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [*call, *flags], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.rstrip()


def test_find_stops_at_the_smallest_slice():
    printed = compiled_ahead("arithmetic_remix_grpo", "--find=v5e")
    assert printed.endswith("smallest v5e slice that fits: v5e:1x1")


def test_a_small_run_compiles_for_a_slice(tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
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
        )
    )
    small = {"batch_size": 16, "mini_batch_size": 8, "micro_batch_size": 8}
    small |= {"data.prompt_tokens": 128, "data.response_tokens": 1024}
    small |= {"memory.micro_batch_tokens": 1200, "evaluation.batch_size": 16}
    small |= {"memory.decode_tokens": 4 * 1152}
    small |= {"model.path": str(tmp_path), "mesh.fsdp": 2, "mesh.tensor": 2}
    changes = (f"--config.{name}={value}" for name, value in small.items())
    printed = compiled_ahead("remix_ppo_1p5b", "--topology=v5e:2x2", *changes)
    for program in (
        "sampling, 16 rows, 8 at once",
        "scoring, 2 rows",
        "learning, mix stage",
    ):
        assert f"{program}: arguments" in printed
    assert "all-gather: " in printed
    assert printed.endswith("fits")
