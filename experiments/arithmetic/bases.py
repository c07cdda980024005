"""Independently made base models: the shipped one, and others from the same recipe."""

import pathlib

from experiments import trials
from experiments.arithmetic import make_base
from remix_jax.errors import InputError

SHIPPED = make_base.HERE / "base"
_TRIED = 8  # seeds beside the shipped one


def bases(count: int, directory: pathlib.Path, workers: int) -> list[pathlib.Path]:
    """Model directories of `count` bases: the shipped one, then seeds 1, 2, ... past the gates.

    They lie in directory/SEED/base and are made once. Their misconceptions differ; the problems
    are those of the shipped base for all of them.

    Raises:
      InputError: too few seeds give a base that passes the gates.
    """
    seeds = range(1, _TRIED + 1)
    while True:
        good = [SHIPPED, *(directory / f"{s}/base" for s in seeds if _verdict(directory, s))]
        if len(good) >= count:
            return good[:count]
        untried = [seed for seed in seeds if _verdict(directory, seed) is None]
        if not untried:
            raise InputError(f"--bases={count}: {len(good)} of seeds 0 to {_TRIED} pass the gates")
        tasks = [(directory, seed) for seed in untried[: count - len(good)]]
        trials.map_in_processes(_make, tasks, min(workers, len(tasks)), "base models")


def _verdict(directory: pathlib.Path, seed: int) -> bool | None:
    """Whether the base of a seed passed; None before it was made."""
    path = directory / str(seed) / "gates.txt"
    return path.read_text() == "passed\n" if path.exists() else None


def _make(directory: pathlib.Path, seed: int) -> str:
    out = directory / str(seed)
    try:
        make_base.make(out, seed)
        verdict = "passed"
    except InputError:
        verdict = "failed"
    (out / "gates.txt").write_text(f"{verdict}\n")
    return f"base model of seed {seed}: gates {verdict}"
