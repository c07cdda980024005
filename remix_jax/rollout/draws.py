"""Which problems a step asks: an endless sequence of whole epochs, and prefixes beside it."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from remix_jax import schedule
from remix_jax.config import Config
from remix_jax.data.problems import Problem
from remix_jax.data.tasks import ProblemSet
from remix_jax.errors import InputError
from remix_jax.rl.prefixes import prefixed_units
from remix_jax.rollout.prefixed import Prefix, Prefixes


class Draw(NamedTuple):
    """The groups of a step: problem, prompt (with its prefix, if any), prefix."""

    problems: list[Problem]
    prompts: list[list[int]]
    prefixes: list[Prefix | None]


@dataclasses.dataclass(frozen=True)
class Cursor:
    """Where training stands in the endless sequence of problems; plain data, saved as it is.

    The sequence is `order(seed, 0, n)` followed by `order(seed, 1, n)` and so on; `position` counts
    the problems already taken from the current epoch, 0 <= position < n.
    """

    seed: int
    epoch: int = 0
    position: int = 0


def order(seed: int, epoch: int, n_problems: int) -> np.ndarray:
    """The order of an epoch: a permutation of range(n_problems), int64, fixed by its arguments."""
    return np.random.default_rng((seed, epoch)).permutation(n_problems)


def take(cursor: Cursor, n_problems: int, count: int) -> tuple[np.ndarray, Cursor]:
    """The next `count` problem indices [count] and the cursor after them.

    Every problem comes exactly once per epoch; a batch may reach into the next epoch.

    Raises:
      InputError: the cursor lies outside the problem set (it was saved with another one).
    """
    if not 0 <= cursor.position < n_problems:
        raise InputError(
            f"the saved position {cursor.position} does not fit a training set of {n_problems} "
            "problems: resume with the problem file that the run was started with"
        )
    pieces, epoch, position = [], cursor.epoch, cursor.position
    while count > 0:
        piece = order(cursor.seed, epoch, n_problems)[position : position + count]
        pieces.append(piece)
        count -= len(piece)
        position += len(piece)
        if position == n_problems:
            epoch, position = epoch + 1, 0
    indices = np.concatenate(pieces) if pieces else np.zeros((0,), np.int64)
    return indices, Cursor(cursor.seed, epoch, position)


def first_cursors(config: Config, prefixes: Prefixes | None) -> dict[str, Any]:
    """Where a run starts among its problems and prefixes, as a checkpoint holds it."""
    cursor = dataclasses.asdict(Cursor(config.seed))
    if prefixes is None:
        return {"cursor": cursor}
    return {"cursor": cursor, "prefix_cursor": cursor, "prefixes": prefixes.digest}


def check_continued(config: Config, prefixes: Prefixes | None, saved: dict[str, Any]) -> None:
    """A run goes on with the prefixes that it was started with.

    Raises:
      InputError: the bank gives others now.
    """
    if prefixes is not None and saved["prefixes"] != prefixes.digest:
        raise InputError(
            f"config.prefix.bank = {config.prefix.bank!r}: gives other prefixes than the run to be "
            "continued had: continue with the bank that it was started with"
        )


def draw_problems(
    config: Config,
    train: ProblemSet,
    prefixes: Prefixes | None,
    saved: dict[str, Any],
    step: int,
) -> tuple[Draw, dict[str, Any]]:
    """The problems of a step's groups, the prefixed ones first; and the cursors after them.

    Problems and prefixes are two endless sequences, each of which comes round in whole epochs.

    Args:
      saved: what `first_cursors` gave, or the step before; other entries are left as they are.
    """
    groups = schedule.fresh_groups(config, step)
    chosen: list[Prefix | None] = []
    if prefixes is not None:
        before = schedule.groups_until(config, step - 1)
        count = prefixed_units(before, before + groups, config.prefix.share)
        places, cursor = take(Cursor(**saved["prefix_cursor"]), len(prefixes.items), count)
        chosen = [prefixes.items[i] for i in places]
        saved = saved | {"prefix_cursor": dataclasses.asdict(cursor)}
    plain, cursor = take(Cursor(**saved["cursor"]), len(train.problems), groups - len(chosen))
    of_group = [prefix.problem for prefix in chosen if prefix is not None] + plain.tolist()
    chosen += [None] * len(plain)
    prompts = [
        train.prompts[i] + (list(prefix.ids) if prefix else [])
        for i, prefix in zip(of_group, chosen, strict=True)
    ]
    problems = [train.problems[i] for i in of_group]
    return Draw(problems, prompts, chosen), saved | {"cursor": dataclasses.asdict(cursor)}
