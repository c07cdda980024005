"""A run: rollout -> grade -> learn -> log -> evaluate -> save, and what is left when it ends."""

import contextlib
import dataclasses
import json
import os
import signal
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from remix_jax import config as configs
from remix_jax import device_memory, files, processes, schedule, streams
from remix_jax.config import Config
from remix_jax.cost import speeds, step_flops
from remix_jax.device_memory import OutOfMemoryError
from remix_jax.evaluation import held_out
from remix_jax.learner.state import TrainState, fault_names, move_anchors
from remix_jax.learner.step import Programs, step_inputs
from remix_jax.rollout import in_flight
from remix_jax.rollout.draws import draw_problems
from remix_jax.rollout.rollouts import (
    Rollouts,
    decoding_metrics,
    expert_rows,
    grade_rollouts,
    prompt_batch,
    with_tokens,
)
from remix_jax.rollout.sampler import Prompts, Samplers
from remix_jax.run import outputs, page, resume
from remix_jax.run.checkpoint import Checkpoints, SaveError
from remix_jax.run.setup import Setup, compile_programs, plan, prepare
from remix_jax.run.stop import Preempted, Stop, watch
from remix_jax.schedule import Stage
from remix_jax.sharding import put
from remix_jax.sinks import health, sink
from remix_jax.sinks.console import HELD_OUT, Console
from remix_jax.sinks.metrics import Record, read_metrics
from remix_jax.text import one_line

TRACE = "profile"  # directory of a run


class FaultError(RuntimeError):
    """A loss or a gradient was not finite."""

    def __init__(self, message: str, override: str, good_step: int) -> None:
        super().__init__(message)
        self.override = override  # FIELD=VALUE of the config, with which the run may get further
        self.good_step = good_step  # of the newest checkpoint; 0: there is none


class UnhealthyError(RuntimeError):
    """Rules of `sinks.health` held in a run that was to be strict."""

    def __init__(self, rules: Iterable[str]) -> None:
        super().__init__(f"stopped, for it is strict: {', '.join(sorted(rules))}")


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
    sinks: tuple[Any, ...]  # the record, and all others; of several processes the first one writes
    checkpoints: Checkpoints
    console: Console
    stop: Stop
    mirror: files.Mirror
    profile: tuple[int, int] | None
    strict: bool
    warned: set[str]  # rules of `health` that held, where this process writes
    artifacts: bool
    held: dict[str, Any] | None = None  # figures of the newest step, written during the next one
    draw_after: float = 0.0  # of time.monotonic, the next report
    reported: set[str] = dataclasses.field(default_factory=set)  # what went wrong, and was said


def run(
    config: Config,
    workdir: str | os.PathLike[str],
    console: Console | None = None,
    artifacts: bool = True,
    profile: tuple[int, int] | None = None,
    trackers: Sequence[str | sink.Tracker] = (sink.DEFAULT,),
    strict: bool = False,
    preset: tuple[str, Config] | None = None,
) -> Outcome:
    """Trains as the config says, or goes on from the newest good checkpoint in `workdir`.

    There it leaves config.json, metrics.jsonl, samples.jsonl, warnings.jsonl, tensorboard/,
    checkpoints/, report.html, and at the end ledger.json and export/, a Hugging Face directory.
    Ctrl-C ends after the running step, all written; SIGTERM ends as soon as a state is saved.

    Args:
      workdir: a local directory, or gs://BUCKET/... or s3://BUCKET/...
      artifacts: whether to leave report, ledger and exported policy.
      profile: the first step of a trace, for TensorBoard or Perfetto, and how many; in profile/.
      trackers: what takes the figures beside the console and the files: names as of `--trackers`,
        or functions of a `sink.Run` (docs/trackers.md).
      strict: ends the run, saved, where a rule of `sinks.health` holds.
      preset: name and config that the report compares the run's with; None: the defaults.

    Raises:
      InputError: before anything is compiled: config, model, problems, trackers or workdir.
      FaultError: a loss or gradient was not finite.
      OutOfMemoryError: a device has too little memory.
      SaveError: the run is done, but its last state is not on the disk.
      UnhealthyError: a rule held, and `strict`.
    """
    root = files.resolve(workdir, "--workdir")
    made_from = sink.trackers(trackers)
    with device_memory.phase("loading"):
        setup = prepare(config)
    config = setup.config
    with contextlib.ExitStack() as open_:
        mirror = open_.enter_context(resume.claimed(root, config))
        if console is None:
            file = None if processes.is_first() else open_.enter_context(open(os.devnull, "w"))
            console = Console(config.steps, schedule.planned_rollouts(config), file=file)
        open_.enter_context(contextlib.closing(console))
        places, kept = root / resume.CHECKPOINTS, config.keep_checkpoints
        if processes.is_first():
            outputs.check(setup, places, mirror.local, artifacts)
        processes.wait_for_all("loaded")
        checkpoints = open_.enter_context(Checkpoints(places, kept, config.keep_every))
        stop = open_.enter_context(watch(console.event))
        console.print_plan(plan(setup))
        state, counters = resume.start(setup, mirror.local, checkpoints, console.event)
        setup = setup._replace(state=resume.abstract(setup.state))
        findings = _look_at_problems(setup, console, strict)
        warned: set[str] = set()
        sinks = _open_sinks(config, mirror, made_from, console, warned)
        if sinks and preset:
            page.write_preset(mirror.local, *preset)
        for record in sinks[:1] if counters["step"] == 0 else ():
            for finding in findings:
                record.warning(0, *finding)
        for each in sinks:
            open_.callback(each.close)
        try:
            with stop.at_once():
                programs, samplers = compile_programs(setup, console)
        except Preempted:
            return Outcome([], True, signal.SIGTERM in stop.agreed)
        processes.wait_for_all("compiled")
        # Sampling and evaluation, which change no state, end at SIGTERM.
        rollout = {name: stop.watched(sampler) for name, sampler in samplers.rollout.items()}
        samplers = Samplers(rollout, stop.watched(samplers.evaluate))
        shared = sinks, checkpoints, console, stop, mirror, profile, strict, warned, artifacts
        running = _Run(setup, state, counters, programs, samplers, *shared)
        del state, counters  # `running` has them: nothing else keeps a state alive
        try:
            fault = _steps(running)
        except OutOfMemoryError:
            if not any(leaf.is_deleted() for leaf in jax.tree.leaves(running.state)):
                _save(running)
            raise
        return _finish(running, fault)


def _look_at_problems(setup: Setup, console: Console, strict: bool) -> list[health.Finding]:
    """What is wrong with the problems, said; where it is to be strict, UnhealthyError."""
    held_out, compared = [*setup.suites, *setup.validation], setup.scorer.needs_answers
    findings = health.of_problems(setup.train, held_out, compared)
    for finding in findings:
        console.warning(finding.text)
    if strict and findings:
        raise UnhealthyError({finding.rule for finding in findings})
    return findings


def _open_sinks(
    config: Config,
    mirror: files.Mirror,
    trackers: Mapping[str, sink.Tracker],
    console: Console,
    warned: set[str],
) -> tuple[Any, ...]:
    if not processes.is_first():
        return ()
    record, settings = Record(mirror.local), json.loads(configs.to_json(config))
    about = sink.Run(mirror.local, mirror.name, settings, read_metrics(mirror.local))

    def tell(step: int, finding: health.Finding, is_new: bool) -> None:
        warned.add(finding.rule)
        record.warning(step, *finding)
        if is_new:
            console.warning(finding.text)

    direct: dict[str, sink.Sink] = {
        "console": console,
        "health": health.Health(about.history, config.steps, tell),
    }
    return record, sink.Sinks(direct, trackers, about)


def _steps(run: _Run) -> str | None:
    """All steps that are left. What was not finite, if anything."""
    config, done = run.setup.config, int(run.state.step)
    evaluates, saves = config.evaluation.every, config.checkpoint_every
    run.held = run.counters.pop("unwritten", None)  # of a step whose evaluation was cut short
    if done == 0:
        before = {"step": 0, "rollouts": 0} | run.counters["totals"]
        run.held = {"host": before, "device": {}, "samples": []}
    if run.held is not None:
        try:
            with run.stop.at_once() if done == 0 else contextlib.nullcontext():
                _evaluate(run)
        except Preempted:  # nothing is lost: what is on the disk says the same
            run.held = None
            return None
    with contextlib.ExitStack() as traced:
        for step in range(done + 1, config.steps + 1):
            if run.stop.agreed:
                break
            if step == config.reincarnation_step + 1 > 1:
                told = f"step {step}: reincarnation, base anchor <- policy, on-policy now"
                run.console.event(told)
                state = run.programs.reincarnate.call(move_anchors(config, run.state, "device"))
                run.state = move_anchors(config, state, "pinned_host")
            if run.profile and step == run.profile[0]:
                traced.callback(run.console.event, f"the trace is in {TRACE}/ of the run")
                traced.enter_context(jax.profiler.trace(run.mirror.local / TRACE))
            try:
                fault = _step(run, step)
                if fault is not None:
                    return f"step {step}: {fault}"
                ends = step == config.steps or signal.SIGINT in run.stop.agreed
                if ends or (evaluates and step % evaluates == 0):
                    _evaluate(run)
            except Preempted:
                break
            if run.profile and step == sum(run.profile) - 1:
                traced.close()
            if saves and step % saves == 0:
                _save(run)
            _report(run, {})
            if run.strict:
                _write(run)
                if processes.from_first(bool(run.warned)):
                    break
    return None


def _step(run: _Run, step: int) -> str | None:
    """What was not finite, if anything. On Preempted, while rows are collected, nothing changed."""
    config = run.setup.config
    stage = schedule.stages(config)[schedule.stage_at(config, step)]
    begin = time.perf_counter()
    rollouts, counters = _collect(run, step, stage)
    collected = time.perf_counter()
    given = step_inputs(config, step, rollouts.shown)
    inputs = jax.tree.map(lambda x: put(x, run.setup.mesh), given)
    learn = run.programs.learn[stage.name].call
    with device_memory.phase("learning"):
        state = move_anchors(config, run.state, "device")
        if rollouts.in_flight is not None:
            state = state.replace(in_flight=rollouts.in_flight)
        state, device = learn(state, rollouts.rows, inputs, rollouts.expert)
        run.state = move_anchors(config, state, "pinned_host")
        dispatched = time.perf_counter()
        _write(run)  # the step before, while the device learns
        logging = time.perf_counter() - dispatched
        fault_F = np.asarray(run.state.fault_F)
    end = time.perf_counter()
    run.stop.agree()
    own, before = rollouts.metrics, counters["totals"]
    new_tokens = own.pop("new_tokens")
    trained, use = float(device["learn_tokens"]), float(device["learn_use"])
    row_slots = config.prompt_slots + config.data.response_tokens - 1
    filled = trained / use / (stage.passes * config.batch_size * row_slots) if use else 0.0
    flops = step_flops(run.setup.learner, config, stage, new_tokens, step, filled)
    totals = {
        "tokens": before["tokens"] + new_tokens,
        "flops": before["flops"] + flops.sampling + flops.learning,
        "seconds": before["seconds"] + end - begin,
    }
    run.counters = counters | {"totals": totals}
    sample, learning = collected - begin - own["seconds/grade"], end - collected - logging
    seconds = {"seconds/sample": sample, "seconds/learn": learning, "seconds/log": logging}
    speed = speeds(new_tokens, trained, flops, sample, learning)
    rows = schedule.rollouts_until(config, step)
    host = {"step": step, "stage": stage.name, "rollouts": rows} | totals | own | seconds | speed
    run.held = {"host": host, "device": device, "samples": rollouts.samples}
    _report(run, rollouts.errors)
    if not fault_F.any():
        return None
    names = fault_names(run.state.params, run.state.critic_params)
    bad = [name for name, fault in zip(names, fault_F, strict=True) if fault]
    more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
    return f"{bad[0]}{more} not finite, updates stopped there"


def _collect(run: _Run, step: int, stage: Stage) -> tuple[Rollouts, dict[str, Any]]:
    """Samples and grades the fresh rows of a step; and the counters, moved past its problems."""
    setup, config, vocabulary = run.setup, run.setup.config, run.setup.vocabulary
    draw, counters = draw_problems(config, setup.train, setup.prefixes, run.counters, step)
    flight, how = None, (setup.scorer, setup.mesh, config.samples_per_step)
    if config.own_rows:
        carry, wanted = schedule.carried(config, step), schedule.fresh_groups(config, step)
        slots = stage.fresh_groups + carry, config.prompt_slots
        tokens_QP, length_Q = prompt_batch(draw.prompts, *slots, vocabulary.pad_id)
        row_B = np.arange(slots[0] * config.own_rows, dtype=np.int32)
        prompts = Prompts(tokens_QP, length_Q, row_B, row_B < len(draw.prompts) * config.own_rows)
        if carry:
            held = jax.device_get(run.state.in_flight)
            prompts = in_flight.resumed(prompts, held, wanted, config)
        key = jax.random.fold_in(streams.key(config.seed, "sampling"), step)
        # The sampler is waited for, so that grading is not charged with sampling.
        with device_memory.phase("sampling"):
            params = run.state.whole(run.state.params)
            sampled = run.samplers.rollout[stage.name](params, prompts, key)
        if carry:
            how_many = wanted, stage, config, step
            flight = in_flight.landed(sampled, draw, prompts, held, *how_many)
            sampled, draw = flight.sampled, flight.draw
        lag_B, masks = flight.lag_B if flight else None, config.objective.mask_truncated
        graded = grade_rollouts(sampled, draw, vocabulary, config.own_rows, *how, lag_B, masks)
    else:
        graded = Rollouts(None, {"new_tokens": 0, "seconds/grade": 0.0}, [], [], {})
    if setup.traces:
        bank, pad_id = setup.traces, vocabulary.pad_id
        expert = expert_rows(draw, bank, stage, config, pad_id, setup.mesh)
        graded = graded._replace(expert=expert)
    if flight:
        there = jax.tree.map(lambda x: put(x, setup.mesh), flight.in_flight)
        graded = graded._replace(in_flight=there)
        graded.metrics["new_tokens"] = flight.new_tokens
        graded.metrics["carried"] = float((flight.lag_B > 0).mean())
    if config.own_rows:
        graded.metrics.update(decoding_metrics(sampled, graded.metrics["new_tokens"]))
    return graded, counters | {"in_flight": flight.places if flight else []}


def _evaluate(run: _Run) -> None:
    """Held-out figures of the state. On Preempted the step's figures travel in the checkpoint."""
    begin, s, held = time.perf_counter(), run.setup, run.held
    assert held is not None
    params = run.state.whole(run.state.params)
    given = params, s.suites, s.validation, s.vocabulary, s.config, s.scorer
    try:
        with device_memory.phase("evaluation"):
            found, samples = held_out(run.samplers.evaluate, *given)
    except Preempted:
        device = jax.tree.map(np.ndarray.tolist, jax.device_get(held["device"]))
        run.counters, run.held = run.counters | {"unwritten": held | {"device": device}}, None
        raise
    held["held_out"] = samples
    held["host"] |= found | {"seconds/eval": time.perf_counter() - begin}


def _write(run: _Run) -> None:
    """Fetches and writes the figures that are held, without what was not measured."""
    held, run.held = run.held, None
    if held is None or not run.sinks:
        return
    host, device = dict(held["host"]), jax.device_get(held["device"])
    step, shown, rows = host.pop("step"), device.pop("shown", None), held["samples"]
    if shown is not None:
        rows = with_tokens(rows, shown, run.setup.train, run.setup.vocabulary)
    rows = [*rows, *held.get("held_out", ())]
    figures = {name: float(value) for name, value in device.items()}
    absent = {f"/age{n[8:]}" for n in figures if n.startswith("rows/age") and not figures[n]}
    absent |= {"kl_prev"} if figures.get("kl_weight") == 1 else set()
    figures = {n: v for n, v in figures.items() if not n.endswith(tuple(absent))}
    for each in run.sinks:
        each.samples(step, rows)
        each.write(step, host | figures)
    if HELD_OUT in host and time.monotonic() >= run.draw_after:
        _draw(run)


def _draw(run: _Run) -> None:
    """Writes report.html, where this process writes; what keeps it from that is said once.

    The whole record is read for it: the next one waits for 20 times as long as that took.
    """
    if not (run.sinks and run.artifacts):
        return
    begin = time.monotonic()
    try:
        page.write({run.mirror.name: run.mirror.local}, run.mirror.local / page.PAGE)
    except Exception as error:  # nothing that is for people alone may end a run
        _say(run, f"{page.PAGE}: {one_line(error)}")
    end = time.monotonic()
    run.draw_after = end + 20 * (end - begin)


def _save(run: _Run) -> None:
    """A checkpoint, after which not a line of its step is missing in the files; none of step 0."""
    step = int(run.state.step)
    if step == 0:
        return
    try:
        _write(run)
        for record in run.sinks[:1]:
            record.sync()
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
    run.checkpoints.save(step, run.state.replace(frozen=None), host)


def _report(run: _Run, rewards: Mapping[str, str]) -> None:
    """One line for each new thing that went wrong: in files and trackers, in reward functions."""
    errors = [error for each in run.sinks for error in each.errors]
    wrong = {e: e for e in (*errors, run.mirror.error, run.checkpoints.error) if e}
    for name, line in rewards.items():
        wrong[f"reward {name}"] = f"reward {name}: {line} (this and more: reward_errors/{name})"
    for what, line in wrong.items():
        _say(run, line, what)


def _say(run: _Run, line: str, what: str = "") -> None:
    """An event of the console, the first time that there is one of `what`, by default the line."""
    if (what or line) not in run.reported:
        run.reported.add(what or line)
        run.console.event(line)


def _finish(run: _Run, fault: str | None) -> Outcome:
    """The last state is saved where it is good; what a run leaves at its end, and how it ended."""
    _write(run)
    if fault is None:
        _save(run)
    run.checkpoints.wait()
    for each in run.sinks:
        each.close()
    _report(run, {})
    done, config = int(run.state.step), run.setup.config
    preempted = signal.SIGTERM in run.stop.agreed
    if done == 0:
        run.console.event("ended before the first step; the same command begins anew")
    elif run.artifacts and not preempted:
        outputs.leave(run.setup, run.state, run.mirror, run.console, export=fault is None)
    _draw(run)
    if fault is not None:
        good = run.checkpoints.newest_step()
        kept = f"the checkpoint of step {good} is good" if good else "there is no checkpoint yet"
        of_critic = "value loss" in fault or "critic" in fault
        rate = config.rates[of_critic] / 2
        field = f"{'critic.' if of_critic else ''}optimizer.learning_rate"
        raise FaultError(f"{fault}; {kept}", f"{field}={rate:g}", good)
    if run.checkpoints.error:
        raise SaveError(run.checkpoints.error)
    if run.strict and (warned := processes.from_first(sorted(run.warned))):
        raise UnhealthyError(warned)
    written = read_metrics(run.mirror.local) if processes.is_first() else []
    return Outcome(written, done < config.steps or preempted, preempted)
