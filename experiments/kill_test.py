"""Kills runs at random moments, continues them, and compares them with runs that were never killed.

    python -m experiments.kill_test --kills=24 --workdir=runs/kill

Small runs of the arithmetic task, ReMix on PPO and on GRPO, through the mix stage, reincarnation
and after it, with answers that need the grading processes. Each attempt ends by SIGKILL at a random
moment of a random phase; the next one continues. In the end parameters, critic, moments, anchors,
replay, cursors, metrics (without seconds), samples, ledger and export must be equal to the last
bit. The result: WORKDIR/kill_test.json and a table.
"""

import collections
import json
import pathlib
import sys
import time

from absl import flags
from rich.console import Console as Terminal
from rich.table import Table

from experiments import kills, main

KILLS = flags.DEFINE_integer("kills", 24, "SIGKILLs in all, over as many runs as it takes", 1)
SEED = flags.DEFINE_integer("seed", 0, "of the moments")
WORKDIR = flags.DEFINE_string("workdir", "runs/kill", "new directory")


def table(result: dict) -> Table:
    """A line a run: its kills by phase, and whether it is the run that was not killed."""
    drawn = Table(title=f"{result['kills']} kills")
    phases = [kills.START, *kills.PHASES]
    for name in ("run", *phases, "half-written", "differs in"):
        drawn.add_column(name, justify="left" if name in ("run", "differs in") else "right")
    for run in result["runs"]:
        counts = collections.Counter(a["phase"] for a in run["attempts"])
        writing = sum(a["writing"] for a in run["attempts"])
        cells = [str(counts[phase]) for phase in phases]
        drawn.add_row(run["run"], *cells, str(writing), ", ".join(run["differences"]) or "nothing")
    return drawn


def kill_test() -> None:
    """The experiment behind the flags."""
    begin = time.perf_counter()
    workdir = pathlib.Path(WORKDIR.value).absolute()
    workdir.mkdir(parents=True)
    result = kills.survive(workdir, KILLS.value, SEED.value, list(kills.PRESETS))
    result["wall_seconds"] = round(time.perf_counter() - begin)
    (workdir / "kill_test.json").write_text(json.dumps(result, indent=2) + "\n")
    Terminal(width=None if sys.stdout.isatty() else 140).print(table(result))
    if any(run["differences"] for run in result["runs"]):
        sys.exit(1)


if __name__ == "__main__":
    main.run(kill_test)
