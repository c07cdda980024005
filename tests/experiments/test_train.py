"""The real experiment: what it prints and leaves, Ctrl-C, continuing, faults, wrong input."""

import dataclasses
import json
import os
import pathlib
import random
import resource
import shutil
import signal
import time

import jax
import numpy as np
import pytest

from experiments import kills, main
from math_grader import pool as grader_pool
from math_grader import verdicts as grading
from remix_jax import schedule
from remix_jax.errors import InputError
from remix_jax.learner.step import compile_learn
from remix_jax.models import hf_tokenizer, huggingface
from remix_jax.rollout import sampler
from remix_jax.run import loop, resume, stop
from remix_jax.run.checkpoint import Checkpoints
from remix_jax.run.setup import prepare
from tests.experiments.runs import SMALL, as_flags, figures, quiet, run_main, small_config

PRESET = "experiments/configs/arithmetic_remix_ppo.py"
WATCHED = [
    *("reward", "accuracy", "format_rate", "truncated_rate", "response_length", "rollouts"),
    *("grader_timeout_rate", "eval/grader_timeout_rate"),
    *("tokens", "entropy", "kl_base", "kl_prev", "kl_weight", "n_fresh", "n_replayed"),
    *(
        "ratio_mean",
        "ratio_max",
        "clip_share",
        "ess",
        "sampler_gap",
        "truncation_gap",
        "explained_variance",
    ),
    *("loss", "loss_policy", "loss_kl", "loss_value", "grad_norm", "critic_grad_norm"),
    *("ratio_mean/age0", "ratio_max/age1", "clip_share/age0", "ess/age1", "rows/age0"),
    *("eval/chain3", "eval/chain4", "eval/mean", "eval/response_length", "validation/validation"),
    *("flops",),
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A whole small run, in this process: (config, workdir, compilations seen at each step)."""
    directory = tmp_path_factory.mktemp("finished")
    config, compilations = small_config(directory), {}
    count = 0
    for cached in (sampler.compiled, compile_learn):
        cached.cache_clear()
    jax.clear_caches()  # another test of this process may have made these programs

    def listen(event, duration, **_):
        nonlocal count
        count += event == "/jax/core/compile/backend_compile_duration"

    jax.monitoring.register_event_duration_secs_listener(listen)
    console = quiet(config, lambda step: compilations.setdefault(step, count))
    with pytest.MonkeyPatch.context() as patch:  # arithmetic needs no algebra, so no process
        patch.setattr(grader_pool, "_Worker", None)
        patch.setattr(grading, "process_pool", grader_pool.GraderPool)  # none that has some already
        outcome = loop.run(config, directory / "run", console, profile=(2, 2))
    assert not outcome.stopped
    return config, directory / "run", compilations


def test_the_real_main_trains_and_leaves_everything(tmp_path):
    config, workdir = small_config(tmp_path), tmp_path / "run"
    config.steps, config.reincarnation_step = 3, 2
    changed = as_flags(config, *SMALL)
    done = run_main(f"--config={PRESET}", f"--workdir={workdir}", *changed)
    assert done.returncode == 0, done.stderr
    assert "fresh rollouts, whole run" in done.stdout
    assert "3.33 expected in the mix stage (m = 2), then 1" in done.stdout
    assert "Memory of a device" in done.stdout
    assert "step 3: reincarnation" in done.stdout
    assert "held-out at step 3" in done.stdout
    assert "generated in all" in done.stdout
    end = f"the policy (export), ledger.json and report.html are in {workdir}\n"
    assert done.stdout.endswith(end)
    report = (workdir / "report.html").read_text().partition('id="data">')[2]
    (shown,) = json.loads(report.partition("</script>")[0])["runs"]
    assert shown["steps"] == [0, 1, 2, 3]
    assert shown["ledger"] == json.loads((workdir / "ledger.json").read_text())
    assert shown["preset"]["name"] == "arithmetic_remix_ppo.py"
    assert ["steps", 76, 3] in shown["preset"]["changed"]
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
    held_out = [(sample["step"], sample.get("held_out")) for sample in samples]
    assert set(held_out) >= {(step, set_) for step in range(7) for set_ in ("chain3", "chain4")}
    training = [sample for sample in samples if "held_out" not in sample]
    assert {sample["step"] for sample in training} == set(range(1, 7))
    assert {sample["age"] for sample in training if sample["step"] == 3} == {0, 1, 2}
    for sample in samples:
        assert sample["problem"].endswith("=")
        assert sample["prompt"].startswith("<|user|>")
        assert len(sample["answers"]) == 1
    for sample in training:
        assert sample["mean_ratio"] == pytest.approx(1, abs=0.2)
        assert "".join(sample["tokens"]["text"]).startswith(sample["response"].rstrip())
        lengths = {len(numbers) for numbers in sample["tokens"].values()}
        assert lengths == {sample["response_length"]}
        if sample["age"] == 0:
            assert sample["parts"] == {"math": sample["reward"]}
            assert sample["reward"] == float(sample["verdict"] == "match")
    assert any("\\boxed{" in sample["response"] for sample in samples)
    assert (
        schedule.planned_rollouts(config)
        == json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])["rollouts"]
    )


def test_tensorboard_and_the_trace_are_there(finished):
    _, workdir, _ = finished
    assert list((workdir / "tensorboard").glob("events.*"))
    assert len(list((workdir / "profile").rglob("*.xplane.pb"))) == 1


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
    tokenizer = hf_tokenizer.load_tokenizer(workdir / "export")
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


def in_program(calls, at):
    """A stand-in for `stop._ready` that sends SIGTERM while the n-th program is waited for."""

    def ready(tree):
        calls.append(None)
        if len(calls) == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return len(calls) != at

    return ready


def test_preempted_and_continued_is_uninterrupted(finished, tmp_path, monkeypatch):
    """SIGTERM in the first evaluation; in sampling of step 2; in the evaluation of step 4, right
    after reincarnation, whose row is not written yet; in learning of step 6."""
    config, whole, _ = finished
    workdir, saved = tmp_path / "run", []
    batches = 1  # the 12 problems of an evaluation fill one
    for at in (1, 2 + batches + 1, 2 + batches + 1 + 1, None):
        with monkeypatch.context() as patch:
            if at is not None:
                patch.setattr(stop, "_ready", in_program([], at))
            send = lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 5 else None  # noqa: E731
            outcome = loop.run(config, workdir, quiet(config, send if at is None else None))
        assert outcome.stopped
        assert outcome.preempted
        assert not (workdir / "export").exists()
        places = workdir / "checkpoints"
        saved.append(max((int(path.name) for path in places.iterdir()), default=0))
    assert saved == [0, 1, 3, 6]
    outcome = loop.run(config, workdir, quiet(config))
    assert not outcome.stopped
    assert not outcome.preempted
    assert figures(workdir) == figures(whole)
    assert (workdir / "samples.jsonl").read_bytes() == (whole / "samples.jsonl").read_bytes()
    for name in ("export/model.safetensors", "ledger.json"):
        assert (workdir / name).read_bytes() == (whole / name).read_bytes()


def test_killed_and_continued_is_uninterrupted(finished, tmp_path):
    """SIGKILL while a checkpoint is written; in every other phase: experiments.kill_test."""
    config, whole, _ = finished
    context, workdir, log = kills.server(), tmp_path / "run", tmp_path / "log"
    kill = kills.Kill("save", 1, random.uniform(0, 0.3))
    ended = kills.attempt(context, config, workdir, log, kill)
    assert ended.phase is not None, "it was killed"
    assert ended.saved < 6
    assert not loop.run(config, workdir, quiet(config)).stopped
    assert kills.differences(config, whole, workdir) == []
    # The comparison sees what it should see.
    shutil.rmtree(workdir / "checkpoints" / "6")
    text = (workdir / "metrics.jsonl").read_text()
    (workdir / "metrics.jsonl").write_text(text.replace('"stage": "mix"', '"stage": "mux"'))
    found = set(kills.differences(config, whole, workdir))
    assert {"metrics.jsonl", "step", "cursor", "params/embed/embedding", "replay/cursor"} <= found


def test_preemption_is_an_exit_code_of_its_own():
    main.leave(loop.Outcome([], stopped=True, preempted=False))
    with pytest.raises(SystemExit) as ended:
        main.leave(loop.Outcome([], stopped=True, preempted=True))
    assert ended.value.code == 75


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # orbax gave up
def test_a_disk_that_is_full_for_a_while_changes_nothing(finished, tmp_path):
    """After step 3 and until step 5 no file can grow; the run goes on and catches up."""
    config, whole, _ = finished
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    console = quiet(config)
    write, told, seen = console.write, [], []
    console.event = told.append

    def fill(step, metrics):
        write(step, metrics)
        if step == 5:
            seen.extend(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
        while step == 3 and not (tmp_path / "run" / "checkpoints" / "2").exists():
            time.sleep(0.01)  # a thread is writing it
        limit = 100 if step in (3, 4) else before[0]
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))

    console.write = fill
    try:
        assert not loop.run(config, tmp_path / "run", console).stopped
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    troubles = [line for line in told if "File too large" in line or "could not" in line]
    full = f"File too large: {tmp_path / 'run' / 'metrics.jsonl'}"
    assert full in troubles, told
    assert any("checkpoint of step 4 could not be written" in line for line in troubles), told
    assert seen == ["2"]
    assert figures(tmp_path / "run") == figures(whole)
    same = (tmp_path / "run" / "samples.jsonl").read_bytes()
    assert same == (whole / "samples.jsonl").read_bytes()


def test_what_may_change_may_and_the_rest_is_named(finished):
    config, workdir, _ = finished
    saved = json.loads((workdir / "config.json").read_text())
    changed = dataclasses.replace(
        config,
        steps=9,
        checkpoint_every=5,
        evaluation=dataclasses.replace(config.evaluation, every=3),
        data=dataclasses.replace(config.data, suites=config.data.suites[:1]),
    )
    allowed = ["checkpoint_every", "data.suites", "evaluation.every", "steps"]
    assert resume.changes(saved, changed, workdir) == allowed
    changed = dataclasses.replace(changed, seed=1, passes=3)
    with pytest.raises(
        InputError, match=r"config\.passes \(2, now 3\), config\.seed \(0, now 1\):"
    ):
        resume.changes(saved, changed, workdir)
    with pytest.raises(InputError, match=r"steps = 2: .* precedent anchor"):
        resume.changes(saved, dataclasses.replace(config, steps=2), workdir)


def test_a_longer_run_continues_a_finished_one(finished, tmp_path):
    config, whole, _ = finished
    shutil.copytree(whole, tmp_path / "run")
    longer = dataclasses.replace(config, steps=7, samples_per_step=1)
    console = quiet(longer)
    console.event = (told := []).append
    shutil.rmtree(tmp_path / "run" / "profile")
    loop.run(longer, tmp_path / "run", console, profile=(7, 2))
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb")), "cut short by the run's end"
    assert "the trace is in profile/ of the run" in told
    assert "changed since the checkpoint: config.samples_per_step, config.steps" in told
    assert figures(tmp_path / "run")[:7] == figures(whole)
    assert figures(tmp_path / "run")[-1]["step"] == 7
    assert json.loads((tmp_path / "run" / "config.json").read_text())["steps"] == 7


def test_one_process_at_a_time(finished):
    config, workdir, _ = finished
    before = (workdir / "metrics.jsonl").read_bytes()
    with (
        resume.claimed(workdir, config),
        pytest.raises(InputError, match="another process works on this run"),
    ):
        loop.run(config, workdir, quiet(config))
    assert (workdir / "metrics.jsonl").read_bytes() == before


def test_a_checkpoint_knows_its_config_and_its_training_set(finished):
    config, workdir, _ = finished
    with Checkpoints(workdir / "checkpoints", keep=9) as checkpoints:
        saved = checkpoints._host(6)["host"]
    taken, known = schedule.planned_rollouts(config), saved["problems"]["count"]
    assert saved["cursor"] == {"seed": 0, "epoch": taken // known, "position": taken % known}
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


def test_after_a_fault_the_run_goes_on_from_the_last_good_state_with_another_rate(tmp_path):
    """Steps 1 to 3 are good and saved; step 4 is not finite, however often it is tried."""
    config, workdir = small_config(tmp_path), tmp_path / "run"
    config.checkpoint_every, config.keep_checkpoints = 1, 1
    config.steps = 3
    loop.run(config, workdir, quiet(config))
    metrics = (workdir / "metrics.jsonl").read_bytes()
    broken = dataclasses.replace(config, steps=5)
    broken.optimizer = dataclasses.replace(config.optimizer, learning_rate=1e14)
    for _ in range(2):
        with pytest.raises(loop.FaultError, match=r"^step [45]: .*not finite.* good$") as fault:
            loop.run(broken, workdir, quiet(config))
        assert fault.value.override.endswith("optimizer.learning_rate=5e+13")
        kept = [path.name for path in (workdir / "checkpoints").iterdir()]
        assert kept == [str(fault.value.good_step)]
    assert (workdir / "metrics.jsonl").read_bytes().startswith(metrics)
    console, told = quiet(config), []
    console.event = told.append
    better = dataclasses.replace(config, steps=5)
    assert not loop.run(better, workdir, console).stopped
    assert {"changed since the checkpoint: config.steps", "continuing after step 3"} <= set(told)
    assert [row["step"] for row in figures(workdir)] == [0, 1, 2, 3, 4, 5]
    _, params = huggingface.load(workdir / "export")
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(params))


def test_a_changed_learning_rate_is_the_one_that_is_used(tmp_path):
    config, workdir = small_config(tmp_path), tmp_path / "run"
    config.steps = 3
    loop.run(config, workdir, quiet(config), artifacts=False)
    config = dataclasses.replace(config, steps=4)
    config.optimizer = dataclasses.replace(config.optimizer, learning_rate=1e-30)
    config.critic = dataclasses.replace(
        config.critic, optimizer=dataclasses.replace(config.critic.optimizer, learning_rate=0.5)
    )
    loop.run(config, workdir, quiet(config), artifacts=False)
    like = resume.abstract(prepare(config).state)
    with Checkpoints(workdir / "checkpoints", keep=9) as saved:
        newest, _ = saved.restore(like, lambda *_: None, pytest.fail)
        shutil.rmtree(workdir / "checkpoints" / "4")
        saved._manager.reload()
        before, _ = saved.restore(like, lambda *_: None, pytest.fail)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), newest.params, before.params)
    assert all(jax.tree.leaves(same))
    moved = jax.tree.map(
        lambda a, b: bool((a != b).any()), newest.critic_params, before.critic_params
    )
    assert any(jax.tree.leaves(moved))


def test_another_run_is_not_written_over(finished):
    config, workdir, _ = finished
    before = (workdir / "metrics.jsonl").read_bytes()
    changed = small_config(workdir.parent)
    changed.replay.share = 0.3
    with pytest.raises(InputError, match=r"differs in config\.replay\.share \(0\.4, now 0\.3\)"):
        loop.run(changed, workdir, quiet(changed))
    assert (workdir / "metrics.jsonl").read_bytes() == before
    assert config.replay.share == 0.4
