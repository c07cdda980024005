"""Which problems a step asks: an endless sequence of whole epochs, and prefixes beside it."""

import bisect
import functools
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from remix_jax import schedule
from remix_jax.config import Config
from remix_jax.data import traces
from remix_jax.data.problems import Problem
from remix_jax.data.tasks import ProblemSet
from remix_jax.errors import InputError
from remix_jax.models.hf_tokenizer import Vocabulary
from remix_jax.rl import schedules


class Prefix(NamedTuple):
    """The beginning of a trace that solved a problem (PrefixRL, arXiv 2601.18795).

    The policy is trained, on its own samples, to go on from it. It is context, as the prompt is: it
    lies in the prompt's slots, so that no loss, ratio, KL, entropy or length norm ever sees it, and
    a group is made of the responses to one (problem, cut).
    """

    problem: int  # its index in the training set
    ids: tuple[int, ...]
    share: float  # of the trace's tokens


class Cuts(NamedTuple):
    """Of one trace."""

    lengths: tuple[int, ...]  # of its prefixes, in tokens and ascending
    moved: int  # of these, drawn again further ahead: they had shown the answer
    dropped: int  # asked for and not to be had


class Prefixes(NamedTuple):
    """The prefixes of a run, drawn once, and what making them came to."""

    items: list[Prefix]
    traces: int  # problems of the training set with a trace
    moved: int  # cuts, as `Cuts` counts them
    dropped: int
    too_long: int  # prefixes over config.prefix.tokens, left out
    attempts: int  # responses that the whole bank took
    flops: float  # that these took

    @property
    def digest(self) -> str:
        """Equal where the prefixes are."""
        return hashlib.sha256(json.dumps(self.items).encode()).hexdigest()[:16]


class Draw(NamedTuple):
    """The groups of a step: problem, prompt (with its prefix, if any), prefix."""

    problems: list[Problem]
    prompts: list[list[int]]
    prefixes: list[Prefix | None]
    first: int = 0  # number of the first group in the run
    form: str = "boxed"  # of the answers (`rewards.FORMS`)
    places: Sequence[tuple[int, int | None]] = ()  # of each problem and prefix, to find them again


class Cursor(NamedTuple):
    """A place in the endless sequence `order(seed, 0, n)`, `order(seed, 1, n)`, ...; plain data."""

    seed: int
    epoch: int = 0
    position: int = 0  # problems already taken from the epoch, below n


def order(seed: int, epoch: int, n_problems: int) -> np.ndarray:
    """The order of an epoch: a permutation of range(n_problems), int64, fixed by its arguments."""
    return np.random.default_rng((seed, epoch)).permutation(n_problems)


def take(cursor: Cursor, n_problems: int, count: int) -> tuple[np.ndarray, Cursor]:
    """The next `count` problem indices [count], across epochs if need be, and the cursor then.

    Raises:
      InputError: the cursor lies outside the problem set (it was saved with another one).
    """
    seed, epoch, position = cursor
    if not 0 <= position < n_problems:
        raise InputError(
            f"the saved position {position} does not fit a training set of {n_problems} problems: "
            "resume with the problem file that the run was started with"
        )
    more, after = divmod(position + count, n_problems)
    epochs = [order(seed, epoch + i, n_problems) for i in range(more + 1)]
    return np.concatenate(epochs)[position : position + count], Cursor(seed, epoch + more, after)


def draw_cuts(
    seed: int,
    problem: int,
    length: int,
    count: int,
    low: float,
    high: float,
    shows: Callable[[int], bool],
) -> Cuts:
    """Cuts of a trace of `length` tokens, fixed by (seed, problem): drawn once and kept.

    Uniform without replacement over the whole numbers in [low, high] length that leave a token on
    either side. One that shows the answer is drawn again among those free that do not.

    Args:
      count: cuts wanted.
      low, high: in [0, 1].
      shows: whether the first so many tokens show the answer; a longer prefix shows no less.
    """
    rng = np.random.default_rng((seed, problem))
    first, last = max(math.ceil(low * length), 1), min(math.floor(high * length), length - 1)
    lengths = np.arange(first, last + 1)
    drawn = rng.choice(lengths, min(count, len(lengths)), replace=False)
    if not drawn.size or not shows(int(drawn.max())):
        return Cuts(tuple(sorted(drawn.tolist())), 0, count - len(drawn))
    safe = lengths[: bisect.bisect_left(lengths, True, key=lambda length: shows(int(length)))]
    kept = drawn[np.isin(drawn, safe)]
    free = np.setdiff1d(safe, kept)
    again = rng.choice(free, min(len(drawn) - len(kept), len(free)), replace=False)
    cuts = sorted([*kept.tolist(), *again.tolist()])
    return Cuts(tuple(cuts), len(again), count - len(cuts))


def load_prefixes(config: Config, train: ProblemSet, vocabulary: Vocabulary) -> Prefixes | None:
    """The prefixes of the training problems that the bank has a trace of; None without a bank.

    A prefix in which a box is opened shows the answer, whatever is in it.

    Raises:
      InputError: the bank is damaged, of another tokenizer, or has no prefix for these problems.
    """
    c = config.prefix
    if not c.bank:
        return None
    bank = traces.load(c.bank, traces.fingerprint(vocabulary.tokenizer))

    def shows(ids: tuple[int, ...], length: int) -> bool:
        return "\\boxed" in vocabulary.tokenizer.decode(list(ids[:length]))

    every: list[Prefix] = []
    solved = moved = dropped = 0
    for i, trace in enumerate(traces.traces_of(bank, train.problems)):
        if trace is None:
            continue
        ids, shown = trace.response, functools.partial(shows, trace.response)
        cuts = draw_cuts(config.seed, i, len(ids), c.cuts, c.low, c.high, shown)
        every += [Prefix(i, ids[:n], n / len(ids)) for n in cuts.lengths]
        solved, moved, dropped = solved + 1, moved + cuts.moved, dropped + cuts.dropped
    items = [prefix for prefix in every if len(prefix.ids) <= c.tokens]
    too_long = len(every) - len(items)
    if not items:
        raise InputError(
            f"config.prefix.bank = {c.bank!r}: gives no prefix of up to {c.tokens} tokens for the "
            f"problems of {config.data.train} ({too_long} are longer)"
        )
    return Prefixes(items, solved, moved, dropped, too_long, bank.attempts, bank.flops)


def prefix_plan(config: Config, prefixes: Prefixes, problems: int) -> dict[str, object]:
    """Lines of the plan; `problems`: of the training set."""
    made = f"{len(prefixes.items):,} of {prefixes.traces:,} traces ({problems:,} problems)"
    for count, why in (
        (prefixes.moved, "cut earlier: they showed the answer"),
        (prefixes.dropped, "not to be had"),
        (prefixes.too_long, f"over {config.prefix.tokens} tokens"),
    ):
        made += f"; {count:,} {why}" if count else ""
    return {
        "prefixes": made,
        "groups that start from a prefix": f"{config.prefix.share:.0%}",
        "spent on the traces": f"{prefixes.attempts:,} responses, {prefixes.flops:.3g} FLOPs",
    }


def first_cursors(config: Config, prefixes: Prefixes | None) -> dict[str, Any]:
    """Where a run starts among its problems and prefixes, as a checkpoint holds it."""
    cursor = Cursor(config.seed)._asdict()
    first: dict[str, Any] = {"cursor": cursor, "in_flight": []}
    if prefixes is None:
        return first
    return first | {"prefix_cursor": cursor, "prefixes": prefixes.digest}


def check_continued(config: Config, prefixes: Prefixes | None, saved: dict[str, Any]) -> None:
    """Raises InputError where the bank gives other prefixes than the run was started with."""
    if prefixes is not None and saved["prefixes"] != prefixes.digest:
        raise InputError(
            f"config.prefix.bank = {config.prefix.bank!r}: gives other prefixes than the run to be "
            "continued had: continue with the bank that it was started with"
        )


def draw_problems(
    config: Config, train: ProblemSet, prefixes: Prefixes | None, saved: dict[str, Any], step: int
) -> tuple[Draw, dict[str, Any]]:
    """The groups in flight in a step: those carried over, then new ones, the prefixed ones first.

    Problems and prefixes are two endless sequences, each of which comes round in whole epochs.
    `saved` is what `first_cursors` gave, or the step before; other entries stay as they are.
    """
    before, after = (
        schedule.groups_until(config, n) + schedule.carried(config, n) for n in (step - 1, step)
    )
    drawn: list[tuple[int, int | None]] = [(i, place) for i, place in saved["in_flight"]]
    chosen: list[Prefix] = []
    if prefixes is not None:
        chosen = prefixes.items
        count = schedules.prefixed_units(before, after, config.prefix.share)
        places, cursor = take(Cursor(**saved["prefix_cursor"]), len(prefixes.items), count)
        drawn += [(prefixes.items[i].problem, i) for i in places.tolist()]
        saved = saved | {"prefix_cursor": cursor._asdict()}
    others = len(saved["in_flight"]) + after - before - len(drawn)
    plain, cursor = take(Cursor(**saved["cursor"]), len(train.problems), others)
    drawn += [(i, None) for i in plain.tolist()]
    begins = [None if place is None else chosen[place] for _, place in drawn]
    prompts = [
        train.prompts[i] + (list(prefix.ids) if prefix else [])
        for (i, _), prefix in zip(drawn, begins, strict=True)
    ]
    problems = [train.problems[i] for i, _ in drawn]
    first = schedule.groups_until(config, step - 1)
    draw = Draw(problems, prompts, begins, first, train.form, drawn)
    return draw, saved | {"cursor": cursor._asdict()}
