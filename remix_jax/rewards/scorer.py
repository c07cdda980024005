"""From responses to rewards: the functions of a config, each called, weighted and counted."""

import atexit
import functools
import json
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from remix_jax import grading, plugins
from remix_jax.errors import InputError
from remix_jax.grading.pool import Reply, WorkerPool
from remix_jax.rewards import builtins, functions
from remix_jax.rewards.functions import Part

if TYPE_CHECKING:
    from remix_jax.data.problems import Problem

FORMS = {"boxed": "math", "hash": "gsm8k", "reasoning_gym": "reasoning_gym"}
"""What scores a set by the form of its answers, where the config names no function."""

_WHERE = "config.reward.functions"
_BATCH = 16  # items a call of a user's function, at most
_MEMORY = 16 << 30  # bytes of address space of a user's functions


class Item(NamedTuple):
    """A response to a problem."""

    problem: "Problem"
    prompt: str  # as the model saw it
    completion: str
    completion_ids: Sequence[int]  # the end token included
    ended: bool  # an end token came within the limit
    form: str  # of the answers of its set: a key of FORMS


class Score(NamedTuple):
    """What a response is worth, and why. Plain data: it goes through JSON and back.

    `reward` is the weighted sum of `parts`. `correct`, `answer` and `reason` are of the first
    function that says what correct is: `answer` what it read from the response, `reason` "match",
    "wrong", or why it read nothing ("" where it does not say). A function that failed gives 0, is
    not correct, and its first error line is in `errors`.
    """

    reward: float
    correct: bool | None
    parts: dict[str, float | None]
    answer: str | None
    reason: str
    errors: dict[str, str]


class _Function(NamedTuple):
    name: str  # in metrics
    spec: str
    weight: float
    call: Callable[[Sequence[Item]], list[Part]]
    digest: str


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
        self._seconds, self._response_tokens = seconds, response_tokens
        self._forms: dict[str, _Function] = {}
        self._functions: list[_Function] = []
        self._pool: WorkerPool | None = None
        own = [spec for spec in specs if plugins.split_options(spec, _WHERE)[0] not in _BUILTINS]
        if own:
            self._pool = _pool(tuple(map(_spec_of, own)), seconds)
        for spec, weight in zip(specs, weights or [1.0] * len(specs), strict=True):
            taken = [_short(function.spec) for function in self._functions]
            self._functions.append(self._function(spec, weight, taken, own))

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
        if self._functions:
            return _totals(items, self._functions)
        scores: dict[int, Score] = {}
        for form in dict.fromkeys(item.form for item in items):
            own = [i for i, item in enumerate(items) if item.form == form]
            found = _totals([items[i] for i in own], [self._form(form)])
            scores |= dict(zip(own, found, strict=True))
        return [scores[i] for i in range(len(items))]

    def check(self, problems: Sequence["Problem"]) -> None:
        """Whether the problems have the columns that the functions ask for by name.

        Raises:
          InputError: names the function, the column and those that are there.
        """
        columns = set(problems[0].columns)
        for function in self._functions:
            if not isinstance(function.call, _Own):
                continue
            loaded = functions.resolve(_spec_of(function.spec))
            if functions.kind(loaded) != "trl":
                continue
            for name in functions.required(loaded):
                if name not in columns.union(functions.KEYWORDS):
                    raise InputError(
                        f"{_WHERE} = {function.spec!r}: takes {name!r}, which is no column of the "
                        f"problems; there are {', '.join(sorted(columns)) or 'none'}, and "
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

        Of an empty config: the forms. Another grader (`grading.version`) is the caller's to note.
        """
        return [
            {"function": f.spec, "weight": f.weight, "source": f.digest} for f in self._functions
        ]

    def _form(self, form: str) -> _Function:
        if form not in self._forms:
            spec = FORMS[form]
            if spec == "reasoning_gym":
                self._pool = self._pool or _pool((_spec_of(spec),), self._seconds)
            self._forms[form] = self._function(spec, 1.0, [], [spec])
        return self._forms[form]

    def _function(self, spec: str, weight: float, taken: list[str], own: list[str]) -> _Function:
        name, options = plugins.split_options(spec, _WHERE)
        short = _short(spec)
        unique = short if short not in taken else f"{short}_{taken.count(short) + 1}"
        if name in _BUILTINS:
            return _Function(unique, spec, weight, self._builtin(name, spec, options), "")
        assert self._pool is not None
        function = functions.resolve(_spec_of(spec))
        says = functions.kind(function) != "trl"
        call = _Own(self._pool, own.index(spec), self._seconds, says)
        return _Function(unique, spec, weight, call, plugins.digest(function))

    def _builtin(self, name: str, spec: str, options: dict[str, Any]):
        score, known, holds, rule = _BUILTINS[name]
        if not set(options) <= set(known):
            rule = f"its options are {', '.join(known) or 'none'}"
            raise InputError(f"{_WHERE} = {spec!r}: {rule}")
        if name == "overlong":
            limit = options.get("max", self._response_tokens)
            known = {"max": limit, "buffer": limit // 5 if isinstance(limit, int) else None}
        try:
            right = holds(**known | options)
        except TypeError:  # a text in the place of a number
            right = False
        if not right:
            raise InputError(f"{_WHERE} = {spec!r}: expected {rule}")
        return functools.partial(score, **known | options)


class _Own:
    """Calls a function of the user in the pool, in batches; a batch that fails, item by item."""

    def __init__(self, pool: WorkerPool, index: int, seconds: float, says_correct: bool) -> None:
        self._pool, self._index, self._seconds = pool, index, seconds
        self._says_correct = says_correct
        self._size = _BATCH

    def __call__(self, items: Sequence[Item]) -> list[Part]:
        parts: dict[int, Part] = {}
        every = range(len(items))
        whole = [every[i : i + self._size] for i in every[:: self._size]]
        replies = self._ask(items, whole)
        failed = [(b, r) for b, r in zip(whole, replies, strict=True) if r.failure and len(b) > 1]
        alone = [range(i, i + 1) for batch, _ in failed for i in batch]
        again = self._ask(items, alone)
        if failed and not any(reply.failure for reply in again):
            self._size = max(1, self._size // 2)  # together they took too long, or too much
        for batch, reply in zip([*whole, *alone], [*replies, *again], strict=True):
            values = reply.value or [[None, None, None, self._error(reply)]] * len(batch)
            parts |= {i: Part(*value) for i, value in zip(batch, values, strict=True)}
        self._says_correct |= any(part.correct is not None for part in parts.values())
        correct = False if self._says_correct else None
        found = [parts[i] for i in every]
        return [p._replace(reward=0.0, correct=correct) if p.error else p for p in found]

    def _ask(self, items: Sequence[Item], batches: Sequence[range]) -> list[Reply]:
        plain = [[_plain(items[i]) for i in batch] for batch in batches]
        return self._pool.map([{"function": self._index, "items": each} for each in plain])

    def _error(self, reply: Reply) -> str:
        if reply.failure == "timeout":
            return f"TimeoutError: took more than {self._seconds:g} s (config.reward.seconds)"
        return reply.line or {"memory": "MemoryError"}.get(str(reply.failure), "its process died")


def _plain(item: Item) -> dict[str, Any]:
    """An item as it goes to a worker."""
    return {
        "prompt": item.prompt,
        "completion": item.completion,
        "completion_ids": list(item.completion_ids),
        "answers": item.problem.answers,
        "columns": dict(item.problem.columns),
    }


def _math(items: Sequence[Item]) -> list[Part]:
    """The last box against the answers; does not apply to a problem without any."""
    pool = grading.process_pool()
    answers = [item.problem.answers for item in items]
    verdicts = grading.grade_many([item.completion for item in items], answers, pool)
    return [
        Part(float(v.correct), v.correct, v.answer, "", v.reason) if answer else Part(None)
        for v, answer in zip(verdicts, answers, strict=True)
    ]


def _gsm8k(items: Sequence[Item], method: str) -> list[Part]:
    """What is read against the answers, as text; does not apply to a problem without any."""
    parts = []
    for item in items:
        found = builtins.gsm8k_answer(item.completion, method)
        correct = found in [_numeral(answer) for answer in item.problem.answers]
        reason = "no-answer" if found is None else ""
        part = Part(float(correct), correct, found, "", reason)
        parts.append(part if item.problem.answers else Part(None))
    return parts


def _numeral(answer: str | float) -> str:
    """An answer as verl's files have it: without commas, a whole number without a point."""
    if isinstance(answer, float) and answer.is_integer():
        answer = int(answer)
    return str(answer).replace(",", "")


def _each(reward: Callable[..., float]) -> Callable[..., list[Part]]:
    """A batch's rewards by the reward of one item, which says nothing of what is correct."""
    return lambda items, **options: [Part(reward(item, **options)) for item in items]


class _Builtin(NamedTuple):
    score: Callable[..., list[Part]]
    options: dict[str, Any]  # with their defaults
    holds: Callable[..., bool] = lambda: True  # of the options
    rule: str = ""


_BUILTINS = {
    "math": _Builtin(_math, {}),
    "gsm8k": _Builtin(
        _gsm8k,
        {"method": "strict"},
        lambda method: method in ("strict", "flexible"),
        "method=strict or flexible",
    ),
    "think_format": _Builtin(_each(lambda i: builtins.think_format(i.prompt, i.completion)), {}),
    "overlong": _Builtin(
        _each(lambda i, max, buffer: builtins.overlong(len(i.completion_ids), max, buffer)),
        {"max": 0, "buffer": 0},  # those of the scorer
        lambda max, buffer: 0 < buffer <= max,
        "0 < buffer <= max, in tokens",
    ),
    "repetition": _Builtin(
        _each(lambda i, n, penalty: builtins.repetition(i.completion_ids, n, penalty)),
        {"n": 3, "penalty": -1.0},
        lambda n, penalty: n >= 1 and penalty <= 0,
        "n of 1 or more and a penalty up to 0",
    ),
}


def _totals(items: Sequence[Item], functions: Sequence[_Function]) -> list[Score]:
    columns = [function.call(items) for function in functions]
    return [_total(functions, parts) for parts in zip(*columns, strict=True)]


def _total(functions: Sequence[_Function], parts: Sequence[Part]) -> Score:
    named = [(f.name, f.weight, part) for f, part in zip(functions, parts, strict=True)]
    reward = math.fsum(w * part.reward for _, w, part in named if part.reward is not None)
    errors = {name: part.error for name, _, part in named if part.error}
    if all(part.reward is None for part in parts):
        errors["none"] = "no function applies: its reward is 0"
    says = next((part for part in parts if part.correct is not None), None)
    rewards = {name: part.reward for name, _, part in named}
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
    found = {"reward": _mean([s.reward for s in scores])}
    for name in dict.fromkeys(name for s in scores for name in s.parts):
        applied = [x for s in scores if (x := s.parts.get(name)) is not None]
        found |= {f"reward/{name}": _mean(applied)} if applied else {}
    for name in dict.fromkeys(name for s in scores for name in s.errors):
        found[f"reward_errors/{name}"] = float(sum(name in s.errors for s in scores))
    judged = [s for s in scores if s.correct is not None]
    if judged:
        found["accuracy"] = _mean([bool(s.correct) for s in judged])
        found["format_rate"] = _mean([bool(s.answer) for s in judged])
        found["grader_timeout_rate"] = _mean([s.reason == "timeout" for s in judged])
    return found


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _short(spec: str) -> str:
    return spec.partition("?")[0].rpartition(":")[2]


def _spec_of(spec: str) -> str:
    """Where a function lies that runs in the workers."""
    return "remix_jax.rewards.gym:reasoning_gym" if spec == "reasoning_gym" else spec


@functools.cache
def _pool(specs: tuple[str, ...], seconds: float) -> WorkerPool:
    """Workers for these functions, ended with this process; the first one is there.

    Raises:
      InputError: a function cannot be loaded, here or in a worker.
    """
    for spec in specs:
        functions.resolve(spec)
    pool = WorkerPool(
        "remix_jax.rewards.functions:handler",
        json.dumps(specs),
        seconds=seconds,
        memory=_MEMORY,
    )
    atexit.register(pool.close)
    try:
        pool.start()
    except RuntimeError as error:
        raise InputError(f"{_WHERE}: {error}") from None
    return pool
