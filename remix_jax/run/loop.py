"""A run: rollout -> grade -> learn -> log -> evaluate -> save, and what is left when it ends."""

import contextlib
import json
import os
import pathlib
import time
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from remix_jax import processes, schedule, streams
from remix_jax.config import Config
from remix_jax.cost import StepFlops, kl_weight, speeds, step_flops
from remix_jax.evaluation import held_out
from remix_jax.learner import programs as compiled
from remix_jax.learner.programs import Programs
from remix_jax.learner.state import TrainState, fault_names, load_anchors, offload_anchors
from remix_jax.learner.step import step_inputs
from remix_jax.models import huggingface
from remix_jax.rl import replay
from remix_jax.rollout import sampler as sampling
from remix_jax.rollout.draws import draw_problems
from remix_jax.rollout.experts import expert_rows
from remix_jax.rollout.rollouts import Rollouts, grade_rollouts, prompt_batch
from remix_jax.rollout.sampler import Prompts, Samplers
from remix_jax.run import figures as plotting
from remix_jax.run import report, resume
from remix_jax.run.checkpoint import Checkpoints, SaveError, check_room
from remix_jax.run.profiler import Profiler, Window
from remix_jax.run.record import Nowhere, Record
from remix_jax.run.setup import Setup, memory_plan, plan, prepare, tree_bytes
from remix_jax.run.stop import Preempted, Stop, watch
from remix_jax.sharding import put, whole
from remix_jax.sinks.console import Console
from remix_jax.sinks.metrics import MetricsWriter, SamplesWriter, read_metrics

TRACE = "profile"  # a run's directory of traces


class FaultError(RuntimeError):
    """A loss or a gradient was not finite. The state before that update has been saved."""


class Outcome(NamedTuple):
    """How a run ended."""

    metrics: list[dict[str, Any]]
    stopped: bool  # before all was done, by Ctrl-C or SIGTERM
    preempted: bool  # by SIGTERM


def run(
    config: Config,
    workdir: str | pathlib.Path,
    console: Console | None = None,
    artifacts: bool = True,
    profile: Window | None = None,
) -> Outcome:
    """Trains as the config says; everything it leaves lies in `workdir`.

    config.json, metrics.jsonl, samples.jsonl, tensorboard/, checkpoints/, and at the end figures/,
    ledger.json and export/, a Hugging Face directory. A workdir that holds the same run is
    continued from its newest good checkpoint. Ctrl-C ends after the running step, all written;
    SIGTERM ends as soon as a state is saved.

    Args:
      artifacts: whether to leave figures, ledger and the exported policy at the end; one of many
        runs that are compared needs none of them.
      profile: steps of which a trace is left in profile/.

    Raises:
      InputError: before anything is compiled or written: config, model, problems or workdir.
      FaultError: a loss or gradient was not finite.
      SaveError: the run is done, but its last state is not on the disk.
    """
    workdir = pathlib.Path(workdir)
    setup = prepare(config)
    directory = workdir / "checkpoints"
    with contextlib.ExitStack() as open_:
        open_.enter_context(resume.claimed(workdir, config))
        if console is None:
            # Of several processes the first one speaks.
            file = None if processes.is_first() else open_.enter_context(open(os.devnull, "w"))
            console = Console(config.steps, schedule.planned_rollouts(config), file=file)
        open_.enter_context(contextlib.closing(console))
        if processes.is_first():
            sizes = tree_bytes(setup.state), tree_bytes(setup.state.params)
            check_room(directory, *sizes, config.keep_checkpoints)
        checkpoints = Checkpoints(directory, config.keep_checkpoints, config.keep_every)
        open_.enter_context(checkpoints)
        stop = open_.enter_context(watch(console.event))
        profiler = open_.enter_context(contextlib.closing(Profiler(profile, workdir / TRACE)))
        return _run(setup, workdir, console, checkpoints, stop, artifacts, profiler)


def _run(
    setup: Setup,
    workdir: pathlib.Path,
    console: Console,
    checkpoints: Checkpoints,
    stop: Stop,
    artifacts: bool,
    profiler: Profiler,
) -> Outcome:
    console.print_plan(plan(setup))
    programs, samplers = _compile(setup, console, stop)
    processes.wait_for_all("compiled")
    state, counters = resume.start(setup, workdir, checkpoints, console.event)
    with contextlib.ExitStack() as open_:
        record = Record(Nowhere(), Nowhere())
        if processes.is_first():
            metrics = open_.enter_context(MetricsWriter(workdir, console))
            record = Record(metrics, open_.enter_context(SamplesWriter(workdir)))
        run = _Run(setup, programs, samplers, record, checkpoints, console, stop, profiler, set())
        state, fault = _train(run, state, counters)
    checkpoints.wait()
    _tell_troubles(run)
    finished = int(state.step)
    if finished > 0 and artifacts and not stop.preempted:
        _leave(setup, workdir, console, state)
    if fault:
        raise FaultError(f"step {finished}: {fault}; the last good state is in {workdir}")
    if checkpoints.trouble:
        raise SaveError(checkpoints.trouble)
    stopped = finished < setup.config.steps or stop.preempted
    figures = read_metrics(workdir) if processes.is_first() else []
    return Outcome(figures, stopped, stop.preempted)


class _Run(NamedTuple):
    """What the steps of a run share."""

    setup: Setup
    programs: Programs
    samplers: Samplers
    record: Record
    checkpoints: Checkpoints
    console: Console
    stop: Stop
    profiler: Profiler
    told: set[str]  # troubles with the file system


def _train(run: _Run, state: TrainState, counters: dict) -> tuple[TrainState, str | None]:
    """All steps that are left: the last state, saved, and what was not finite, if anything."""
    config, fault = run.setup.config, None
    state = offload_anchors(config, state)
    unwritten = counters.pop("unwritten", None)
    try:
        if int(state.step) == 0:
            run.record.hold({"step": 0, "rollouts": 0} | counters["totals"], {}, [])
            run.record.add(_evaluate(run, state))
        elif unwritten is not None:
            run.record.hold(**unwritten)
            run.record.add(_evaluate(run, state))
    except Preempted:  # nothing is lost: what is on the disk says the same
        run.record.take()
        return state, None
    for step in range(int(state.step) + 1, config.steps + 1):
        if run.stop():
            break
        if _reincarnates(config, step):
            run.console.event(f"step {step}: reincarnation, base anchor <- policy, on-policy now")
            state = run.programs.reincarnate.call(load_anchors(config, state))
            state = offload_anchors(config, state)
        run.profiler.before(step)
        begin = time.perf_counter()
        try:
            rollouts, after = _collect(run, state, step, counters)
        except Preempted:
            break
        state, counters, fault = _step(run, state, after, rollouts, step, begin)
        try:
            if _due(config.evaluation.every, step) or step == config.steps or run.stop.interrupted:
                run.record.add(_evaluate(run, state))
        except Preempted:
            counters = counters | {"unwritten": run.record.take()}
            break
        if run.profiler.after(step):
            run.console.event(f"step {step}: the trace is in {TRACE}/ of the run")
        if fault or _due(config.checkpoint_every, step):
            _save(run, state, counters)
        _tell_troubles(run)
        if fault:
            break
    run.record.flush()
    if int(state.step) > 0:
        _save(run, state, counters)
    return state, fault


def _save(run: _Run, state: TrainState, counters: dict) -> None:
    """A checkpoint, after which not a line of its step is missing in the files."""
    step, places, missing = int(state.step), {}, None
    try:
        places = run.record.sync()
    except OSError as error:
        missing = error.strerror or str(error)
    missing = processes.from_first(missing)
    if missing:
        run.checkpoints.refuse(step, OSError(missing))
        return
    host = counters | {"step": step, "places": places} | resume.identity(run.setup)
    run.checkpoints.save(step, state, host)


def _tell_troubles(run: _Run) -> None:
    """One line for each new thing that could not be written; the run goes on."""
    for trouble in (*run.record.troubles(), run.checkpoints.trouble):
        if trouble and trouble not in run.told:
            run.told.add(trouble)
            run.console.event(trouble)


def _compile(setup: Setup, console: Console, stop: Stop) -> tuple[Programs, Samplers]:
    begin = time.perf_counter()
    vocabulary = setup.vocabulary
    stages = schedule.stages(setup.config).values()
    ends = vocabulary.eos_ids, vocabulary.pad_id
    samplers = sampling.build(setup.config, setup.learner.policy, stages, *ends, setup.mesh)
    programs = compiled.build(setup.learner, stages, setup.mesh)
    console.print_plan(memory_plan(setup, programs, samplers), title="Memory of a device")
    console.event(f"compiled in {time.perf_counter() - begin:.0f} s")
    settings = sampling.sampler_settings(setup.config)
    if settings.truncates and not setup.config.sampling.correct_truncation:
        console.event(
            "top_k, top_p or min_p truncates the sampling distribution and the ratios do not know "
            "it: the gradient is biased by truncation_gap (sampling.correct_truncation corrects)"
        )
    # Sampling and evaluation, which change no state, end at SIGTERM.
    rollout = {name: stop.watched(sampler) for name, sampler in samplers.rollout.items()}
    return programs, Samplers(rollout, stop.watched(samplers.evaluate))


def _reincarnates(config: Config, step: int) -> bool:
    """Whether this is step T + 1."""
    return config.reincarnation_step > 0 and step == config.reincarnation_step + 1


def _step(run: _Run, state, counters, rollouts: Rollouts, step: int, begin: float):
    """Learns from rollouts: the new state and counters, and what was not finite, if anything."""
    config = run.setup.config
    stage = schedule.stage_at(config, step)
    collected = time.perf_counter()
    learn = run.programs.learn[stage].call
    inputs = jax.tree.map(lambda x: put(x, run.setup.mesh), step_inputs(config, step))
    state = load_anchors(config, state)
    state, device = learn(state, rollouts.rows, inputs, rollouts.expert)
    state = offload_anchors(config, state)
    dispatched = time.perf_counter()
    run.record.flush()  # the step before, while the device learns
    logging = time.perf_counter() - dispatched
    fault_F = np.asarray(state.fault_F)  # waits for the device
    end = time.perf_counter()
    run.stop.agree()
    own, before = rollouts.metrics, counters["totals"]
    seconds = {
        "seconds/sample": collected - begin - own["seconds/grade"],
        "seconds/learn": end - collected - logging,
        "seconds/log": logging,
    }
    new_tokens = own.pop("new_tokens")
    flops = _flops(run.setup, step, new_tokens)
    totals = {
        "tokens": before["tokens"] + new_tokens,
        "flops": before["flops"] + flops.total,
        "seconds": before["seconds"] + end - begin,
    }
    counters = counters | {"totals": totals}
    rows = schedule.rollouts_until(config, step)
    slots = config.prompt_slots + config.data.response_tokens
    learned = schedule.stages(config)[stage].passes * config.batch_size * slots
    by_phase = seconds["seconds/sample"], seconds["seconds/learn"]
    speed = speeds(new_tokens, learned, flops, *by_phase)
    host = {"step": step, "stage": stage, "rollouts": rows} | totals | own | seconds | speed
    run.record.hold(host, device, rollouts.samples)
    for name, line in rollouts.errors.items():
        if f"reward/{name}" not in run.told:
            run.told.add(f"reward/{name}")
            run.console.event(f"reward {name}: {line} (this and more: reward_errors/{name})")
    return state, counters, _describe_fault(state, fault_F)


def _flops(setup: Setup, step: int, new_tokens: float) -> StepFlops:
    config = setup.config
    stage = schedule.stages(config)[schedule.stage_at(config, step)]
    return step_flops(setup.learner, config, stage, new_tokens, kl_weight(config, step))


def _due(every: int, step: int) -> bool:
    return every > 0 and step % every == 0


def _collect(
    run: _Run, state: TrainState, step: int, counters: dict[str, Any]
) -> tuple[Rollouts, dict[str, Any]]:
    """Samples and grades the fresh rows of a step; and the counters, moved past its problems.

    Raises:
      Preempted: the state is untouched.
    """
    setup = run.setup
    config, vocabulary = setup.config, setup.vocabulary
    stage = schedule.stages(config)[schedule.stage_at(config, step)]
    groups = schedule.fresh_groups(config, step)
    before = schedule.groups_until(config, step - 1)
    draw, counters = draw_problems(config, setup.train, setup.prefixes, counters, step)
    expert = None
    if setup.traces:
        expert = expert_rows(draw, setup.traces, stage, before, config, vocabulary.pad_id)
        expert = jax.tree.map(lambda x: put(x, setup.mesh), expert)
    if not config.own_rows:
        return Rollouts(None, {"new_tokens": 0, "seconds/grade": 0.0}, [], {}, expert), counters
    width = config.prompt_slots
    tokens_QP, length_Q = prompt_batch(draw.prompts, stage.fresh_groups, width, vocabulary.pad_id)
    row_B = np.arange(stage.fresh_groups * config.own_rows, dtype=np.int32)
    key = jax.random.fold_in(streams.key(config.seed, "sampling"), step)
    prompts = Prompts(tokens_QP, length_Q, row_B, row_B < groups * config.own_rows)
    # The sampler is waited for, so that grading is not charged with sampling.
    sampled = run.samplers.rollout[stage.name](state.params, prompts, key)
    graded = grade_rollouts(
        sampled,
        draw,
        vocabulary,
        config.own_rows,
        first_group=before,
        scorer=setup.scorer,
        form=setup.train.form,
        mesh=setup.mesh,
        shown=config.samples_per_step,
    )
    return graded._replace(expert=expert), counters


def _evaluate(run: _Run, state: TrainState) -> dict[str, float]:
    begin = time.perf_counter()
    setup = run.setup
    figures = held_out(
        run.samplers.evaluate,
        state.params,
        setup.suites,
        setup.validation,
        setup.vocabulary,
        setup.config,
        setup.scorer,
    )
    return figures | {"seconds/eval": time.perf_counter() - begin}


def _describe_fault(state: TrainState, fault_F: np.ndarray) -> str | None:
    """One line on the first thing that was not finite, None if all was."""
    if not fault_F.any():
        return None
    names = fault_names(state.params, state.critic_params)
    bad = [name for name, fault in zip(names, fault_F, strict=True) if fault]
    more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
    return f"{bad[0]}{more} not finite, updates stopped there"


def _leave(setup: Setup, workdir: pathlib.Path, console: Console, state: TrainState) -> None:
    """What a run leaves at its end: ledger, table, figures, the policy for other programs."""
    ledger = _ledger(state, setup.mesh)
    export = workdir / "export"
    base = setup.config.model
    policy, dtype = setup.learner.policy, base.export_dtype or None
    huggingface.save(policy, state.params, export, like=base.path, dtype=dtype)
    if not processes.is_first():
        return
    (workdir / "ledger.json").write_text(json.dumps(ledger, indent=2) + "\n")
    metrics = read_metrics(workdir)
    plotting.draw(metrics, workdir / "figures")
    console.close()
    console.print(report.final_table(metrics))
    console.print(report.ledger_table(ledger))
    console.event(f"figures, ledger.json and the policy (export) are in {workdir}")


def _ledger(state: TrainState, mesh: Mesh | None) -> list[dict[str, Any]]:
    """What became of every row generated: the fates of those that left and of those still held."""
    everywhere = None if mesh is None else whole(mesh)
    count = jax.jit(lambda ring: replay.clear(ring).fates_U, out_shardings=everywhere)
    fates_U = np.asarray(count(state.replay))
    names = ["zero signal: all rewards of its group equal", "not trained on"]
    names += [f"trained on in {u} pass{'es' if u > 1 else ''}" for u in range(1, len(fates_U) - 1)]
    total = int(fates_U.sum())
    return [
        {"fate": name, "rows": int(rows), "share": int(rows) / total}
        for name, rows in zip(names, fates_U, strict=True)
        if rows
    ]
