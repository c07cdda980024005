"""A run: rollout -> grade -> learn -> log -> evaluate -> save, and what is left when it ends."""

import contextlib
import dataclasses
import json
import os
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from remix_jax import config as configs
from remix_jax import device_memory, files, processes, schedule, streams
from remix_jax.config import Config
from remix_jax.cost import speeds, step_flops
from remix_jax.device_memory import OutOfMemoryError
from remix_jax.evaluation import held_out
from remix_jax.learner import programs as compiled
from remix_jax.learner.programs import Programs
from remix_jax.learner.state import TrainState, fault_names, move_anchors
from remix_jax.learner.step import step_inputs
from remix_jax.models import huggingface
from remix_jax.rollout import sampler as sampling
from remix_jax.rollout.draws import draw_problems
from remix_jax.rollout.rollouts import Rollouts, expert_rows, grade_rollouts, prompt_batch
from remix_jax.rollout.sampler import Prompts, Samplers
from remix_jax.run import resume
from remix_jax.run.artifacts import EXPORT, leave
from remix_jax.run.checkpoint import Checkpoints, SaveError, check_room
from remix_jax.run.plan import memory_plan, peak, plan, state_bytes
from remix_jax.run.profiler import Profiler, Window
from remix_jax.run.record import StepLog
from remix_jax.run.setup import Setup, prepare
from remix_jax.run.stop import Preempted, Stop, watch
from remix_jax.schedule import Stage
from remix_jax.sharding import put, tree_bytes
from remix_jax.sinks import sink
from remix_jax.sinks.console import Console
from remix_jax.sinks.metrics import Record, read_metrics
from remix_jax.text import size_text

TRACE = "profile"  # directory of a run


class FaultError(RuntimeError):
    """A loss or a gradient was not finite.

    Attributes:
      override: FIELD=VALUE of the config, a learning rate with which the run may get further.
      good_step: of the newest checkpoint, from which it goes on; 0: from the beginning.
    """

    def __init__(self, message: str, override: str, good_step: int) -> None:
        super().__init__(message)
        self.override, self.good_step = override, good_step


class Outcome(NamedTuple):
    """How a run ended."""

    metrics: list[dict[str, Any]]
    stopped: bool  # before all was done, by Ctrl-C or SIGTERM
    preempted: bool  # by SIGTERM


@dataclasses.dataclass
class _Run:
    """What the steps of a run share; `state` and `counters` change with each."""

    setup: Setup  # its `state` has shapes only
    state: TrainState
    counters: dict[str, Any]
    programs: Programs
    samplers: Samplers
    log: StepLog
    checkpoints: Checkpoints
    console: Console
    stop: Stop
    profiler: Profiler
    mirror: files.Mirror
    reported: set[str]  # errors of files and sinks


def run(
    config: Config,
    workdir: str | os.PathLike[str],
    console: Console | None = None,
    artifacts: bool = True,
    profile: Window | None = None,
    trackers: Sequence[str | sink.Tracker] = (sink.DEFAULT,),
) -> Outcome:
    """Trains as the config says; everything it leaves lies in `workdir`.

    config.json, metrics.jsonl, samples.jsonl, tensorboard/, checkpoints/, and at the end figures/,
    ledger.json and export/, a Hugging Face directory. A workdir that holds the same run is
    continued from its newest good checkpoint. Ctrl-C ends after the running step, all written;
    SIGTERM ends as soon as a state is saved.

    Args:
      workdir: a local directory, or gs://BUCKET/... or s3://BUCKET/...
      artifacts: whether to leave figures, ledger and the exported policy at the end; one of many
        runs that are compared needs none of them.
      profile: steps of which a trace is left in profile/.
      trackers: what takes the figures beside the console and the files: names as of `--trackers`,
        or functions of a `sink.Run` (docs/trackers.md).

    Raises:
      InputError: before anything is compiled: config, model, problems, trackers or workdir.
      FaultError: a loss or gradient was not finite.
      OutOfMemoryError: a device has too little memory.
      SaveError: the run is done, but its last state is not on the disk.
    """
    root = files.resolve(workdir, "--workdir")
    made_from = sink.trackers(trackers)
    with device_memory.phase("loading"):
        setup = prepare(config)
    config = setup.config
    with contextlib.ExitStack() as open_:
        mirror = open_.enter_context(resume.claimed(root, config))
        console = console or open_.enter_context(_console(config))
        open_.enter_context(contextlib.closing(console))
        if processes.is_first():
            sizes = tree_bytes(setup.state), tree_bytes(setup.state.params)
            check_room(root / resume.CHECKPOINTS, *sizes, config.keep_checkpoints)
            if artifacts:
                huggingface.check_target(mirror.local / EXPORT)
        processes.wait_for_all("loaded")
        kept = config.keep_checkpoints, config.keep_every
        checkpoints = open_.enter_context(Checkpoints(root / resume.CHECKPOINTS, *kept))
        stop = open_.enter_context(watch(console.event))
        profiler = open_.enter_context(contextlib.closing(Profiler(profile, mirror.local / TRACE)))
        console.print_plan(plan(setup))
        state, counters = resume.start(setup, mirror.local, checkpoints, console.event)
        setup = setup._replace(state=resume.abstract(setup.state))
        log = open_.enter_context(contextlib.closing(_log(config, mirror, made_from, console)))
        try:
            with stop.at_once():
                programs, samplers = _compile(setup, console)
        except Preempted:
            return Outcome([], True, stop.preempted)
        processes.wait_for_all("compiled")
        # Sampling and evaluation, which change no state, end at SIGTERM.
        rollout = {name: stop.watched(sampler) for name, sampler in samplers.rollout.items()}
        samplers = Samplers(rollout, stop.watched(samplers.evaluate))
        shared = log, checkpoints, console, stop, profiler, mirror
        running = _Run(setup, state, counters, programs, samplers, *shared, reported=set())
        del state, counters  # `running` has them: nothing else keeps a state alive
        return _finish(running, _train(running), artifacts)


@contextlib.contextmanager
def _console(config: Config) -> Iterator[Console]:
    """Standard output; of several processes the first one speaks."""
    with open(os.devnull, "w") as nowhere:
        file = None if processes.is_first() else nowhere
        yield Console(config.steps, schedule.planned_rollouts(config), file=file)


def _log(config: Config, mirror: files.Mirror, made_from, console: Console) -> StepLog:
    """Where the figures go."""
    settings = json.loads(configs.to_json(config))
    if not processes.is_first():
        return StepLog(None, sink.Sinks({}, {}, sink.Run(mirror.local, "", settings, ())))
    record = Record(mirror.local)
    history = read_metrics(mirror.local)
    name = pathlib.PurePath(os.path.abspath(str(mirror.root))).name
    about = sink.Run(mirror.local, name, settings, history)
    return StepLog(record, sink.Sinks({"console": console}, made_from, about))


def _compile(setup: Setup, console: Console) -> tuple[Programs, Samplers]:
    begin = time.perf_counter()
    config, limit = setup.config, device_memory.limit()
    kept = sum(state_bytes(setup.state, setup.mesh).values())
    if limit is not None and kept > limit:
        console.event(
            f"the state alone takes {size_text(kept)} of each device, which has {size_text(limit)}"
        )
    console.event("compiling")
    stages = schedule.stages(config).values()
    ends = setup.vocabulary.eos_ids, setup.vocabulary.pad_id
    with device_memory.phase("compiling for sampling and evaluation", "sampling"):
        samplers = sampling.build(config, setup.learner.policy, stages, *ends, setup.mesh)
    with device_memory.phase("compiling for learning", "learning"):
        programs = compiled.build(setup.learner, stages, setup.mesh)
    console.print_plan(memory_plan(setup, programs, samplers), title="Memory of a device")
    console.event(f"compiled in {time.perf_counter() - begin:.0f} s")
    most = peak(setup, programs, samplers)
    if limit is not None and most > limit:
        console.event(
            f"about {size_text(most)} will be needed on a device, which has {size_text(limit)}: "
            f"what needs less: {device_memory.REMEDIES['learning']} (docs/scaling.md)"
        )
    settings = sampling.sampler_settings(config)
    if settings.truncates and not config.sampling.correct_truncation:
        console.event(
            "top_k, top_p or min_p truncates the sampling distribution and the ratios do not know "
            "it: the gradient is biased by truncation_gap (sampling.correct_truncation corrects)"
        )
    return programs, samplers


def _train(run: _Run) -> str | None:
    """All steps that are left; the last state is saved. What was not finite, if anything."""
    try:
        fault = _steps(run)
    except OutOfMemoryError:
        if not any(leaf.is_deleted() for leaf in jax.tree.leaves(run.state)):
            _save_last(run)
        raise
    run.log.flush()
    if fault is None:
        _save_last(run)
    return fault


def _save_last(run: _Run) -> None:
    if int(run.state.step) > 0:
        _save(run)
        run.checkpoints.wait()


def _steps(run: _Run) -> str | None:
    config = run.setup.config
    if not _begun(run):
        return None
    for step in range(int(run.state.step) + 1, config.steps + 1):
        if run.stop():
            break
        if step == config.reincarnation_step + 1 and config.reincarnation_step > 0:
            run.console.event(f"step {step}: reincarnation, base anchor <- policy, on-policy now")
            state = run.programs.reincarnate.call(move_anchors(config, run.state, "device"))
            run.state = move_anchors(config, state, "pinned_host")
        run.profiler.before(step)
        try:
            fault = _step(run, step)
            if fault is not None:
                return f"step {step}: {fault}"
            if _due(config.evaluation.every, step) or step == config.steps or run.stop.interrupted:
                run.log.add(_evaluate(run))
        except Preempted:
            break
        if run.profiler.after(step):
            run.console.event(f"step {step}: the trace is in {TRACE}/ of the run")
        if _due(config.checkpoint_every, step):
            _save(run)
        _report_errors(run)
    return None


def _due(every: int, step: int) -> bool:
    return every > 0 and step % every == 0


def _begun(run: _Run) -> bool:
    """Evaluates the first state, or the one whose evaluation was cut short; whether to go on."""
    unwritten = run.counters.pop("unwritten", None)
    try:
        if int(run.state.step) == 0:
            run.log.hold({"step": 0, "rollouts": 0} | run.counters["totals"], {}, [])
            with run.stop.at_once():
                run.log.add(_evaluate(run))
        elif unwritten is not None:
            run.log.hold(**unwritten)
            run.log.add(_evaluate(run))
    except Preempted:  # nothing is lost: what is on the disk says the same
        run.log.take()
        return False
    return True


def _step(run: _Run, step: int) -> str | None:
    """Collects rows and learns from them. What was not finite, if anything.

    Raises:
      Preempted: while rows were collected; nothing has changed.
    """
    config = run.setup.config
    stage = schedule.stages(config)[schedule.stage_at(config, step)]
    begin = time.perf_counter()
    rollouts, counters = _collect(run, step, stage)
    collected = time.perf_counter()
    device, logging = _learn(run, step, stage, rollouts)
    fault_F = np.asarray(run.state.fault_F)
    end = time.perf_counter()
    run.stop.agree()
    own, before = rollouts.metrics, counters["totals"]
    seconds = {
        "seconds/sample": collected - begin - own["seconds/grade"],
        "seconds/learn": end - collected - logging,
        "seconds/log": logging,
    }
    new_tokens = own.pop("new_tokens")
    flops = step_flops(run.setup.learner, config, stage, new_tokens, step)
    totals = {
        "tokens": before["tokens"] + new_tokens,
        "flops": before["flops"] + flops.sampling + flops.learning,
        "seconds": before["seconds"] + end - begin,
    }
    run.counters = counters | {"totals": totals}
    rows = schedule.rollouts_until(config, step)
    slots = config.prompt_slots + config.data.response_tokens
    by_phase = seconds["seconds/sample"], seconds["seconds/learn"]
    speed = speeds(new_tokens, stage.passes * config.batch_size * slots, flops, *by_phase)
    host = {"step": step, "stage": stage.name, "rollouts": rows} | totals | own | seconds | speed
    run.log.hold(host, device, rollouts.samples)
    for name, line in rollouts.errors.items():
        _report(run, f"reward {name}", f"{line} (this and more: reward_errors/{name})")
    return _describe_fault(run.state, fault_F)


def _learn(run: _Run, step: int, stage: Stage, rollouts: Rollouts) -> tuple[dict, float]:
    """The learning phase: its figures on the device, and the seconds of writing those before."""
    config = run.setup.config
    inputs = jax.tree.map(lambda x: put(x, run.setup.mesh), step_inputs(config, step))
    learn = run.programs.learn[stage.name].call
    with device_memory.phase("learning"):
        state = move_anchors(config, run.state, "device")
        state, device = learn(state, rollouts.rows, inputs, rollouts.expert)
        run.state = move_anchors(config, state, "pinned_host")
        dispatched = time.perf_counter()
        run.log.flush()  # the step before, while the device learns
        logging = time.perf_counter() - dispatched
        run.state.fault_F.block_until_ready()
    return device, logging


def _collect(run: _Run, step: int, stage: Stage) -> tuple[Rollouts, dict[str, Any]]:
    """Samples and grades the fresh rows of a step; and the counters, moved past its problems.

    Raises:
      Preempted: the state is untouched.
    """
    setup = run.setup
    config, vocabulary = setup.config, setup.vocabulary
    groups = schedule.fresh_groups(config, step)
    before = schedule.groups_until(config, step - 1)
    draw, counters = draw_problems(config, setup.train, setup.prefixes, run.counters, step)
    expert = None
    if setup.traces:
        bank, pad_id = setup.traces, vocabulary.pad_id
        expert = expert_rows(draw, bank, stage, before, config, pad_id, setup.mesh)
    if not config.own_rows:
        return Rollouts(None, {"new_tokens": 0, "seconds/grade": 0.0}, [], {}, expert), counters
    width = config.prompt_slots
    tokens_QP, length_Q = prompt_batch(draw.prompts, stage.fresh_groups, width, vocabulary.pad_id)
    row_B = np.arange(stage.fresh_groups * config.own_rows, dtype=np.int32)
    key = jax.random.fold_in(streams.key(config.seed, "sampling"), step)
    prompts = Prompts(tokens_QP, length_Q, row_B, row_B < groups * config.own_rows)
    # The sampler is waited for, so that grading is not charged with sampling.
    with device_memory.phase("sampling"):
        sampled = run.samplers.rollout[stage.name](run.state.params, prompts, key)
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


def _evaluate(run: _Run) -> dict[str, float]:
    """Held-out figures of the state. On Preempted the step's figures travel in the checkpoint."""
    begin = time.perf_counter()
    setup = run.setup
    try:
        with device_memory.phase("evaluation"):
            found = held_out(
                run.samplers.evaluate,
                run.state.params,
                setup.suites,
                setup.validation,
                setup.vocabulary,
                setup.config,
                setup.scorer,
            )
    except Preempted:
        run.counters = run.counters | {"unwritten": run.log.take()}
        raise
    return found | {"seconds/eval": time.perf_counter() - begin}


def _save(run: _Run) -> None:
    """A checkpoint, after which not a line of its step is missing in the files."""
    step, missing = int(run.state.step), None
    try:
        run.log.sync()
        run.mirror.push()
        missing = run.mirror.error
    except OSError as error:
        missing = error.strerror or str(error)
    missing = processes.from_first(missing)
    if missing:
        run.checkpoints.wait()
        run.checkpoints.refuse(step, OSError(missing))
        return
    host = run.counters | {"step": step} | resume.identity(run.setup)
    run.checkpoints.save(step, run.state, host)


def _report_errors(run: _Run) -> None:
    """One line for each new thing that could not be written; the run goes on."""
    for error in (*run.log.errors(), run.mirror.error, run.checkpoints.error):
        if error:
            _report(run, error)


def _report(run: _Run, what: str, more: str = "") -> None:
    if what not in run.reported:
        run.reported.add(what)
        run.console.event(f"{what}: {more}" if more else what)


def _describe_fault(state: TrainState, fault_F: np.ndarray) -> str | None:
    """One line on the first thing that was not finite, None if all was."""
    if not fault_F.any():
        return None
    names = fault_names(state.params, state.critic_params)
    bad = [name for name, fault in zip(names, fault_F, strict=True) if fault]
    more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
    return f"{bad[0]}{more} not finite, updates stopped there"


def _finish(run: _Run, fault: str | None, artifacts: bool) -> Outcome:
    """What a run leaves at its end, and how it ended."""
    run.checkpoints.wait()
    run.log.close()
    _report_errors(run)
    done, steps = int(run.state.step), run.setup.config.steps
    if done > 0 and artifacts and not run.stop.preempted:
        leave(run.setup, run.state, run.mirror, run.console, export=fault is None)
    elif done == 0:
        run.console.event("ended before the first step; the same command begins anew")
    if fault is not None:
        good = run.checkpoints.newest_step()
        kept = f"the checkpoint of step {good} is good" if good else "there is no checkpoint yet"
        config = run.setup.config
        of_critic = "value loss" in fault or "critic" in fault
        rate = (config.critic.optimizer if of_critic else config.optimizer).learning_rate / 2
        field = f"{'critic.' if of_critic else ''}optimizer.learning_rate"
        raise FaultError(f"{fault}; {kept}", f"{field}={rate:g}", good)
    if run.checkpoints.error:
        raise SaveError(run.checkpoints.error)
    stopped = done < steps or run.stop.preempted
    written = read_metrics(run.mirror.local) if processes.is_first() else []
    return Outcome(written, stopped, run.stop.preempted)
