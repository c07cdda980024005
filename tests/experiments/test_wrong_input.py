"""What is wrong with config, model, problems or workdir is said before anything is written."""

import json
import shutil

import pytest

from remix_jax.errors import InputError
from remix_jax.run import loop
from tests.experiments.runs import quiet, run_main, small_config

PRESET = "experiments/configs/arithmetic_remix_ppo.py"


def test_wrong_flags_are_one_line_and_exit_code_2(tmp_path):
    workdir = f"--workdir={tmp_path / 'run'}"
    for flags, message in (
        ([f"--config={PRESET}", workdir, "--config.replay.shar=0.3"], "shar"),
        ([f"--config={PRESET}", workdir, "--config.replay.share=1.5"], "must be in [0, 1)"),
        ([f"--config={PRESET}"], "--workdir is required"),
    ):
        done = run_main(*flags)
        assert done.returncode == 2, done.stderr
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
        assert message in done.stderr
        assert "error: " in done.stderr
    assert not (tmp_path / "run").exists()


def break_model(config, directory, how):
    """A copy of the base with something wrong."""
    model = directory / "model"
    shutil.copytree(config.model.path, model)
    how(model)
    config.model.path = str(model)


def without_template(model):
    path = model / "tokenizer_config.json"
    content = json.loads(path.read_text())
    del content["chat_template"]
    path.write_text(json.dumps(content))


def cut_weights(model):
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def too_wide(config, _):
    config.data.response_tokens = 400


BAD = {
    "missing model": (lambda c, d: setattr(c.model, "path", str(d / "nowhere")), "nowhere"),
    "damaged weights": (lambda c, d: break_model(c, d, cut_weights), "model.safetensors"),
    "no chat template": (lambda c, d: break_model(c, d, without_template), "chat template"),
    "missing problems": (lambda c, d: setattr(c.data, "train", str(d / "no.jsonl")), "no.jsonl"),
    "long prompts": (lambda c, d: setattr(c.data, "prompt_tokens", 5), "over the limit of 5"),
    "group size": (lambda c, d: setattr(c, "group_size", 3), "must divide batch_size"),
    "too wide": (too_wide, "takes 256 positions"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_before_anything_is_written(case, tmp_path):
    config = small_config(tmp_path)
    change, message = BAD[case]
    change(config, tmp_path)
    with pytest.raises(InputError) as error:
        loop.run(config, tmp_path / "run", quiet(config))
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("rows", "message"),
    [("", "holds no problem"), ('{"problem": "1 + 1 ="}\n', "answer"), ('{"problem"\n', "line 1")],
)
def test_bad_problem_files_are_refused(rows, message, tmp_path):
    config = small_config(tmp_path)
    path = tmp_path / "bad.jsonl"
    path.write_text(rows)
    config.data.train = str(path)
    with pytest.raises(InputError, match=r"bad.jsonl") as error:
        loop.run(config, tmp_path / "run", quiet(config))
    assert message in str(error.value)


def test_a_directory_of_something_else_is_left_alone(tmp_path):
    config = small_config(tmp_path)
    with pytest.raises(InputError, match="not empty and holds no run"):
        loop.run(config, tmp_path, quiet(config))
    assert not (tmp_path / ".lock").exists()


def test_an_unwritable_directory_is_refused(tmp_path):
    config = small_config(tmp_path)
    with pytest.raises(InputError, match=r"--workdir=/proc/run cannot be used"):
        loop.run(config, "/proc/run", quiet(config))


def test_too_little_room_is_refused_before_compiling(tmp_path, monkeypatch):
    config = small_config(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    monkeypatch.setattr(loop, "compile_programs", None)
    with pytest.raises(InputError, match=r": 1 B are free, .* MiB are needed \(3 checkpoints of"):
        loop.run(config, tmp_path / "run", quiet(config))


def test_only_damaged_checkpoints_are_told(tmp_path, monkeypatch):
    """Not begun anew over what is there."""
    config = small_config(tmp_path)
    monkeypatch.setattr(loop, "compile_programs", lambda *_: None)
    (tmp_path / "run" / "checkpoints" / "4").mkdir(parents=True)
    from remix_jax import config as configs

    (tmp_path / "run" / "config.json").write_text(configs.to_json(config))
    console = quiet(config)
    console.event = (told := []).append
    with pytest.raises(InputError, match="all checkpoints are damaged"):
        loop.run(config, tmp_path / "run", console)
    assert len(told) == 1
    assert told[0].startswith("the checkpoint of step 4 is refused: host cannot be read (")
