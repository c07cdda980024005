"""The five benchmark sets: their names, their sizes, and where their files are looked for."""

import pathlib
from typing import NamedTuple

from remix_jax.data.problems import SUFFIXES
from remix_jax.errors import InputError

PREPARED_FOLDER, PREPARED_VERSION = "math_benchmarks", "1.0.0"  # as `tfds_builders` writes them


class Benchmark(NamedTuple):
    """A set of held-out problems."""

    file: str  # its file's name without the suffix
    problems: int  # in the set that the paper reports on


# In the order of `evaluation.BENCHMARKS`, which is that of the paper's tables.
BENCHMARKS = {
    "aime24": Benchmark("aime", 30),
    "amc23": Benchmark("amc", 83),
    "math500": Benchmark("math", 500),
    "minerva": Benchmark("minerva", 272),
    "olympiad_bench": Benchmark("olympiad_bench", 675),
}


def locate(directory: str | pathlib.Path, name: str) -> pathlib.Path:
    """The file of a set in `directory`, or its prepared directory below it.

    Raises:
      InputError: `name` is no set, or nothing of it is there; says what to put where.
    """
    if name not in BENCHMARKS:
        raise InputError(f"benchmark {name!r}: it can be {', '.join(BENCHMARKS)}")
    folder, (stem, problems) = pathlib.Path(directory).expanduser(), BENCHMARKS[name]
    prepared = folder / PREPARED_FOLDER / name / PREPARED_VERSION
    places = [folder / f"{stem}{suffix}" for suffix in SUFFIXES] + [prepared]
    for place in places:
        if place.exists():
            return place
    others = ", ".join(f".{suffix[1:]}" for suffix in SUFFIXES[1:])
    raise InputError(
        f"{folder}: nothing of {name} ({problems} problems) is there: put {stem}{SUFFIXES[0]} "
        f"(or {others}) into it, rows of `problem` and `answer`"
    )
