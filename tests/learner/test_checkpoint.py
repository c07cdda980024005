"""Checkpoints: what is restored, what survives damage, what stays, what a full disk does."""

import functools
import json
import pathlib
import resource
import shutil
import signal
import time

import jax
import numpy as np
import pytest

from remix_jax import sharding
from remix_jax.errors import InputError
from remix_jax.run import checkpoint
from remix_jax.run.checkpoint import Checkpoints, check_room, damage, steps
from tests.learner.tiny import host, make_config, start


@pytest.fixture(scope="module")
def trained():
    """(the values of a state as NumPy, a function that makes the state of them)."""
    _, state = start(make_config())
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


def test_what_is_saved_is_the_state_of_that_moment(trained, tmp_path):
    """The next steps donate the buffers and reuse them while the files are being written."""
    values, anew = trained
    state = anew()
    like = abstract(state)
    with Checkpoints(tmp_path / "c", keep=1) as saved:
        written, write = [], saved._orbax.save
        saved._orbax.save = lambda path, args: (written.append(args.item), write(path, args=args))
        places = buffers(state)
        saved.save(3, state, {"a": [1.5]})
        state = overwrite(overwrite(state))
        assert buffers(state) & places, "in place, or this test proves nothing"
        assert not buffers(written[0]) & places
        saved.wait()
        assert saved.newest(pytest.fail) == (3, {"a": [1.5]})
        assert_same(saved.restore(3, like), values)


def test_a_save_takes_as_long_as_a_copy(trained, tmp_path, monkeypatch):
    _, anew = trained
    at_once = checkpoint.write_durably

    def slowly(path, text):
        time.sleep(2)
        at_once(path, text)

    monkeypatch.setattr(checkpoint, "write_durably", slowly)
    with Checkpoints(tmp_path / "c", keep=1) as saved:
        saved.save(3, anew(), {})
        returned = time.perf_counter()
        assert steps(tmp_path / "c") == []
        saved.wait()
        assert time.perf_counter() - returned > 1
        assert steps(tmp_path / "c") == [3]


def test_the_newest_and_every_nth_stay(trained, tmp_path):
    _, anew = trained
    state = anew()
    with Checkpoints(tmp_path / "c", keep=2, keep_every=4) as saved:
        for step in (2, 4, 5, 6, 8, 9):
            saved.save(step, state, {})
        saved.wait()
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["4", "8", "9"]


def remove(path):
    path.unlink()


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "a missing array": ("state/**/d/*", remove, "cannot be read (No such file"),
    "a truncated array": ("state/**/d/*", cut_short, "bytes, not"),
    "a flipped bit": ("state/**/d/*", flip, "other content"),
    "bad JSON": ("host.json", lambda path: path.write_text('{"a": '), "host.json has"),
    "no manifest": ("manifest.json", remove, "manifest.json cannot be read (No such file"),
    "a bad manifest": ("manifest.json", lambda path: path.write_text("[1]"), "cannot be read"),
    "another format": (
        "manifest.json",
        lambda p: p.write_text('{"format":0,"files":{}}'),
        "another",
    ),
    "half a manifest": ("manifest.json", cut_short, "manifest.json cannot be read"),
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
    pattern, harm, reason = DAMAGES[case]
    shutil.copytree(two, tmp_path / "c")
    assert damage(tmp_path / "c" / "4") is None
    harm(max((tmp_path / "c" / "4").glob(pattern), key=lambda path: path.stat().st_size))
    told = []
    with Checkpoints(tmp_path / "c", keep=2) as saved:
        assert saved.newest(told.append) == (3, {"at": 3})
        assert len(told) == 1
        assert told[0].startswith("the checkpoint of step 4 is refused: ")
        assert reason in told[0]
        assert saved.newest(pytest.fail) == (3, {"at": 3}), "it is told once"
        if case == "a flipped bit":
            values, anew = trained
            assert_same(saved.restore(3, abstract(anew())), values)
            saved.save(4, anew(), {"at": 44})
            saved.wait()
            assert saved.newest(pytest.fail) == (4, {"at": 44}), "a good one takes its place"
        (tmp_path / "c" / "3" / "host.json").unlink()
        if case != "a flipped bit":
            with pytest.raises(InputError, match=r"all checkpoints are damaged \(1 refused\)"):
                saved.newest(told.append)


def test_a_killed_save_leaves_no_checkpoint_and_no_rest(two, tmp_path):
    shutil.copytree(two, tmp_path / "c")
    shutil.copytree(tmp_path / "c" / "4", tmp_path / "c" / "writing-5")
    (tmp_path / "c" / "4").rename(tmp_path / "c" / "deleting-4")
    with Checkpoints(tmp_path / "c", keep=2) as saved:
        assert saved.newest(pytest.fail) == (3, {"at": 3})
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
            assert "the checkpoint of step 5 could not be written" in saved.trouble
            assert "the last good one is of step 4" in saved.trouble
            assert "\n" not in saved.trouble
            assert sorted(p.name for p in (tmp_path / "c").iterdir()) == ["3", "4"]
            saved.save(6, anew(), {})  # there is room again
            saved.wait()
            assert saved.trouble is None
            assert_same(saved.restore(6, abstract(anew())), values)
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

    monkeypatch.setattr(checkpoint, "write_durably", read_only)
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
            state = saved.restore(step, like)
            assert_same(state, values)
            jax.tree.map(lambda x, w: x.sharding == w.sharding or pytest.fail(str(x)), state, like)
            if wanted == MESHES["fsdp"]:
                assert len(state.params["layers_0"]["up"]["kernel"].sharding.device_set) == 8
                assert not state.opt_state[0].mu["layers_0"]["up"]["kernel"].is_fully_replicated


def test_other_arrays_are_refused_in_one_line(two, trained):
    _, anew = trained
    like = abstract(anew())
    with Checkpoints(two, keep=2) as saved:
        step = jax.ShapeDtypeStruct((3,), np.int32, sharding=like.step.sharding)
        for other in (like.replace(step=step), like.replace(prev_params=None)):
            with pytest.raises(InputError, match="does not fit this run's state") as error:
                saved.restore(4, other)
            assert "\n" not in str(error.value)
    assert json.loads((two / "4" / "host.json").read_text()) == {"at": 4}
