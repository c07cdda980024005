"""The real experiment: what it prints and leaves, Ctrl-C, continuing, faults, wrong input."""

import dataclasses
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from remix_jax import config as configs
from remix_jax.data import grader_pool
from remix_jax.errors import InputError
from remix_jax.learner import loop, resume
from remix_jax.learner import programs as compiled
from remix_jax.learner.setup import prepare
from remix_jax.models import huggingface
from tests.experiments.runs import figures, quiet, small_config

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
PRESET = "experiments/configs/arithmetic_remix_ppo.py"
WATCHED = [
    *("reward", "accuracy", "format_rate", "truncated_rate", "response_length", "rollouts"),
    *("grader_timeout_rate", "eval/grader_timeout_rate"),
    *("tokens", "entropy", "kl_base", "kl_prev", "kl_weight", "n_fresh", "n_replayed"),
    *("ratio_mean", "ratio_max", "clip_share", "ess", "sampler_gap", "explained_variance"),
    *("loss", "loss_policy", "loss_kl", "loss_value", "grad_norm", "critic_grad_norm"),
    *("ratio_mean/age0", "ratio_max/age1", "clip_share/age0", "ess/age1", "rows/age0"),
    *("eval/chain3", "eval/chain4", "eval/mean", "eval/response_length", "validation/validation"),
    *("flops",),
]


def main(*flags, module="experiments.train"):
    """Runs an experiment's main as a user does."""
    environment = os.environ | {"XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    return subprocess.run(
        [sys.executable, "-m", module, *flags],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A whole small run, in this process: (config, workdir, compilations seen at each step)."""
    directory = tmp_path_factory.mktemp("finished")
    config, compilations = small_config(directory), {}
    count = 0
    for cached in (compiled.compile_sampler, compiled._compile_learn):
        cached.cache_clear()
    jax.clear_caches()  # another test of this process may have made these programs

    def listen(event, duration, **_):
        nonlocal count
        count += event == "/jax/core/compile/backend_compile_duration"

    jax.monitoring.register_event_duration_secs_listener(listen)
    console = quiet(config, lambda step: compilations.setdefault(step, count))
    with pytest.MonkeyPatch.context() as patch:  # arithmetic needs no algebra, so no process
        patch.setattr(grader_pool, "_Worker", None)
        outcome = loop.run(config, directory / "run", console)
    assert not outcome.stopped
    return config, directory / "run", compilations


def test_the_real_main_trains_and_leaves_everything(tmp_path):
    small = small_config(tmp_path)
    workdir = tmp_path / "run"
    flags = {
        "steps": 3, "reincarnation_step": 2, "batch_size": 16, "mini_batch_size": 8,
        "micro_batch_size": 8, "data.suites": small.data.suites, "evaluation.batch_size": 8,
    }  # fmt: skip
    overrides = [f"--config.{name}={value}" for name, value in flags.items()]
    done = main(f"--config={PRESET}", f"--workdir={workdir}", *overrides)
    assert done.returncode == 0, done.stderr
    assert "fresh rollouts, whole run" in done.stdout
    assert "3.33 expected in the mix stage (m = 2), then 1" in done.stdout
    assert "Memory of a device" in done.stdout
    assert "step 3: reincarnation" in done.stdout
    assert "held-out at step 3" in done.stdout
    assert "generated in all" in done.stdout
    assert "\x1b" not in done.stdout
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert [row["rollouts"] for row in rows] == [0, 9, 19, 35]
    assert [row.get("stage") for row in rows] == [None, "mix", "mix", "on-policy"]
    ledger = json.loads((workdir / "ledger.json").read_text())
    assert sum(fate["rows"] for fate in ledger) == 35
    assert sum(fate["share"] for fate in ledger) == pytest.approx(1)


def test_every_figure_a_practitioner_watches_is_recorded(finished):
    _, workdir, _ = finished
    rows = figures(workdir)
    assert [name for name in WATCHED if name not in rows[3]] == []
    assert "ratio_mean/age1" not in rows[1], "an age without rows has no ratio"
    assert "kl_prev" not in rows[2], "the precedent is not scored while it has no weight"
    written = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[3])
    phases = ("sample", "grade", "learn", "eval", "log")
    assert all(written[f"seconds/{phase}"] >= 0 for phase in phases)
    assert written["tokens_per_second"] > 0
    assert rows[3]["kl_weight"] == pytest.approx(0.9)
    suites = [rows[3]["eval/chain3"], rows[3]["eval/chain4"]]
    assert rows[3]["eval/mean"] == np.mean(suites), "validation problems are in no mean"
    spent = [row["flops"] for row in rows]
    assert spent[0] == 0
    assert spent == sorted(set(spent))
    assert rows[2]["n_fresh"] + rows[2]["n_replayed"] == 16
    assert rows[2]["ratio_mean/age0"] == pytest.approx(1, abs=0.05)


def test_samples_say_what_was_answered(finished):
    config, workdir, _ = finished
    samples = [json.loads(line) for line in (workdir / "samples.jsonl").read_text().splitlines()]
    assert {sample["step"] for sample in samples} == set(range(1, 7))
    for sample in samples:
        assert sample["prompt"].endswith("=")
        assert sample["reward"] == float(sample["verdict"] == "match")
        assert sample["mean_ratio"] == pytest.approx(1, abs=0.2)
    assert any("\\boxed{" in sample["response"] for sample in samples)
    assert (
        configs.planned_rollouts(config)
        == json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])["rollouts"]
    )


def test_figures_and_tensorboard_are_there(finished):
    _, workdir, _ = finished
    pictures = {path.name for path in (workdir / "figures").glob("*.png")}
    assert {
        "accuracy_rollouts.png", "accuracy_seconds.png", "response_length.png", "ratio.png",
        "kl.png", "entropy.png", "overview.png",
    } <= pictures  # fmt: skip
    assert list((workdir / "tensorboard").glob("events.*"))


def test_nothing_compiles_after_warm_up(finished):
    """Steps 3 to 6, across reincarnation, use what was compiled before.

    The first checkpoint, after step 2, compiles the copies that take the state off the device.
    """
    _, _, compilations = finished
    assert compilations[1] > 0
    assert compilations[2] == compilations[1]
    assert compilations[6] == compilations[3], compilations


def test_the_export_is_the_policy_for_torch(finished):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config, workdir, _ = finished
    model, params = huggingface.load(workdir / "export")
    before = huggingface.load(config.model.path)[1]
    moved = jax.tree.map(lambda a, b: float(abs(a - b).max()), params, before)
    assert max(jax.tree.leaves(moved)) > 1e-5
    tokens = np.array([[50, 17, 23, 34, 40, 41]])
    peer = transformers.AutoModelForCausalLM.from_pretrained(workdir / "export")
    with torch.no_grad():
        expected = peer(torch.tensor(tokens)).logits.numpy()
    ones = np.ones_like(tokens)
    logits = model.apply({"params": params}, tokens, np.cumsum(ones, axis=1) - 1, ones)
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    tokenizer = huggingface.load_tokenizer(workdir / "export")
    assert tokenizer.chat_template


def test_interrupted_and_continued_is_uninterrupted(finished, tmp_path):
    """Ctrl-C in step 2, then again in step 5 (after reincarnation); bitwise the same run.

    The figures of a step are written while the next one learns.
    """
    config, whole, _ = finished
    shutil.copytree(pathlib.Path(config.data.suites[0]).parent, tmp_path / "s", dirs_exist_ok=True)
    workdir = tmp_path / "run"

    def interrupt_at(wanted):
        return lambda step: os.kill(os.getpid(), signal.SIGINT) if step == wanted else None

    for at in (1, 4):
        outcome = loop.run(config, workdir, quiet(config, interrupt_at(at)))
        assert outcome.stopped
        assert (workdir / "export" / "model.safetensors").exists()
        assert (workdir / "ledger.json").exists()
    assert not loop.run(config, workdir, quiet(config)).stopped
    assert figures(workdir) == figures(whole)
    same = (workdir / "samples.jsonl").read_text() == (whole / "samples.jsonl").read_text()
    assert same
    for name in ("export/model.safetensors", "ledger.json"):
        assert (workdir / name).read_bytes() == (whole / name).read_bytes()


def test_a_checkpoint_holds_the_places_and_knows_its_training_set(finished):
    config, workdir, _ = finished
    saved = json.loads((workdir / "checkpoints" / "6" / "host.json").read_text())
    taken, known = configs.planned_rollouts(config), saved["problems"]["count"]
    assert saved["cursor"] == {"seed": 0, "epoch": taken // known, "position": taken % known}
    assert saved["places"] == {
        name: (workdir / name).stat().st_size for name in ("metrics.jsonl", "samples.jsonl")
    }
    assert saved["config"] == json.loads((workdir / "config.json").read_text())
    assert saved["step"] == 6
    setup, told = prepare(config), []
    assert resume.identity(setup).items() <= saved.items()
    resume._check(setup, 6, saved, told.append)
    assert told == []
    elsewhere = saved | {"made_with": saved["made_with"] | {"jax": "0.9"}}
    resume._check(setup, 6, elsewhere, told.append)
    assert "jax was 0.9" in told[0]
    others = setup.train._replace(prompts=[*setup.train.prompts[:-1], [1, 2]])
    with pytest.raises(InputError, match=rf"train\.jsonl: these are not the {known:,} training"):
        resume._check(setup._replace(train=others), 6, saved, told.append)
    config = dataclasses.replace(config, steps=5)
    with pytest.raises(InputError, match=r"steps = 5: the run has done 6"):
        resume._check(setup._replace(config=config), 6, saved, told.append)


def test_grpo_runs_on_the_same_learner(tmp_path):
    config = small_config(tmp_path, grpo=True)
    loop.run(config, tmp_path / "run", quiet(config))
    rows = figures(tmp_path / "run")
    assert "loss_value" not in rows[1]
    assert rows[-1]["rollouts"] == configs.planned_rollouts(config)
    assert (
        sum(f["rows"] for f in json.loads((tmp_path / "run" / "ledger.json").read_text()))
        == (rows[-1]["rollouts"])
    )


def test_a_fault_names_the_tensor_and_saves_the_last_good_state(tmp_path):
    config = small_config(tmp_path)
    config.optimizer.learning_rate = 1e30
    with pytest.raises(loop.FaultError, match=r"step \d: .*not finite.*last good state"):
        loop.run(config, tmp_path / "run", quiet(config))
    _, params = huggingface.load(tmp_path / "run" / "export")
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(params))
    assert list((tmp_path / "run" / "checkpoints").iterdir())
    assert figures(tmp_path / "run")[-1]["step"] >= 1


def test_wrong_flags_are_one_line_and_exit_code_2(tmp_path):
    workdir = f"--workdir={tmp_path / 'run'}"
    for flags, message in (
        ([f"--config={PRESET}", workdir, "--config.replay.shar=0.3"], "shar"),
        ([f"--config={PRESET}", workdir, "--config.replay.share=1.5"], "must be in [0, 1)"),
        ([f"--config={PRESET}"], "--workdir is required"),
    ):
        done = main(*flags)
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


BAD = {
    "missing model": (lambda c, d: setattr(c.model, "path", str(d / "nowhere")), "nowhere"),
    "damaged weights": (lambda c, d: break_model(c, d, cut_weights), "model.safetensors"),
    "no chat template": (lambda c, d: break_model(c, d, without_template), "chat template"),
    "missing problems": (lambda c, d: setattr(c.data, "train", str(d / "no.jsonl")), "no.jsonl"),
    "long prompts": (lambda c, d: setattr(c.data, "prompt_tokens", 5), "over the limit of 5"),
    "group size": (lambda c, d: setattr(c, "group_size", 3), "must divide batch_size"),
    "too wide": (lambda c, d: setattr(c.data, "response_tokens", 400), "takes 256 positions"),
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


def test_another_run_is_not_written_over(finished):
    config, workdir, _ = finished
    before = (workdir / "metrics.jsonl").read_bytes()
    changed = small_config(workdir.parent)
    changed.replay.share = 0.3
    with pytest.raises(InputError, match=r"differs in config\.replay\.share \(0\.4, now 0\.3\)"):
        loop.run(changed, workdir, quiet(changed))
    assert (workdir / "metrics.jsonl").read_bytes() == before
    assert config.replay.share == 0.4


def test_a_directory_of_something_else_is_left_alone(tmp_path):
    config = small_config(tmp_path)
    with pytest.raises(InputError, match="not empty and holds no run"):
        loop.run(config, tmp_path, quiet(config))
