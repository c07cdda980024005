"""Counting what a compiled program does, from its jaxpr and from the compilers' text."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from launch import hlo, jaxpr_flops
from remix_jax.models import attention, flash_decoding


def loop(x, w):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]


def test_products_count_as_often_as_they_run():
    x, w = jnp.ones((8, 16)), jnp.ones((5, 16, 16))
    once = 2 * 8 * 16 * 16
    count = jaxpr_flops.count
    assert count(jax.make_jaxpr(loop)(x, w)) == 5 * once
    again = jax.grad(lambda w: jax.checkpoint(loop)(x, w).sum())
    assert count(jax.make_jaxpr(again)(w)) == 4 * 5 * once, "forward twice, backward"

    def tokens(x):
        return jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ w[0], x)

    def segments(x):
        x = jax.lax.while_loop(lambda x: x.sum() < 8, lambda x: tokens(x @ w[1]), x)
        return tokens(x)

    assert count(jax.make_jaxpr(tokens)(x), 7) == 7 * once
    assert count(jax.make_jaxpr(segments)(x), (3,), 7) == 3 * (1 + 7) * once, "the first alone"
    assert count(jax.make_jaxpr(segments)(x), 3, 7) == (3 * (1 + 7) + 3) * once
    text = hlo.Program(compiled_text(segments, x))
    turns = sorted((each.innermost, each.turn.kernels) for each in text.loops())
    assert [innermost for innermost, _ in turns] == [False, True, True]
    once, three, nested = (text.traffic(*trips).kernels for trips in ((), ((3,),), ((3,), 7)))
    assert three - once == 3 * turns[0][1]
    assert nested - three == 3 * 7 * turns[1][1]


def test_the_kernel_counts_visible_pairs():
    B, K, M, T, E = 2, 2, 3, 512, 128
    q, k = jnp.ones((B, K, M, T, E)), jnp.ones((B, K, T, E))
    mask = jnp.ones((B, T), jnp.int32)

    def total(q, k, v):
        return attention.splash(q, k, v, mask, 0).sum()

    pairs = B * K * M * T * (T + 1) / 2
    forward = jax.make_jaxpr(total)(q, k, k)
    assert jaxpr_flops.count(forward) == 2 * 2 * pairs * E
    backward = jax.make_jaxpr(jax.grad(total, argnums=(0, 1, 2)))(q, k, k)
    beside = 2 * B * K * M * T * E  # out . dout, made outside of the kernel
    assert jaxpr_flops.count(backward) == (2 + 3 + 4) * 2 * pairs * E + beside


@pytest.mark.parametrize(
    ("kernel", "new"), [(flash_decoding.tpu, 0), (flash_decoding.gpu, 2)], ids=["tpu", "gpu"]
)
def test_a_decoding_kernel_counts_all_slots_of_the_cache(kernel, new):
    N, K, M, S, E = 3, 2, 6, 640, 64
    shapes = (N, K, M + new, E), (N, K, E, S), (N, K, S, E)
    given = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes]
    length_N = jax.ShapeDtypeStruct((N,), jnp.int32)
    call = functools.partial(kernel, dtype="bfloat16")
    assert jaxpr_flops.count(jax.make_jaxpr(call)(*given, length_N)) == 2 * 2 * N * K * M * S * E


def compiled_text(function, *arguments):
    return jax.jit(function).lower(*arguments).compile().as_text()


def test_memory_traffic_follows_the_loop():
    short, long = (
        hlo.Program(compiled_text(loop, jnp.ones((64, 64)), jnp.ones((n, 64, 64)))) for n in (3, 30)
    )
    assert [each.trips for each in long.loops()] == [30]
    weights = 4 * 64 * 64
    per_turn = (long.traffic().memory - short.traffic().memory) / 27
    assert 3 * weights <= per_turn < 12 * weights, "a matrix, its input and output, some copies"


def test_collectives_follow_the_loop():
    mesh = jax.make_mesh((8,), ("tensor",), axis_types=(AxisType.Auto,))

    def summed(x):
        def turn(x, _):
            return jnp.tanh(jax.lax.psum(x, "tensor")), None

        return jax.lax.scan(turn, x, length=5)[0]

    mapped = jax.shard_map(summed, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False)
    traffic = hlo.Program(compiled_text(mapped, jnp.ones((16, 32)))).traffic()
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
    assert [each.trips for each in program.loops()] == [28]
    traffic = program.traffic()
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
    assert hlo.Program(SLICES_TEXT).traffic().memory == 1024 + 2 * 512


SCATTERED_TEXT = """HloModule jit_h, is_scheduled=true

%all-reduce-scatter.1 (input.0: f32[16,128], input.1: f32[64,8]) -> (f32[4,128], f32[64,2]) {
  %input.0 = f32[16,128]{1,0} parameter(0)
  %input.1 = f32[64,8]{1,0} parameter(1)
  %both = (f32[16,128]{1,0}, f32[64,8]{1,0}) all-reduce(%input.0, %input.1), channel_id=1, GROUPS
  %sum.0 = f32[16,128]{1,0} get-tuple-element(%both), index=0
  %sum.1 = f32[64,8]{1,0} get-tuple-element(%both), index=1
  %zero = u32[] constant(0)
  %me = u32[] partition-id()
  %part.0 = f32[4,128]{1,0} dynamic-slice(%sum.0, %me, %zero), dynamic_slice_sizes={4,128}
  %part.1 = f32[64,2]{1,0} dynamic-slice(%sum.1, %zero, %me), dynamic_slice_sizes={64,2}
  ROOT %parts = (f32[4,128]{1,0}, f32[64,2]{1,0}) tuple(%part.0, %part.1)
}

%all-reduce-scatter.2 (input.2: f32[8,32]) -> f32[2,32] {
  %input.2 = f32[8,32]{1,0} parameter(0)
  %sum.2 = f32[8,32]{1,0} all-reduce(%input.2), channel_id=1, GROUPS
  %zero.2 = u32[] constant(0)
  %me.2 = u32[] partition-id()
  ROOT %part.2 = f32[2,32]{1,0} dynamic-slice(%sum.2, %me.2, %zero.2), dynamic_slice_sizes={2,32}
}

ENTRY %main (a: f32[16,128], b: f32[64,8], c: f32[8,32]) -> (f32[4,128], f32[2,32], f32[8,32]) {
  %a = f32[16,128]{1,0} parameter(0)
  %b = f32[64,8]{1,0} parameter(1)
  %c = f32[8,32]{1,0} parameter(2)
  %f.1 = (f32[4,128]{1,0}, f32[64,2]{1,0}) fusion(%a, %b), calls=%all-reduce-scatter.1
  %f.2 = f32[2,32]{1,0} fusion(%c), calls=%all-reduce-scatter.2
  %whole = f32[8,32]{1,0} all-reduce(%c), channel_id=2, GROUPS
  %mine = f32[4,128]{1,0} get-tuple-element(%f.1), index=0
  ROOT %t = (f32[4,128]{1,0}, f32[2,32]{1,0}, f32[8,32]{1,0}) tuple(%mine, %f.2, %whole)
}
"""


def test_a_sum_of_which_each_device_keeps_its_part_is_a_reduce_scatter():
    """As the TPU's compiler writes it, several with one channel; a sum kept whole costs twice."""
    text = SCATTERED_TEXT.replace("GROUPS", "replica_groups={{0,1,2,3}}")
    traffic = hlo.Program(text).traffic()
    assert traffic.calls == {"reduce-scatter": 2, "all-reduce": 1}
    scattered = 3 / 4 * 4 * (16 * 128 + 64 * 8 + 8 * 32)
    assert traffic.received == {"reduce-scatter": scattered, "all-reduce": 2 * 3 / 4 * 4 * 8 * 32}


GPU_TEXT = """HloModule jit_sample, is_scheduled=true

%wrapped_convert_computation (param_0.3: f32[512,64]) -> bf16[512,64] {
  %param_0.3 = f32[512,64]{1,0} parameter(0)
  ROOT %convert.9 = bf16[512,64]{1,0} convert(%param_0.3)
}

%gemm_fusion_dot_computation (parameter_0: bf16[8,64], parameter_1: bf16[512,64]) -> f32[8,512] {
  %parameter_0 = bf16[8,64]{1,0} parameter(0)
  %parameter_1 = bf16[512,64]{1,0} parameter(1)
  ROOT %dot.1 = f32[8,512]{1,0} dot(%parameter_0, %parameter_1), lhs_contracting_dims={1}
}

%fused_update (param_0: bf16[8,100,64], param_1: f32[8,512], param_2: s32[]) -> bf16[8,100,64] {
  %param_0 = bf16[8,100,64]{2,1,0} parameter(0)
  %param_1 = f32[8,512]{1,0} parameter(1)
  %param_2 = s32[] parameter(2)
  %slice.1 = f32[8,1,64]{2,1,0} slice(%param_1), slice={[0:8], [0:1], [0:64]}
  %convert.1 = bf16[8,1,64]{2,1,0} convert(%slice.1)
  %zero.1 = s32[] constant(0)
  ROOT %written = bf16[8,100,64]{2,1,0} dynamic-update-slice(%param_0, %convert.1, %zero.1, %param_2, %zero.1)
}

%body (p: (f32[512,64], bf16[8,64], bf16[8,100,64], s32[])) -> (f32[512,64], bf16[8,64], bf16[8,100,64], s32[]) {
  %p = (f32[512,64]{1,0}, bf16[8,64]{1,0}, bf16[8,100,64]{2,1,0}, s32[]) parameter(0)
  %table = f32[512,64]{1,0} get-tuple-element(%p), index=0
  %x = bf16[8,64]{1,0} get-tuple-element(%p), index=1
  %cache = bf16[8,100,64]{2,1,0} get-tuple-element(%p), index=2
  %slot = s32[] get-tuple-element(%p), index=3
  %wrapped_convert.7 = bf16[512,64]{1,0} fusion(%table), kind=kLoop, calls=%wrapped_convert_computation
  %gemm_fusion_dot.1 = f32[8,512]{1,0} fusion(%x, %wrapped_convert.7), kind=kCustom, calls=%gemm_fusion_dot_computation
  %update.1 = bf16[8,100,64]{2,1,0} fusion(%cache, %gemm_fusion_dot.1, %slot), kind=kLoop, calls=%fused_update
  %y.1 = bf16[8,64]{1,0} custom-call(%gemm_fusion_dot.1), custom_call_target="__cublas$gemm"
  ROOT %t = (f32[512,64]{1,0}, bf16[8,64]{1,0}, bf16[8,100,64]{2,1,0}, s32[]) tuple(%table, %y.1, %update.1, %slot)
}

%cond (q: (f32[512,64], bf16[8,64], bf16[8,100,64], s32[])) -> pred[] {
  %q = (f32[512,64]{1,0}, bf16[8,64]{1,0}, bf16[8,100,64]{2,1,0}, s32[]) parameter(0)
  %all = pred[] custom-call(%q), custom_call_target="live"
  ROOT %goes_on = pred[] not(%all)
}

ENTRY %main (a: (f32[512,64], bf16[8,64], bf16[8,100,64], s32[])) -> (f32[512,64], bf16[8,64], bf16[8,100,64], s32[]) {
  %a = (f32[512,64]{1,0}, bf16[8,64]{1,0}, bf16[8,100,64]{2,1,0}, s32[]) parameter(0)
  ROOT %w = (f32[512,64]{1,0}, bf16[8,64]{1,0}, bf16[8,100,64]{2,1,0}, s32[]) while(%a), condition=%cond, body=%body
}
"""  # noqa: E501


def test_a_turn_of_a_loop_as_the_gpu_compiler_writes_it():
    """Its kernels; a cache that is written in one slot; and what is converted in every turn."""
    (turn,) = hlo.Program(GPU_TEXT).loops()
    assert (turn.trips, turn.innermost, turn.turn.kernels) == (None, True, 4)
    convert, logits, x, slot = (4 + 2) * 512 * 64, 4 * 8 * 512, 2 * 8 * 64, 4
    product, update = x + 2 * 512 * 64 + logits, 4 * 8 * 64 + slot + 2 * 8 * 64
    assert turn.turn.memory == convert + product + update + logits + x
    assert turn.again == {"wrapped_convert bf16[512,64]": convert}
    assert hlo.Program(GPU_TEXT).traffic(10).kernels == 40
