"""What every experiment's main shares: flags over config files, errors as one line, exit codes.

Exit code 2: wrong input (a flag, a config value, a directory, a data row), said in one line.
Exit code 1: the run itself failed, for example a loss that is not finite, or a disk that is full.
Exit code 3: --strict, and a rule of health held (docs/metrics.md); what was done is saved.
Exit code 75: SIGTERM came, the state is saved; the same command continues.
"""

import os
import pathlib
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence

import jax
from absl import app, flags, logging

from experiments import config_flag, multiprocess
from remix_jax.device_memory import OutOfMemoryError
from remix_jax.errors import InputError
from remix_jax.run.checkpoint import SaveError
from remix_jax.run.loop import FaultError, Outcome, UnhealthyError
from remix_jax.text import one_line


class Stopped(Exception):
    """Ctrl-C: what is finished is kept, the same command continues."""


def define_processes() -> Callable[[], None]:
    """The flags that tell of other processes, and what joins them (before a device is used)."""
    coordinator = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0")
    count = flags.DEFINE_integer("num_processes", None, "with --coordinator: how many there are")
    index = flags.DEFINE_integer("process_id", None, "with --coordinator: which this one is")
    given = flags.DEFINE_bool(
        "distributed",
        False,
        "join the other processes of a TPU pod or a cluster that JAX knows; Slurm needs no flag",
    )
    return lambda: multiprocess.start(coordinator.value, count.value, index.value, given.value)


def run(
    experiment: Callable[..., None], required: Sequence[str] = (), takes_arguments: bool = False
) -> None:
    """Parses the flags and runs an experiment, perhaps with what is no flag. Does not return."""

    def parse(argv):
        try:
            if config_flag.NAME in flags.FLAGS:
                config_flag.check(argv[1:])
            return flags.FLAGS(argv)
        except flags.UnrecognizedFlagError as error:
            _refuse(config_flag.unknown_flag(error))
        except (flags.Error, KeyError, TypeError, ValueError, OSError) as error:
            _refuse(one_line(error))

    def body(argv):
        if len(argv) > 1 and not takes_arguments:
            _refuse(f"unexpected argument {argv[1]!r}: every argument is a --flag=value")
        for name in required:
            if flags.FLAGS[name].value is None:
                _refuse(f"--{name} is required")
        cache_compilations()
        try:
            experiment(*argv[1:])
        except Stopped:
            print("stopped; the same command continues")
        except InputError as error:
            _refuse(str(error))
        except FaultError as error:
            spec = sys.modules["__main__"].__spec__
            module = spec.name if spec is not None else sys.argv[0]
            arguments = *sys.argv[1:], f"--config.{error.override}"
            again = shlex.join(["python", "-m", module, *arguments])
            _end(f"failed: {error}; to go on from there with a lower rate: {again}", 1)
        except UnhealthyError as error:
            _end(f"{error}; without --strict the same command continues", 3)
        except (OutOfMemoryError, SaveError, OSError) as error:
            _end(f"failed: {one_line(error, 2000)}", 1)
        except Exception as error:
            if not jax.distributed.is_initialized():
                raise
            traceback.print_exc()
            _end(f"failed: {type(error).__name__}: {one_line(error)}", 1)

    logging.set_verbosity(logging.FATAL)  # orbax logs every file it writes, and tracebacks
    app.run(body, flags_parser=parse)


def _refuse(message: str):
    _end(f"error: {message}", 2)


def _end(message: str, code: int):
    if not jax.distributed.is_initialized():
        print(message, file=sys.stderr)
        sys.exit(code)
    print(f"process {jax.process_index()} of {jax.process_count()}: {message}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    # An orderly end would wait for the others, who may wait for this one. They notice and end too.
    os._exit(code)


def profile_window(text: str | None, steps: int) -> tuple[int, int] | None:
    """The first step to trace and how many, as START,STEPS of a flag.

    Raises:
      InputError: it is no such pair, or lies outside of the run.
    """
    if text is None:
        return None
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
        raise InputError(f"--profile={text}: must be START,STEPS, as in --profile=5,2")
    start, count = map(int, parts)
    if start < 1 or count < 1 or start + count - 1 > steps:
        raise InputError(f"--profile={text}: must be steps within 1 to {steps}")
    return start, count


def leave(outcome: Outcome) -> None:
    """Ends the process where a run was preempted: whoever started it may start it again."""
    if outcome.preempted:
        sys.exit(os.EX_TEMPFAIL)


def cache_compilations() -> None:
    """Compiled programs are kept between runs: a second start saves most of its first seconds."""
    cache = pathlib.Path(__file__).resolve().parent.parent / ".cache" / "jax"
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
