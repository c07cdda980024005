"""Rules for every array of a run, and the mesh they speak of."""

import math
import re

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from launch.dry_run import planned_mesh
from launch.placement import placed
from remix_jax import sharding
from remix_jax.errors import InputError
from remix_jax.run.setup import check_sizes
from remix_jax.sharding import make_mesh, mesh_shape, shardings, spec_of
from tests.learner.tiny import POLICY, grouped, make_config, start

PARAMETERS = re.compile(r"^(?:\w+_)?(?:params|opt_state/1/0/[mn]u)/")


@pytest.mark.parametrize("wanted", [(1, -1, 2), (2, 2, 2), (-1, 2, 1)])
def test_copies_moments_and_anchors_lie_like_the_parameters(wanted):
    _, state = start(make_config())
    mesh = make_mesh(wanted)
    where = jax.tree_util.tree_leaves_with_path(shardings(state, mesh))
    specs = {sharding.path_text(path): x.spec for path, x in where}
    of_params = {n[7:]: spec for n, spec in specs.items() if n.startswith("params/")}
    divided = [spec for spec in of_params.values() if any(spec)]
    assert len(divided) >= 7 * POLICY.config.layers, "the matrices of every layer are divided"
    seen = 0
    for name, spec in specs.items():
        bare = PARAMETERS.sub("", name)
        if bare != name and bare in of_params:
            assert spec == of_params[bare], name
            seen += 1
    # the policy, its moments (2), two anchors, the critic and its moments (2)
    assert seen == 8 * len(of_params)


def test_the_table_has_the_bytes_that_a_device_really_holds():
    config = grouped(replay__share=0.5, batch_size=16)
    _, state = start(config)
    mesh = make_mesh((2, 2, 2))
    spread = jax.device_put(state, shardings(state, mesh))
    first = mesh.devices.flat[0]
    held = sum(
        shard.data.nbytes
        for x in jax.tree.leaves(spread.replace(key=None))
        for shard in x.addressable_shards
        if shard.device == first
    )
    table = placed(state, mesh)
    assert sum(part.device_bytes for part in table) == held
    assert sum(part.copies for part in table) == len(jax.tree.leaves(state))
    ring = next(part for part in table if part.path == "replay/rows/tokens_BS")
    assert ring.spec == P(("data", "fsdp"), None)


def test_an_axis_that_does_not_divide_is_left_out():
    mesh = planned_mesh((2, 4, 3))
    assert spec_of("a/embed/embedding", (9, 8), mesh) == P("tensor", "fsdp")
    assert spec_of("a/embed/embedding", (10, 6), mesh) == P(None, None)
    assert spec_of("rows/reward_B", (16,), mesh) == P(("data", "fsdp"))
    assert spec_of("rows/reward_B", (6,), mesh) == P("data")
    assert spec_of("layers/q/kernel", (5, 8, 3), mesh) == P(None, "fsdp", "tensor"), "stacked"
    assert spec_of("params/q/kernel", (8, 3), planned_mesh((1, 4, 1))) == P("fsdp", None)


def test_an_array_without_a_rule_is_an_error():
    with pytest.raises(ValueError, match=r"no sharding rule knows params/new/kernel"):
        spec_of("params/new/kernel", (4, 4), planned_mesh((1, 2, 1)))


def test_mesh_sizes():
    assert mesh_shape((1, -1, 1), 8) == (1, 8, 1)
    assert mesh_shape((2, -1, 2), 8) == (2, 2, 2)
    assert mesh_shape((1, 2, 1), 8) == (1, 2, 1)
    assert make_mesh((1, 1, 1)) is None
    mesh = make_mesh((1, 2, 2))
    assert mesh.shape == {"data": 1, "fsdp": 2, "tensor": 2}
    assert math.prod(planned_mesh((4, 16, 4)).shape.values()) == 256, "more than there are"
    with pytest.raises(InputError, match=r"data 1 x fsdp -1 x tensor 3: 3 does not divide 8"):
        make_mesh((1, -1, 3))
    with pytest.raises(InputError, match="needs 16 devices, there are 8"):
        make_mesh((2, 8, 1))


@pytest.mark.parametrize(
    ("changes", "sizes", "message"),
    [
        ({"micro_batch_size": 1}, (1, 4, 1), "micro_batch_size = 1: must be a multiple of 4"),
        ({"score_batch_size": 6}, (2, 2, 1), "score_batch_size = 6: must be a multiple of 4"),
        ({"evaluation__samples": 2, "evaluation__batch_size": 4}, (1, 4, 1), "a multiple of 8"),
        ({}, (1, 1, 4), "mesh.tensor = 4: must divide the model's 2 key heads"),
    ],
)
def test_what_does_not_divide_is_refused(changes, sizes, message):
    with pytest.raises(InputError, match=message) as error:
        check_sizes(make_config(**changes), POLICY.config, planned_mesh(sizes))
    assert "\n" not in str(error.value)


def test_host_arrays_go_whole_to_every_device():
    mesh = make_mesh((2, 2, 2))
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    for there in (sharding.put(x, mesh), sharding.put(x, None)):
        np.testing.assert_array_equal(there, x)
    assert sharding.put(x, mesh).sharding == sharding.whole(mesh)
