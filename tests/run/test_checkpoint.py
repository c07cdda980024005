"""Checkpoints: what is restored, what survives damage, what stays, what a full disk does."""

import functools
import pathlib
import resource
import shutil
import signal

import jax
import numpy as np
import pytest

from remix_jax import sharding
from remix_jax.errors import InputError
from remix_jax.run import checkpoint
from remix_jax.run.checkpoint import Checkpoints, check_room
from tests.learner.tiny import host, make_config, start


@pytest.fixture(scope="module")
def trained():
    """(the values of a state as NumPy, a function that makes the state of them)."""
    _, state = start(make_config(optimizer__name="muon"))
    rng = np.random.default_rng(0)

    def filled(x):
        if x.dtype == np.float32:
            return rng.normal(size=x.shape).astype(np.float32)
        return rng.integers(0, 2, x.shape).astype(x.dtype)

    values = jax.tree.map(filled, host(state))

    def anew():
        arrays = jax.tree.map(jax.numpy.array, values)
        return arrays.replace(key=jax.random.wrap_key_data(jax.numpy.array(values.key)))

    return values, anew


@functools.partial(jax.jit, donate_argnums=0)
def overwrite(state):
    """As a step does: new values in the buffers of the old ones."""
    return jax.tree.map(lambda x: x + 1 if x.dtype == np.float32 else x, state)


def buffers(state):
    """Where its floats lie in memory."""
    leaves = (x for x in jax.tree.leaves(state) if x.dtype == np.float32)
    return {x.unsafe_buffer_pointer() for x in leaves}


def abstract(state):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def assert_same(state, values):
    jax.tree.map(np.testing.assert_array_equal, host(state), values)


def restored(checkpoints, like, log=pytest.fail):
    """(step, state, host) of what is restored."""
    steps = []
    state, host_part = checkpoints.restore(like, lambda step, _: steps.append(step), log)
    return steps[-1], state, host_part


def steps(directory):
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdecimal())


def test_what_is_saved_is_the_state_of_that_moment(trained, tmp_path):
    """The next steps donate the buffers and reuse them while the files are being written."""
    values, anew = trained
    state = anew()
    like = abstract(state)
    with Checkpoints(tmp_path / "c", keep=1) as saved:
        written, write = [], saved._manager.save
        saved._manager.save = lambda step, args, force: (
            written.append(args["state"].item),
            write(step, args=args, force=force),
        )
        buffers_before = buffers(state)
        saved.save(3, state, {"a": [1.5]})
        state = overwrite(overwrite(state))
        assert buffers(state) & buffers_before, "in place, or this test proves nothing"
        assert not buffers(written[0]) & buffers_before
        saved.wait()
        step, state, found = restored(saved, like)
        assert (step, found) == (3, {"a": [1.5]})
        assert_same(state, values)


def test_the_newest_and_every_nth_stay(trained, tmp_path):
    _, anew = trained
    state = anew()
    with Checkpoints(tmp_path / "c", keep=2, keep_every=4) as saved:
        for step in (2, 4, 5, 6, 8, 9):
            saved.save(step, state, {})
        saved.wait()
        assert saved.newest_step() == 9
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["4", "8", "9"]


def remove(path):
    path.unlink()


def cut_short(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])


def flip(path):
    """Bits here and there: much of these files is of versions that nothing reads any more."""
    data = bytearray(path.read_bytes())
    for i in range(0, len(data), 200):
        data[i] ^= 1
    path.write_bytes(data)


def edit(path):
    path.write_text(path.read_text().replace("at", "it"))


DAMAGES = {
    "missing arrays": ("state/**/d/*", remove, "state"),
    "truncated arrays": ("state/**/d/*", cut_short, "state"),
    "flipped bits": ("state/**/d/*", flip, "state"),
    "flipped bits of the index": ("state/manifest.ocdbt", flip, "state cannot be read"),
    "bad JSON": ("host/metadata", lambda path: path.write_text('{"a": '), "host cannot be read"),
    "other JSON": ("host/metadata", edit, "host cannot be read (it has other content"),
    "no host part": ("host/metadata", remove, "host cannot be read"),
}


@pytest.fixture(scope="module")
def two(trained, tmp_path_factory):
    """Checkpoints of steps 3 and 4: (directory, the values in them)."""
    _, anew = trained
    directory = tmp_path_factory.mktemp("two")
    later = anew().replace(step=jax.numpy.asarray(4, jax.numpy.int32))
    with Checkpoints(directory, keep=2) as saved:
        saved.save(3, anew(), {"at": 3})
        saved.save(4, later, {"at": 4})
    return directory


@pytest.mark.parametrize("case", DAMAGES)
def test_a_damaged_checkpoint_is_refused_with_the_reason(case, two, trained, tmp_path):
    values, anew = trained
    like, (pattern, harm, reason) = abstract(anew()), DAMAGES[case]
    shutil.copytree(two, tmp_path / "c")
    for path in (tmp_path / "c" / "4").glob(pattern):
        harm(path)
    logged = []
    with Checkpoints(tmp_path / "c", keep=2) as saved:
        step, state, found = restored(saved, like, logged.append)
        assert (step, found) == (3, {"at": 3})
        assert len(logged) == 1
        assert logged[0].startswith("the checkpoint of step 4 is refused: ")
        assert reason in logged[0]
        assert "\n" not in logged[0]
        assert restored(saved, like)[0] == 3, "it is logged once"
        assert_same(state, values)
        saved.save(4, anew(), {"at": 44})
        saved.wait()
        assert restored(saved, like)[2] == {"at": 44}, "a good one takes its place"
        assert (tmp_path / "c" / "refused-4").is_dir()


def test_any_change_of_any_array_is_seen(trained):
    """One bit, two elements exchanged, and the sign of a zero change the sums of their array."""
    _, anew = trained
    state = anew()
    before = checkpoint.sums(state)
    assert before == checkpoint.sums(anew())
    name = "params/layers_0/up/kernel"
    kernel = state.params["layers_0"]["up"]["kernel"]
    bits = jax.lax.bitcast_convert_type(kernel, np.uint32)
    exchanged = kernel.at[0, 0].set(kernel[1, 2]).at[1, 2].set(kernel[0, 0])
    zero = kernel.at[0, 0].set(0.0)
    for old, new in (
        (kernel, jax.lax.bitcast_convert_type(bits.at[3, 1].set(bits[3, 1] ^ 1), np.float32)),
        (kernel, exchanged),
        (zero, kernel.at[0, 0].set(-0.0)),
    ):
        state.params["layers_0"]["up"]["kernel"] = old
        before = checkpoint.sums(state)
        state.params["layers_0"]["up"]["kernel"] = new
        after = checkpoint.sums(state)
        assert [key for key in after if after[key] != before[key]] == [name]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "bool", "uint8"])
def test_sums_are_the_same_by_numpy_and_by_devices_however_an_array_is_divided(dtype, monkeypatch):
    monkeypatch.setattr(checkpoint, "_CHUNK", 100)
    x = np.random.default_rng(0).integers(0, 200, (16, 24)).astype(dtype)
    wanted = checkpoint.host_sums(x)
    assert checkpoint.device_sums(jax.numpy.asarray(x)).tolist() == wanted
    mesh = sharding.make_mesh((2, 4, 1))
    for spec in (("data", "fsdp"), ("fsdp", None), (None, "data")):
        where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
        assert checkpoint.device_sums(jax.device_put(x, where)).tolist() == wanted


def test_all_damaged_is_an_error(two, trained, tmp_path):
    shutil.copytree(two, tmp_path / "c")
    for path in (tmp_path / "c").glob("*/host/metadata"):
        path.unlink()
    logged = []
    with (
        Checkpoints(tmp_path / "c", keep=2) as saved,
        pytest.raises(InputError, match=r"all checkpoints are damaged \(2 refused\)"),
    ):
        saved.restore(abstract(trained[1]()), lambda *_: None, logged.append)
    assert len(logged) == 2


def test_a_killed_save_leaves_no_checkpoint_and_no_rest(two, trained, tmp_path):
    shutil.copytree(two, tmp_path / "c")
    (tmp_path / "c" / "4").rename(tmp_path / "c" / "4.orbax-checkpoint-tmp")
    with Checkpoints(tmp_path / "c", keep=2) as saved:
        assert restored(saved, abstract(trained[1]()))[0] == 3
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["3"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # orbax gave up
def test_a_full_disk_leaves_the_last_good_state(two, trained, tmp_path):
    values, anew = trained
    shutil.copytree(two, tmp_path / "c")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with Checkpoints(tmp_path / "c", keep=2) as saved:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
            saved.save(5, anew(), {})
            saved.wait()
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            assert "the checkpoint of step 5 could not be written" in saved.error
            assert "the last good one is of step 4" in saved.error
            assert "\n" not in saved.error
            assert sorted(p.name for p in (tmp_path / "c").iterdir()) == ["3", "4"]
            saved.save(6, anew(), {})  # there is room again
            saved.wait()
            assert saved.error is None
            step, state, _ = restored(saved, abstract(anew()))
            assert step == 6
            assert_same(state, values)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_room_is_asked_for_before_training(tmp_path, monkeypatch):
    check_room(tmp_path / "c", 1000, 1000, keep=2)
    assert list((tmp_path / "c").iterdir()) == []
    with pytest.raises(InputError, match=r"GiB are needed \(3 checkpoints of 1,024.0 GiB"):
        check_room(tmp_path / "c", 2**40, 0, keep=2)
    (tmp_path / "c" / "5").mkdir()
    with pytest.raises(InputError, match=r"2 checkpoints of"):
        check_room(tmp_path / "c", 2**40, 0, keep=2)
    with pytest.raises(InputError, match="/proc/nowhere/checkpoints cannot be written"):
        check_room(pathlib.Path("/proc/nowhere/checkpoints"), 1, 1, keep=2)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        check_room(tmp_path / "file" / "checkpoints", 1, 1, keep=2)

    def read_only(path, text):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(pathlib.Path, "write_text", read_only)
    with pytest.raises(InputError, match=r"cannot be written \(Read-only file system\)"):
        check_room(tmp_path / "c", 1000, 1000, keep=2)


MESHES = {"fsdp": (1, 8, 1), "tensor": (1, 1, 2)}


def on_mesh(state, wanted):
    mesh = sharding.make_mesh(wanted)
    where = sharding.shardings(state, mesh)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, where
    )


def test_a_checkpoint_of_one_mesh_continues_on_another(trained, tmp_path):
    """1 device -> 8 by fsdp -> tensor -> 1: equal to the bit, and placed by the rules."""
    values, anew = trained
    state = anew()
    one = abstract(state)
    with Checkpoints(tmp_path / "c", keep=9) as saved:
        for step, wanted in enumerate((*MESHES.values(), None)):
            saved.save(step, state, {})
            saved.wait()
            like = one if wanted is None else on_mesh(state, wanted)
            _, state, _ = restored(saved, like)
            assert_same(state, values)
            jax.tree.map(lambda x, w: x.sharding == w.sharding or pytest.fail(str(x)), state, like)
            if wanted == MESHES["fsdp"]:
                assert len(state.params["layers_0"]["up"]["kernel"].sharding.device_set) == 8
                mu = state.opt_state[1].inner_states["muon"].inner_state[0].mu
                assert not mu["layers_0"]["up"]["kernel"].is_fully_replicated


def test_other_arrays_are_refused_in_one_line(two, trained):
    _, anew = trained
    like = abstract(anew())
    with Checkpoints(two, keep=2) as saved:
        step = jax.ShapeDtypeStruct((3,), np.int32, sharding=like.step.sharding)
        for other in (like.replace(step=step), like.replace(prev_params=None)):
            with pytest.raises(InputError, match="4 does not fit this run's state") as error:
                restored(saved, other)
            assert "\n" not in str(error.value)
        assert restored(saved, like)[0] == 4, "which is no damage"
