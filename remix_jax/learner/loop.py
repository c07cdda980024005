"""A run: rollout -> grade -> learn -> log -> evaluate -> save, and what is left when it ends."""

import contextlib
import json
import pathlib
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from remix_jax import config as configs
from remix_jax.config import Config
from remix_jax.errors import InputError
from remix_jax.evaluation import evaluate
from remix_jax.learner import programs as compiled
from remix_jax.learner.checkpoint import Checkpoints
from remix_jax.learner.cost import step_flops
from remix_jax.learner.prefixed import check_continued, draw_problems, first_cursors
from remix_jax.learner.programs import Programs
from remix_jax.learner.rollout import Rollouts, grade_rollouts, prompt_batch
from remix_jax.learner.setup import Setup, claim, memory_plan, plan, prepare
from remix_jax.learner.state import TrainState, fault_names
from remix_jax.models import huggingface
from remix_jax.reporting import plotting, report
from remix_jax.reporting.console import Console
from remix_jax.reporting.metrics import MetricsWriter, SamplesWriter, read_metrics, truncate_after
from remix_jax.rl import replay
from remix_jax.rl.schedules import kl_convex_weight


class FaultError(RuntimeError):
    """A loss or a gradient was not finite. The state before that update has been saved."""


class Outcome(NamedTuple):
    """How a run ended."""

    metrics: list[dict[str, Any]]
    stopped: bool  # by Ctrl-C, before the last step


class _Record:
    """Metrics and samples of the newest step, written while the device works on the next one."""

    def __init__(self, metrics: MetricsWriter, samples: SamplesWriter) -> None:
        self._metrics, self._samples = metrics, samples
        self._held: tuple[dict, dict[str, jax.Array], list[dict]] | None = None

    def hold(self, host: dict, device: dict[str, jax.Array], samples: list[dict]) -> None:
        """Keeps a step's figures until `flush`."""
        self._held = host, device, samples

    def flush(self) -> None:
        """Fetches and writes what is held."""
        if self._held is None:
            return
        (host, device, samples), self._held = self._held, None
        fetched = jax.device_get(device)
        ratios = fetched.pop("row_ratio_B", ())
        for sample, ratio in zip(samples, ratios, strict=False):
            self._samples.write({"step": host["step"]} | sample | {"mean_ratio": float(ratio)})
        figures = {name: float(value) for name, value in fetched.items()}
        if figures.get("kl_weight") == 1:  # the precedent has no weight and was not scored
            figures.pop("kl_prev", None)
        absent = {f"/age{n[8:]}" for n in figures if n.startswith("rows/age") and not figures[n]}
        kept = {n: v for n, v in figures.items() if not any(n.endswith(a) for a in absent)}
        self._metrics.write(host | kept)


def run(
    config: Config,
    workdir: str | pathlib.Path,
    console: Console | None = None,
    artifacts: bool = True,
) -> Outcome:
    """Trains as the config says; everything it leaves lies in `workdir`.

    config.json, metrics.jsonl, samples.jsonl, tensorboard/, checkpoints/, and at the end figures/,
    ledger.json and export/, a Hugging Face directory. A workdir that holds the same run is
    continued from its newest checkpoint. Ctrl-C ends after the running step, all written.

    Args:
      artifacts: whether to leave figures, ledger and the exported policy at the end; one of many
        runs that are compared needs none of them.

    Raises:
      InputError: before anything is compiled or written: config, model, problems or workdir.
      FaultError: a loss or gradient was not finite.
    """
    workdir = pathlib.Path(workdir)
    setup = prepare(config)
    claim(workdir, config)
    if console is None:
        console = Console(config.steps, configs.planned_rollouts(config))
    directory = workdir / "checkpoints"
    with (
        contextlib.closing(console),
        setup.grader,
        Checkpoints(directory, config.keep_checkpoints) as checkpoints,
        _stop_on_interrupt(console) as stop,
    ):
        return _run(setup, workdir, console, checkpoints, stop, artifacts)


def _run(
    setup: Setup,
    workdir: pathlib.Path,
    console: Console,
    checkpoints: Checkpoints,
    stop: Callable[[], bool],
    artifacts: bool,
) -> Outcome:
    console.print_plan(plan(setup))
    programs = _compile(setup, console)
    state, counters = setup.state, _first_counters(setup)
    restored = checkpoints.restore(state)
    if restored is not None:
        state, counters = _continued(setup, *restored)
        console.event(f"continuing after step {int(state.step)}")
    truncate_after(workdir, int(state.step))
    fault = None
    with MetricsWriter(workdir, console) as metrics, SamplesWriter(workdir) as samples:
        record = _Record(metrics, samples)
        if restored is None:
            first = {"step": 0, "rollouts": 0} | counters["totals"]
            record.hold(first | _evaluate(setup, programs, state), {}, [])
        for step in range(int(state.step) + 1, setup.config.steps + 1):
            if stop():
                break
            if _reincarnates(setup.config, step):
                console.event(f"step {step}: reincarnation, base anchor <- policy, on-policy now")
                state = programs.reincarnate.call(state)
            state, counters, fault = _step(setup, programs, record, state, counters, step, stop)
            if fault or _due(setup.config.checkpoint_every, step):
                checkpoints.save(step, state, counters)
            if fault:
                break
        record.flush()
    finished = int(state.step)
    if finished > 0:
        checkpoints.save(finished, state, counters)
        if artifacts:
            _leave(setup, workdir, console, state)
    if fault:
        raise FaultError(f"step {finished}: {fault}; the last good state is in {workdir}")
    return Outcome(read_metrics(workdir), finished < setup.config.steps)


def _first_counters(setup: Setup) -> dict[str, Any]:
    """What a checkpoint holds beside the state: totals, and the place among the problems."""
    traces = 0.0 if setup.prefixes is None else setup.prefixes.flops
    totals = {"tokens": 0, "flops": traces, "seconds": 0.0}
    places = first_cursors(setup.config, setup.prefixes)
    return {"totals": totals, "problems": len(setup.train.problems)} | places


def _continued(setup: Setup, state: TrainState, counters: dict[str, Any]):
    """The restored state and counters, if the training problems are those of the checkpoint."""
    known = len(setup.train.problems)
    if counters["problems"] != known:
        raise InputError(
            f"{setup.config.data.train}: holds {known:,} problems, the run to be continued had "
            f"{counters['problems']:,}: continue with the file that it was started with"
        )
    check_continued(setup.config, setup.prefixes, counters)
    return state, counters


def _compile(setup: Setup, console: Console) -> Programs:
    begin = time.perf_counter()
    vocabulary = setup.vocabulary
    stages = configs.stages(setup.config).values()
    programs = compiled.build(setup.learner, stages, vocabulary.eos_ids, vocabulary.pad_id)
    console.print_plan(memory_plan(setup, programs), title="Memory of a device")
    console.event(f"compiled in {time.perf_counter() - begin:.0f} s")
    settings = compiled.sampler_settings(setup.config)
    if settings.truncates and not setup.config.sampling.correct_truncation:
        console.event(
            "top_k, top_p or min_p truncates the sampling distribution and the ratios do not know "
            "it: the gradient is biased by sampler_gap (sampling.correct_truncation corrects)"
        )
    return programs


def _reincarnates(config: Config, step: int) -> bool:
    """Whether this is step T + 1."""
    return config.reincarnation_step > 0 and step == config.reincarnation_step + 1


def _step(setup, programs: Programs, record: _Record, state, counters, step: int, stop):
    """One step of the run: the new state and counters, and what was not finite, if anything."""
    config = setup.config
    stage = configs.stage_at(config, step)
    begin = time.perf_counter()
    rollouts, counters = _collect(setup, programs, state, step, counters)
    collected = time.perf_counter()
    replayed = config.batch_groups - configs.fresh_groups(config, step)
    learn = programs.learn[stage].call
    state, device = learn(state, rollouts.rows, jnp.asarray(replayed, jnp.int32))
    dispatched = time.perf_counter()
    record.flush()  # the step before, while the device learns
    logging = time.perf_counter() - dispatched
    fault_F = np.asarray(state.fault_F)  # waits for the device
    end = time.perf_counter()
    own, before = rollouts.metrics, counters["totals"]
    seconds = {
        "seconds/sample": collected - begin - own["seconds/grade"],
        "seconds/learn": end - collected - logging,
        "seconds/log": logging,
    }
    totals = {
        "tokens": before["tokens"] + own["new_tokens"],
        "flops": before["flops"] + _flops(setup, step, own["new_tokens"]),
        "seconds": before["seconds"] + end - begin,
    }
    counters = counters | {"totals": totals}
    rows = configs.rollouts_until(config, step)
    speed = {"tokens_per_second": own.pop("new_tokens") / seconds["seconds/sample"]}
    host = {"step": step, "stage": stage, "rollouts": rows} | totals | own | seconds | speed
    if _due(config.evaluation.every, step) or step == config.steps or stop():
        host |= _evaluate(setup, programs, state)
    record.hold(host, device, rollouts.samples[: config.samples_per_step])
    return state, counters, _describe_fault(state, fault_F)


def _flops(setup: Setup, step: int, new_tokens: float) -> float:
    config, kl = setup.config, setup.config.kl
    stage = configs.stages(config)[configs.stage_at(config, step)]
    weight = kl_convex_weight(step, kl.start, kl.every, kl.drop, kl.floor) if kl.convex else 1.0
    return step_flops(setup.learner, config, stage, new_tokens, float(weight))


def _due(every: int, step: int) -> bool:
    return every > 0 and step % every == 0


def _collect(
    setup: Setup, programs: Programs, state: TrainState, step: int, counters: dict[str, Any]
) -> tuple[Rollouts, dict[str, Any]]:
    """Samples and grades the fresh rows of a step; and the counters, moved past its problems."""
    config, vocabulary = setup.config, setup.vocabulary
    stage = configs.stages(config)[configs.stage_at(config, step)]
    groups = configs.fresh_groups(config, step)
    before = configs.rollouts_until(config, step - 1) // config.group_size
    draw, counters = draw_problems(config, setup.train, setup.prefixes, counters, step)
    width = config.prompt_slots
    tokens_QP, length_Q = prompt_batch(draw.prompts, stage.fresh_groups, width, vocabulary.pad_id)
    row_B = np.arange(stage.fresh_groups * config.group_size, dtype=np.int32)
    inputs = (tokens_QP, length_Q, row_B, row_B < groups * config.group_size)
    key = jax.random.fold_in(jax.random.key(config.seed + 1), step)
    sampled = programs.sample[stage.name].call(state.params, *map(jnp.asarray, inputs), key)
    jax.block_until_ready(sampled)  # so that grading is not charged with sampling
    graded = grade_rollouts(
        sampled, draw, vocabulary, config.group_size, first_group=before, pool=setup.grader
    )
    return graded, counters


def _evaluate(setup: Setup, programs: Programs, state: TrainState) -> dict[str, float]:
    begin = time.perf_counter()
    figures = evaluate(
        programs.evaluate,
        state.params,
        setup.suites,
        setup.validation,
        setup.vocabulary,
        setup.config,
        setup.grader,
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
    ledger = _ledger(state)
    (workdir / "ledger.json").write_text(json.dumps(ledger, indent=2) + "\n")
    metrics = read_metrics(workdir)
    plotting.figures(metrics, workdir / "figures")
    export = workdir / "export"
    huggingface.save(setup.learner.policy, state.params, export, like=setup.config.model.path)
    console.close()
    console.print(report.final_table(metrics))
    console.print(report.ledger_table(ledger))
    console.event(f"figures, ledger.json and the policy (export) are in {workdir}")


def _ledger(state: TrainState) -> list[dict[str, Any]]:
    """What became of every row generated: the fates of those that left and of those still held."""
    left_U = state.replay.fates_U
    fates_U = np.asarray(left_U + replay.fates(state.replay.rows, left_U.shape[0]))
    names = ["zero signal: all rewards of its group equal", "not trained on"]
    names += [f"trained on in {u} pass{'es' if u > 1 else ''}" for u in range(1, len(fates_U) - 1)]
    total = int(fates_U.sum())
    return [
        {"fate": name, "rows": int(rows), "share": int(rows) / total}
        for name, rows in zip(names, fates_U, strict=True)
        if rows
    ]


@contextlib.contextmanager
def _stop_on_interrupt(console: Console) -> Iterator[Callable[[], bool]]:
    """A function that tells whether Ctrl-C was pressed; a second Ctrl-C interrupts at once."""
    requested = False

    def request(signum, frame):
        nonlocal requested
        if requested:
            raise KeyboardInterrupt
        requested = True
        console.event("stopping after this step (Ctrl-C again stops at once)")

    try:
        previous = signal.signal(signal.SIGINT, request)
    except ValueError:  # not the main thread: whoever runs us there handles signals
        yield lambda: False
        return
    try:
        yield lambda: requested
    finally:
        signal.signal(signal.SIGINT, previous)
