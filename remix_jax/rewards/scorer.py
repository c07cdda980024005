"""From responses to rewards: the functions of a config, each called, weighted and counted."""

import atexit
import collections
import functools
import json
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from math_grader.pool import Reply, WorkerPool
from remix_jax import plugins
from remix_jax.errors import InputError
from remix_jax.rewards import builtins, functions
from remix_jax.rewards.functions import WHERE, Item, Part

if TYPE_CHECKING:
    from remix_jax.data.problems import Problem

FORMS = {"boxed": "math", "hash": "gsm8k", "reasoning_gym": "reasoning_gym"}
"""What scores a set by the form of its answers, where the config names no function."""

_BATCH = 16  # items a call of a user's function, at most
_MEMORY = 16 << 30  # bytes of address space of a user's functions


class Score(NamedTuple):
    """What a response is worth, and why. Plain data: it goes through JSON and back.

    `correct`, `answer` and `reason` are of the first function that says what correct is.
    """

    reward: float  # the weighted sum of `parts`
    correct: bool | None
    parts: dict[str, float | None]  # by function; 0 of one that failed, None of one left out
    answer: str | None  # read from the response
    reason: str  # "match", "wrong", or why nothing was read
    errors: dict[str, str]  # the first line of each function that failed


class _Function(NamedTuple):
    name: str  # in metrics
    spec: str
    weight: float
    call: Callable[[Sequence[Item]], list[Part]]
    digest: str = ""  # of its file
    columns: Sequence[str] = ()  # of the problems, that must be there


class Scorer:
    """Rewards of responses by the functions of a config.

    Args:
      specs: builtin names, `path/to/file.py:function` or `package.module:function`, each perhaps
        with `?option=value&...`; empty: what the form of each item's set asks for.
      weights: one a function; empty: all 1.
      seconds: processor time of one call of a user's function; five times that by the clock.
      response_tokens: the longest response, from which `overlong` takes its defaults.

    Raises:
      InputError: an unknown function or option, or one whose module fails in a worker.
    """

    def __init__(
        self,
        specs: Sequence[str] = (),
        weights: Sequence[float] = (),
        seconds: float = 2.0,
        response_tokens: int = 0,
    ) -> None:
        make = functools.partial(_made, seconds=seconds, response_tokens=response_tokens)
        self._functions = make(specs, weights or [1.0] * len(specs))
        self._of_form = functools.cache(lambda form: make([FORMS[form]], [1.0]))

    @classmethod
    def of(cls, config: Any) -> "Scorer":
        """The scorer of a `Config`."""
        r = config.reward
        return cls(r.functions, r.weights, r.seconds, config.data.response_tokens)

    def __call__(self, items: Sequence[Item]) -> list[Score]:
        """The score of each item, in order. Never raises on what a response or a function does.

        Raises:
          RuntimeError: the worker processes do not start.
        """
        scores: dict[int, Score] = {}
        for form in dict.fromkeys("" if self._functions else item.form for item in items):
            own = [i for i, item in enumerate(items) if form in ("", item.form)]
            called = self._functions or self._of_form(form)
            parts = [function.call([items[i] for i in own]) for function in called]
            scores |= {i: _total(called, each) for i, *each in zip(own, *parts, strict=True)}
        return [scores[i] for i in range(len(items))]

    def check(self, problems: Sequence["Problem"]) -> None:
        """Whether the problems have the columns that the functions ask for by name.

        Raises:
          InputError: names the function, the column and those that are there.
        """
        there = problems[0].columns
        for function in self._functions:
            if missing := [name for name in function.columns if name not in there]:
                raise InputError(
                    f"{WHERE} = {function.spec!r}: takes {missing[0]!r}, which is no column of the "
                    f"problems; there are {', '.join(sorted(there)) or 'none'}, and "
                    f"{', '.join(functions.KEYWORDS)}"
                )

    @property
    def needs_answers(self) -> bool:
        """Whether a problem without an answer is an error."""
        names = [f.spec.partition("?")[0] for f in self._functions]
        return not names or "math" in names or "gsm8k" in names

    @property
    def text(self) -> str:
        """The functions and their weights, for people."""
        shown = [f"{f.weight:g} x {f.spec}" for f in self._functions]
        return " + ".join(shown) or "as the answers of a set ask for"

    def identity(self) -> list[dict[str, Any]]:
        """What the rewards depend on: functions with options and weights, digests of their files.

        Another grader (`math_grader.version`) is the caller's to note.
        """
        return [
            {"function": f.spec, "weight": f.weight, "source": f.digest} for f in self._functions
        ]


def _made(
    specs: Sequence[str], weights: Sequence[float], seconds: float, response_tokens: int
) -> list[_Function]:
    """Functions by their specs; metrics name them by the last word, with a number if it recurs."""
    names = [spec.partition("?")[0] for spec in specs]
    short = [name.rpartition(":")[2] for name in names]
    own = [s for s, name in zip(specs, names, strict=True) if name not in builtins.BUILTINS]
    loaded = {spec: functions.resolve(spec) for spec in own}
    made = []
    for i, (spec, weight) in enumerate(zip(specs, weights, strict=True)):
        before = short[:i].count(short[i])
        name = f"{short[i]}_{before + 1}" if before else short[i]
        if spec not in loaded:
            made.append(_Function(name, spec, weight, builtins.bound(spec, response_tokens)))
            continue
        function = loaded[spec]
        says = functions.kind(function) != "trl"
        call = _Own(_pool(tuple(own), seconds), own.index(spec), seconds, says)
        source, columns = plugins.digest(function), functions.columns(function)
        made.append(_Function(name, spec, weight, call, source, columns))
    return made


@functools.cache
def _pool(specs: tuple[str, ...], seconds: float) -> WorkerPool:
    """Workers for these functions, ended with this process; the first one is there.

    Raises:
      InputError: a function cannot be loaded in a worker.
    """
    handler = "remix_jax.rewards.functions:handler"
    pool = WorkerPool(handler, json.dumps(specs), seconds=seconds, memory=_MEMORY)
    atexit.register(pool.close)
    try:
        pool.start()
    except RuntimeError as error:
        raise InputError(f"{WHERE}: {error}") from None
    return pool


class _Own:
    """Calls a function of the user in the pool, in batches; a batch that fails, item by item."""

    def __init__(self, pool: WorkerPool, index: int, seconds: float, says_correct: bool) -> None:
        self._pool, self._index, self._says_correct = pool, index, says_correct
        timeout = f"TimeoutError: took more than {seconds:g} s (config.reward.seconds)"
        self._errors = {"timeout": timeout, "memory": "MemoryError"}
        self._size = _BATCH

    def __call__(self, items: Sequence[Item]) -> list[Part]:
        every = range(len(items))
        whole = [every[i : i + self._size] for i in every[:: self._size]]
        replies = self._ask(items, whole)
        failed = [b for b, r in zip(whole, replies, strict=True) if r.failure and len(b) > 1]
        alone = [every[i : i + 1] for batch in failed for i in batch]
        again = self._ask(items, alone)
        if failed and not any(reply.failure for reply in again):
            self._size = max(1, self._size // 2)  # together they took too long, or too much
        parts: dict[int, Part] = {}
        for batch, reply in zip([*whole, *alone], [*replies, *again], strict=True):
            line = reply.line or self._errors.get(str(reply.failure), "its process died")
            values = reply.value or [Part(None, error=line)] * len(batch)
            parts |= {i: Part(*value) for i, value in zip(batch, values, strict=True)}
        self._says_correct |= any(part.correct is not None for part in parts.values())
        correct = False if self._says_correct else None
        found = [parts[i] for i in every]
        return [p._replace(reward=0.0, correct=correct) if p.error else p for p in found]

    def _ask(self, items: Sequence[Item], batches: Sequence[range]) -> list[Reply]:
        asked = [[functions.plain(items[i]) for i in batch] for batch in batches]
        return self._pool.map([{"function": self._index, "items": each} for each in asked])


def _total(called: Sequence[_Function], parts: Sequence[Part]) -> Score:
    named = list(zip(called, parts, strict=True))
    reward = math.fsum(f.weight * part.reward for f, part in named if part.reward is not None)
    errors = {f.name: part.error for f, part in named if part.error}
    if all(part.reward is None for part in parts):
        errors["none"] = "no function applies: its reward is 0"
    rewards = {f.name: part.reward for f, part in named}
    says = next((part for part in parts if part.correct is not None), None)
    if says is None:
        return Score(reward, None, rewards, None, "", errors)
    reason = says.reason or ("match" if says.correct else "wrong")
    return Score(reward, says.correct, rewards, says.answer, reason, errors)


def metrics(scores: Sequence[Score]) -> dict[str, float]:
    """Means over scores.

    Returns:
      reward; reward/<function> over the rows where it applied; reward_errors/<function>, how many
      rows it failed on, where any; accuracy, over the rows where a function says what correct is;
      format_rate, the share of those from which an answer was read; grader_timeout_rate, the share
      that the grader gave up on. The last three are absent where no function says.
    """
    of: dict[str, list[float]] = {"reward": [s.reward for s in scores]}
    for name, part in (each for s in scores for each in s.parts.items()):
        if part is not None:
            of.setdefault(f"reward/{name}", []).append(part)
    judged = [s for s in scores if s.correct is not None]
    if judged:
        of["accuracy"] = [bool(s.correct) for s in judged]
        of["format_rate"] = [bool(s.answer) for s in judged]
        of["grader_timeout_rate"] = [s.reason == "timeout" for s in judged]
    failed = collections.Counter(f"reward_errors/{name}" for s in scores for name in s.errors)
    means = {name: sum(each) / len(each) for name, each in of.items()}
    return means | {name: float(n) for name, n in failed.items()}
