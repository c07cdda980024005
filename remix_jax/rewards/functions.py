"""How a user's function is called: TRL's batches, verl's `compute_score`, `score_answer`.

Runs in the workers of a pool; the main process looks at signatures only.
"""

import asyncio
import functools
import inspect
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from remix_jax import plugins
from remix_jax.errors import InputError

if TYPE_CHECKING:
    from remix_jax.data.problems import Problem

WHERE = "config.reward.functions"
KEYWORDS = ("prompts", "completions", "completion_ids")
_GYM = "reasoning_gym.factory:get_score_answer_fn"
_LARGEST = 3.0e38  # of a float32
_TAGGED = re.compile(r"<answer>\s?(.*?)\s?</answer>", re.DOTALL)


class Item(NamedTuple):
    """A response to a problem."""

    problem: "Problem"
    prompt: str  # as the model saw it
    completion: str
    completion_ids: Sequence[int]  # the end token included
    ended: bool  # an end token came within the limit
    form: str  # of the answers of its set: a key of FORMS


class Part(NamedTuple):
    """What one function said of one item."""

    reward: float | None  # None: it does not apply, or failed
    correct: bool | None = None  # None: it does not say
    answer: str | None = None  # read from the response
    error: str = ""
    reason: str = ""  # as `math_grader.Verdict`; "": by `correct`


def resolve(spec: str) -> Callable[..., Any]:
    """The function of a spec with its options bound.

    Raises:
      InputError: see `plugins.load`; an option that the function does not take.
    """
    name, options = plugins.split_options(spec, WHERE)
    function = plugins.load(_GYM if name == "reasoning_gym" else name, WHERE)
    if name == "reasoning_gym":  # builtin, but called as a user's: it may evaluate text
        function = functools.partial(_gym_score, function)
    names = [n for n in inspect.signature(function).parameters if n not in KEYWORDS]
    for option in options:
        if option not in names:
            raise InputError(
                f"{WHERE} = {spec!r}: takes no option {option}; it has {', '.join(names) or 'none'}"
            )
    return functools.partial(function, **options) if options else function


def _gym_score(score_of: Callable[[str], Any], answer: str | None, entry: dict[str, Any]) -> float:
    """The score in [0, 1] of the task that an entry's metadata names."""
    return score_of(entry["metadata"]["source_dataset"])(answer, entry)


def kind(function: Callable[..., Any]) -> str:
    """ "verl", "reasoning_gym" or "trl", by the names of a function's parameters."""
    names = set(inspect.signature(function).parameters)
    if {"solution_str", "ground_truth"} <= names:
        return "verl"
    return "reasoning_gym" if {"answer", "entry"} <= names else "trl"


def columns(function: Callable[..., Any]) -> list[str]:
    """Columns of the problem rows that a function in TRL's form asks for by name."""
    return [
        p.name
        for p in inspect.signature(function).parameters.values()
        if kind(function) == "trl" and p.default is p.empty and p.name not in KEYWORDS
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]


def plain(item: Item) -> dict[str, Any]:
    """An item for a worker, with `answers` and `columns` in place of the problem."""
    given = item._asdict() | {"completion_ids": list(item.completion_ids)}
    problem = given.pop("problem")
    return given | {"answers": problem.answers, "columns": dict(problem.columns)}


def handler(specs: str) -> Callable[[Mapping[str, Any]], list[Part]]:
    """What a worker does: a request {"function": index, "items": [`plain`]} to what it scores."""
    loaded = [resolve(spec) for spec in json.loads(specs)]

    def call(request: Mapping[str, Any]) -> list[Part]:
        function, items = loaded[request["function"]], request["items"]
        form = kind(function)
        if form == "trl":
            return _batched(function, items)
        return [_single(function, form, item) for item in items]

    return call


def _batched(function: Callable[..., Any], items: Sequence[Mapping[str, Any]]) -> list[Part]:
    """TRL: lists in, a list out. As there, prompts of chat messages get completions of them."""
    rows, texts = [item["columns"] for item in items], [item["completion"] for item in items]
    names = dict.fromkeys(name for row in rows for name in row)
    given = {name: [row.get(name) for row in rows] for name in names}
    given |= {"prompts": [item["prompt"] for item in items], "completions": texts}
    given |= {"completion_ids": [item["completion_ids"] for item in items]}
    if isinstance(rows[0].get("prompt"), list):
        given["prompts"] = [row["prompt"] for row in rows]
        given["completions"] = [[{"role": "assistant", "content": text}] for text in texts]
    result = _called(function, given)
    values = list(asyncio.run(result) if inspect.iscoroutine(result) else result)
    if len(values) != len(items):
        raise ValueError(f"returned {len(values)} rewards for {len(items)} completions")
    return [_scored(value) for value in values]


def _single(function: Callable[..., Any], form: str, item: Mapping[str, Any]) -> Part:
    """verl's `compute_score`, or reasoning-gym's `score_answer` with its `extract_answer`."""
    row, answers = item["columns"], item["answers"]
    if form == "verl":
        truth = (row.get("reward_model") or {}).get("ground_truth")
        given = {
            "data_source": row.get("data_source", ""),
            "solution_str": item["completion"],
            "ground_truth": (answers[0] if answers else None) if truth is None else truth,
            "extra_info": row.get("extra_info", row),
        }
    else:
        found = _TAGGED.findall(item["completion"])
        given = {"answer": found[-1].strip() if found else None, "entry": row}
    part = _scored(_called(function, given))
    if form == "verl" and part.correct is not None:
        return part
    return part._replace(correct=part.reward == 1, answer=given.get("answer", part.answer))


def _called(function: Callable[..., Any], given: dict[str, Any]) -> Any:
    """Given what it has parameters for; options stay as they are."""
    parameters = inspect.signature(function).parameters
    every = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    options = getattr(function, "keywords", ())
    return function(
        **{k: v for k, v in given.items() if k not in options and (every or k in parameters)}
    )


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
    if not math.isfinite(reward) or abs(reward) > _LARGEST:
        return Part(None, error=f"returned {reward}; expected a finite float or None")
    correct = None if correct is None else bool(correct)
    return Part(reward, correct, None if answer is None else str(answer))
