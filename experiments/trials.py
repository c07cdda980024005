"""Many small runs: each in a directory of its own, several at a time, none of them twice.

On a CPU a small policy leaves most of a second core idle, so each worker process gets one core of
its own: two runs side by side take little longer than one. Where JAX has an accelerator there is
one worker, this process.
"""

import concurrent.futures
import dataclasses
import itertools
import multiprocessing
import os
import pathlib
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
from absl import flags
from rich.console import Console as Terminal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from experiments import main
from experiments.report import results
from experiments.report.results import Tuned
from remix_jax import config as configs
from remix_jax import config_rules, schedule
from remix_jax.config import Config
from remix_jax.data import tasks
from remix_jax.errors import InputError
from remix_jax.learner.state import static_of
from remix_jax.run import loop, report
from remix_jax.sinks.console import Console
from remix_jax.sinks.metrics import METRICS_FILE, Metrics, read_metrics

LOG_FILE, FAILED_FILE = "log.txt", "failed"
MALLOC = pathlib.Path(__file__).resolve().parents[1] / "launch" / "malloc.txt"


Key = tuple[str, float, int]  # method, learning rate, seed


@dataclasses.dataclass(frozen=True)
class Trial:
    """One run: a name, which is also its directory below the workdir, and its config."""

    name: str
    config: Config


class Done(NamedTuple):
    """What became of a run."""

    metrics: list[Metrics]
    broken: bool  # it ended before its last step, by a loss that is not finite

    def record(self, key: Key, **more: Any) -> dict[str, Any]:
        """What results keep of it (`results.record`)."""
        method, rate, seed = key
        identity: dict[str, Any] = {"method": method, "learning_rate": rate, "seed": seed}
        return results.record(self.metrics, broken=self.broken, **identity, **more)


def define_workers() -> Callable[[], int]:
    """The flag --workers, and what tells how many that are."""
    text = "runs at a time; 0: one a core on a CPU, else one"
    given = flags.DEFINE_integer("workers", 0, text, lower_bound=0)
    return lambda: given.value or _default_workers()


def _default_workers() -> int:
    """One a core on a CPU, one in all on an accelerator."""
    return len(os.sched_getaffinity(0)) if jax.default_backend() == "cpu" else 1


def learning_rates(given: Sequence[str]) -> tuple[float, ...]:
    """What --learning_rates lists, each once.

    Raises:
      InputError: nothing, or something else than numbers above 0.
    """
    try:
        rates = tuple(dict.fromkeys(float(rate) for rate in given))
    except ValueError:
        rates = ()
    if not rates or min(rates) <= 0:
        raise InputError(f"--learning_rates={','.join(given)}: must be numbers above 0")
    return rates


def check_seeds(seeds: int, tuning: int) -> None:
    """Raises InputError where fewer seeds are reported than a learning rate is chosen by."""
    if seeds < tuning:
        raise InputError(f"--seeds={seeds}: must be --tuning={tuning} or more")


def run(trials: Sequence[Trial], workdir: pathlib.Path, workers: int) -> dict[str, Done]:
    """Trains what is not finished yet and returns what became of every trial, by name.

    A run that ends by a loss that is not finite keeps what it recorded until then; its log.txt
    says so. With one worker each run shows its own panel, with more there is one line a run.

    Raises:
      InputError: wrong config, or a directory that holds another run.
      main.Stopped: Ctrl-C.
    """
    for trial in trials:
        config_rules.validate(trial.config)
    waiting = [t for t in trials if not finished(workdir / t.name, t.config)]
    if workers == 1:
        for trial in waiting:
            print(f"\n{trial.name}", flush=True)
            _train(trial, workdir, console=None)
    elif waiting:
        _in_processes(waiting, workdir, min(workers, len(waiting)))
    return {
        trial.name: Done(
            read_metrics(workdir / trial.name), (workdir / trial.name / FAILED_FILE).exists()
        )
        for trial in trials
    }


def tuned(
    data: dict[str, Any],
    load: type[Tuned],
    train: Callable[[list[Key]], list[dict[str, Any]]],
    seeds: int,
    tuning: int,
    equal: Iterable[tuple[str, float]] = (),
) -> dict[str, Any]:
    """Tunes methods alike: the grid on the first seeds, then all seeds at each one's best rate.

    Args:
      data: "methods" ({"name", ...}), "learning_rates" and what else `load` asks for.
      load: the class of the results, which says what the best rates are.
      train: the records of some trials.
      seeds: of each reported setting.
      tuning: that a rate is chosen by; with one rate all seeds.
      equal: further (method, learning rate) that get all seeds.
    Returns:
      The data with "selection_seeds" and "trials".
    """
    names = [method["name"] for method in data["methods"]]

    def records(wanted: set[Key]) -> list[dict[str, Any]]:
        return train(sorted(wanted, key=lambda key: (names.index(key[0]), *key[1:])))

    rates = data["learning_rates"]
    chosen_by = range(tuning) if len(rates) > 1 else range(seeds)
    grid = {(name, rate, seed) for name in names for rate in rates for seed in chosen_by}
    data = data | {"selection_seeds": list(chosen_by), "trials": records(grid)}
    settings = set(equal) | set(load(data).best.items())
    more = {(name, rate, seed) for name, rate in settings for seed in range(seeds)} - grid
    return data | {"trials": data["trials"] + records(more)}


def finished(directory: pathlib.Path, config: Config) -> bool:
    """Whether the directory holds this very run, and all of it."""
    saved = directory / "config.json"
    if not saved.exists() or not (directory / METRICS_FILE).exists():
        return False
    if saved.read_text() != configs.to_json(config):
        return False  # loop.run says what differs
    metrics = read_metrics(directory)  # nothing yet where it was stopped before its first step
    whole = bool(metrics) and metrics[-1]["step"] == config.steps
    return whole or (directory / FAILED_FILE).exists()


def map_in_processes(
    function: Callable[..., str], arguments: Sequence[tuple], workers: int, title: str
) -> None:
    """Calls function(*arguments) in worker processes of one core each, with a progress bar.

    Each result is a line that is printed when it comes. Raises what a call raised.
    """
    # Read by the C library when a worker starts: it keeps memory instead of faulting it in anew at
    # each step, 10 to 20 % of a learning phase on a CPU (docs/benchmark.md).
    os.environ.setdefault("GLIBC_TUNABLES", MALLOC.read_text().strip())
    context = multiprocessing.get_context("spawn")
    cores = context.Queue()
    for core in itertools.islice(itertools.cycle(sorted(os.sched_getaffinity(0))), workers):
        cores.put(core)  # one a worker, shared where there are more workers than cores
    pool = concurrent.futures.ProcessPoolExecutor(
        workers, mp_context=context, initializer=_own_core, initargs=(cores,)
    )
    terminal = Terminal(highlight=False)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
        TextColumn("remaining"), TimeRemainingColumn(elapsed_when_finished=True),
    )  # fmt: skip
    with Progress(*columns, console=terminal, disable=not sys.stdout.isatty()) as progress:
        bar = progress.add_task(title, total=len(arguments))
        futures = [pool.submit(function, *args) for args in arguments]
        try:
            for done in concurrent.futures.as_completed(futures):
                progress.console.print(done.result(), soft_wrap=True)
                progress.advance(bar)
        except KeyboardInterrupt:
            raise main.Stopped from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def about(config: Config, seconds: float, workers: int) -> dict[str, str]:
    """What a result was made with: command, commit, hardware, versions, time."""
    train = tasks.parse(config.data.train)
    return {
        "command": " ".join(["python -m", *_command()]),
        "commit": _commit(),
        "task": train.generator or pathlib.PurePath(train.path).parent.parent.name,
        "rollouts": f"{schedule.planned_rollouts(config):,} fresh a run",
        "hardware": f"{os.cpu_count()} cores, {_processor()}; {jax.devices()[0].device_kind}",
        "versions": f"Python {platform.python_version()}, jax {jax.__version__}",
        "wall time": f"{seconds / 60:.0f} min, {workers} runs at a time",
    }


def _command() -> list[str]:
    specification = sys.modules["__main__"].__spec__
    return [specification.name if specification else sys.argv[0], *sys.argv[1:]]


def _commit() -> str:
    call = ["git", "describe", "--always", "--dirty", "--abbrev=10"]
    root = pathlib.Path(__file__).resolve().parent
    done = subprocess.run(call, cwd=root, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def _processor() -> str:
    path = pathlib.Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _in_processes(waiting: Sequence[Trial], workdir: pathlib.Path, workers: int) -> None:
    # Each worker compiles what it meets: trials of one program side by side compile it once.
    ordered = sorted(waiting, key=lambda trial: repr(static_of(trial.config)))
    half = -(-len(ordered) // workers)
    shares = [ordered[i * half : (i + 1) * half] for i in range(workers)]
    queue = [t for turn in range(half) for share in shares for t in share[turn : turn + 1]]
    map_in_processes(_quietly, [(trial, workdir) for trial in queue], workers, "runs")


def _own_core(cores) -> None:
    """Binds a worker to one core, before JAX counts them; it ends when its parent does."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.sched_setaffinity(0, {cores.get()})
    main.cache_compilations()


def _end_with_parent() -> None:
    """Two processes that train in one directory would ruin each other's record."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _quietly(trial: Trial, workdir: pathlib.Path) -> str:
    """Trains with its messages in a file; a line about how it went."""
    begin = time.perf_counter()
    directory = workdir / trial.name
    directory.parent.mkdir(parents=True, exist_ok=True)
    log = directory.parent / f".{directory.name}.{LOG_FILE}"
    config = trial.config
    with log.open("a") as file:
        console = Console(config.steps, schedule.planned_rollouts(config), file=file)
        metrics = _train(trial, workdir, console)
    log.replace(directory / LOG_FILE)
    accuracy = report.curve(metrics, report.ACCURACY)[1][-1]
    seconds = time.perf_counter() - begin
    rows = metrics[-1]["rollouts"]
    failed = ", FAILED (log.txt)" if (directory / FAILED_FILE).exists() else ""
    return f"{trial.name}: {accuracy:.1%} after {rows:,} rollouts, {seconds:.0f} s{failed}"


def _train(trial: Trial, workdir: pathlib.Path, console: Console | None) -> list[Metrics]:
    """Trains; a run that shows itself on the terminal leaves all that a run can leave."""
    directory = workdir / trial.name
    try:
        if console is None:
            outcome = loop.run(trial.config, directory)
        else:
            outcome = loop.run(trial.config, directory, console, artifacts=False)
    except loop.FaultError as error:
        (directory / FAILED_FILE).write_text(f"{error}\n")
        return read_metrics(directory)
    main.leave(outcome)
    if outcome.stopped:
        raise main.Stopped
    return outcome.metrics
