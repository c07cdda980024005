"""How a user's function is called: TRL's batches, verl's `compute_score`, `score_answer`.

Runs in the workers of a pool; the main process looks at signatures only.
"""

import asyncio
import functools
import inspect
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from remix_jax import plugins
from remix_jax.errors import InputError
from remix_jax.rewards import builtins

_LARGEST = 3.0e38  # of a float32
KEYWORDS = ("prompts", "completions", "completion_ids")


class Part(NamedTuple):
    """What one function said of one item."""

    reward: float | None  # None: it does not apply, or failed
    correct: bool | None = None  # None: it does not say
    answer: str | None = None  # read from the response
    error: str = ""
    reason: str = ""  # as `grading.Verdict`; "": by `correct`


def resolve(spec: str) -> Callable[..., Any]:
    """The function of a spec with its options bound.

    Raises:
      InputError: see `plugins.load`; an option that the function does not take.
    """
    name, options = plugins.split_options(spec, "config.reward.functions")
    function = plugins.load(name, "config.reward.functions")
    names = [n for n in inspect.signature(function).parameters if n not in KEYWORDS]
    for option in options:
        if option not in names:
            raise InputError(
                f"config.reward.functions = {spec!r}: takes no option {option}; it has "
                f"{', '.join(names) or 'none'}"
            )
    return functools.partial(function, **options) if options else function


def kind(function: Callable[..., Any]) -> str:
    """ "verl", "reasoning_gym" or "trl", by the names of a function's parameters."""
    names = set(inspect.signature(function).parameters)
    if {"solution_str", "ground_truth"} <= names:
        return "verl"
    return "reasoning_gym" if {"answer", "entry"} <= names else "trl"


def required(function: Callable[..., Any]) -> list[str]:
    """Parameters that must be given by name: `KEYWORDS` or columns of the problem rows."""
    return [
        p.name
        for p in inspect.signature(function).parameters.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]


def handler(specs: str) -> Callable[[Mapping[str, Any]], list[Part]]:
    """What a worker does: a request {"function": index, "items": [...]} to what it scores.

    An item has the keys of `scorer.Item`, with `answers` and `columns` in place of the problem.
    """
    loaded = [resolve(spec) for spec in json.loads(specs)]

    def call(request: Mapping[str, Any]) -> list[Part]:
        function, items = loaded[request["function"]], request["items"]
        form = kind(function)
        if form == "verl":
            return [_verl(function, item) for item in items]
        if form == "reasoning_gym":
            return [_score_answer(function, item) for item in items]
        return _batched(function, items)

    return call


def _batched(function: Callable[..., Any], items: Sequence[Mapping[str, Any]]) -> list[Part]:
    """TRL: lists in, a list out. As there, prompts of chat messages get completions of them."""
    chat = isinstance(items[0]["columns"].get("prompt"), list)
    given = {
        "prompts": [item["columns"]["prompt"] if chat else item["prompt"] for item in items],
        "completions": [
            [{"role": "assistant", "content": item["completion"]}] if chat else item["completion"]
            for item in items
        ],
        "completion_ids": [item["completion_ids"] for item in items],
    }
    names = dict.fromkeys(name for item in items for name in item["columns"])
    columns = {name: [item["columns"].get(name) for item in items] for name in names}
    result = function(**_taken(function, columns | given))
    if inspect.iscoroutine(result):
        result = asyncio.run(result)
    values = list(result)
    if len(values) != len(items):
        raise ValueError(f"returned {len(values)} rewards for {len(items)} completions")
    return [_scored(value) for value in values]


def _verl(function: Callable[..., Any], item: Mapping[str, Any]) -> Part:
    columns = item["columns"]
    truth = (columns.get("reward_model") or {}).get("ground_truth")
    if truth is None:
        truth = item["answers"][0] if item["answers"] else None
    given = {
        "data_source": columns.get("data_source", ""),
        "solution_str": item["completion"],
        "ground_truth": truth,
        "extra_info": columns.get("extra_info", columns),
    }
    part = _scored(function(**_taken(function, given)))
    return part if part.correct is not None else part._replace(correct=part.reward == 1)


def _score_answer(function: Callable[..., Any], item: Mapping[str, Any]) -> Part:
    answer = builtins.tagged_answer(item["completion"])
    part = _scored(function(answer=answer, entry=item["columns"]))
    return part._replace(correct=part.reward == 1, answer=answer)


def _taken(function: Callable[..., Any], given: dict[str, Any]) -> dict[str, Any]:
    """Of what is given, what the function has parameters for; options stay as they are."""
    given = {k: v for k, v in given.items() if k not in getattr(function, "keywords", ())}
    parameters = inspect.signature(function).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return given
    return {name: value for name, value in given.items() if name in parameters}


def _scored(value: Any) -> Part:
    """A float, None ("does not apply"), a truth value, or verl's {"score", "acc", "pred"}."""
    correct = answer = None
    if isinstance(value, Mapping):
        correct, answer, value = value.get("acc"), value.get("pred"), value["score"]
    if value is None:
        return Part(None)
    if type(value).__name__ in ("bool", "bool_"):  # NumPy's too
        correct = value
    reward = float(value)
    correct = None if correct is None else bool(correct)
    answer = None if answer is None else str(answer)
    if not math.isfinite(reward) or abs(reward) > _LARGEST:
        return Part(None, error=f"returned {reward}; expected a finite float or None")
    return Part(reward, correct, answer)
