"""The environment of torch, transformers and TRL, in which what we compare with runs."""

import pathlib
import subprocess
import sys
import time

from remix_jax.errors import InputError

ENVIRONMENT = pathlib.Path(__file__).resolve().parent.parent / ".cache" / "benchmark" / "peers"
REQUIREMENTS = ("torch==2.13.0", "trl==1.16.0", "transformers")


def python(directory: pathlib.Path = ENVIRONMENT) -> pathlib.Path:
    """The interpreter of the peers' environment, made if it is not there.

    Raises:
      InputError: it cannot be made; pip's last line says why.
    """
    found, stamp = directory / "bin" / "python", directory / "installed.txt"
    wanted = "\n".join(REQUIREMENTS) + "\n"
    if stamp.exists() and stamp.read_text() == wanted and found.exists():
        return found
    say(f"making {directory}: {', '.join(REQUIREMENTS)} (1.5 GB, some minutes, once)")
    _install([sys.executable, "-m", "venv", "--clear", str(directory)])
    pip = [str(found), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    torch, *others = REQUIREMENTS
    _install([*pip, torch])  # first and alone: whichever build pip is set up to find
    _install([*pip, torch, *others])
    stamp.write_text(wanted)
    return found


def _install(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        errors = [line for line in lines if line.lower().startswith("error")]
        raise InputError(f"the peers' environment cannot be made: {(errors or lines)[-1]}")


def say(text: str) -> None:
    """A line of progress, with the time."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)
