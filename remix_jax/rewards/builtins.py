"""The builtin reward functions; of what `math` compares see the package `math_grader`."""

import contextlib
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import math_grader
from remix_jax import plugins
from remix_jax.errors import InputError
from remix_jax.rewards.functions import WHERE, Item, Part

_MARKED = re.compile(r"#### (-?[0-9.,]+)")
_ANY_NUMBER = re.compile(r"-?[0-9.,]+")


def gsm8k_answer(text: str, method: str = "strict") -> str | None:
    """The number that verl's `gsm8k` reads from a response (verl/utils/reward_score/gsm8k.py).

    Of the last 300 characters: strict, the last `#### NUMBER` without its commas; flexible, the
    last number of any kind.
    """
    text = text[-300:]
    if method == "strict":
        found = _MARKED.findall(text)
        return found[-1].replace(",", "") if found else None
    numbers = _ANY_NUMBER.findall(text)
    return next((n for n in reversed(numbers) if n != "."), numbers[0] if numbers else None)


def think_format(prompt: str, completion: str) -> float:
    """1 if the response is one `<think>...</think>` and what follows, else 0 (TRL).

    A `<think>` that the chat template put at the end of the prompt counts as the response's.
    """
    begin = "<think>"
    text = (begin if prompt.rstrip().endswith(begin) else "") + completion
    return float(text.startswith(begin) and text.count(begin) == 1 and "</think>" in text)


def overlong(length: int, limit: int, buffer: int) -> float:
    """DAPO's soft overlong punishment (arXiv 2503.14476, Eq. 13), in [-1, 0].

        0                              length <= limit - buffer
        (limit - buffer - length) / buffer      up to limit
        -1                             beyond

    Args:
      length: tokens of the response.
      limit: L_max.
      buffer: L_cache, the tokens before the limit over which the penalty grows.
    """
    if length <= limit - buffer:
        return 0.0
    return (limit - buffer - length) / buffer if length <= limit else -1.0


def repetition(ids: Sequence[int], n: int, penalty: float) -> float:
    """penalty * (1 - distinct n-grams / n-grams) of the response's tokens (TRL).

    Source: arXiv 2502.03373, appendix C.2. 0 for fewer than n tokens.
    """
    grams = list(zip(*(ids[i:] for i in range(n)), strict=False))
    repeated = 1 - len(set(grams)) / len(grams) if grams else 0.0
    return repeated * penalty if repeated else 0.0


def _math(items: Sequence[Item]) -> list[Part]:
    """The last box against the answers; like gsm8k it does not apply to a problem without any."""
    answers = [item.problem.answers for item in items]
    completions = [item.completion for item in items]
    verdicts = math_grader.grade_many(completions, answers, math_grader.process_pool())
    return [
        Part(float(v.correct), v.correct, v.answer, "", v.reason) if answer else Part(None)
        for v, answer in zip(verdicts, answers, strict=True)
    ]


def _gsm8k(item: Item, method: str) -> Part:
    """What is read against the answers, as text."""
    if not item.problem.answers:
        return Part(None)
    found = gsm8k_answer(item.completion, method)
    # As verl's files have them: without commas, a whole number without a point.
    whole = (int(a) if isinstance(a, float) and a.is_integer() else a for a in item.problem.answers)
    correct = found in [str(answer).replace(",", "") for answer in whole]
    return Part(float(correct), correct, found, "", "no-answer" if found is None else "")


class _Builtin(NamedTuple):
    score: Callable[..., Any]  # (item, **options) -> Part | float; `math` takes all items at once
    options: dict[str, Any]  # with their defaults
    holds: Callable[..., bool] = lambda: True  # of the options
    rule: str = "no other"


BUILTINS = {
    "math": _Builtin(_math, {}),
    "gsm8k": _Builtin(
        _gsm8k,
        {"method": "strict"},
        lambda method: method in ("strict", "flexible"),
        "method=strict or flexible",
    ),
    "think_format": _Builtin(lambda item: think_format(item.prompt, item.completion), {}),
    "overlong": _Builtin(
        lambda item, max, buffer: overlong(len(item.completion_ids), max, buffer),
        {"max": None, "buffer": None},  # by the longest response
        lambda max, buffer: 0 < buffer <= max,
        "0 < buffer <= max, in tokens",
    ),
    "repetition": _Builtin(
        lambda item, n, penalty: repetition(item.completion_ids, n, penalty),
        {"n": 3, "penalty": -1.0},
        lambda n, penalty: n >= 1 and penalty <= 0,
        "n of 1 or more and a penalty up to 0",
    ),
}


def bound(spec: str, response_tokens: int) -> Callable[[Sequence[Item]], list[Part]]:
    """The builtin of a spec with its options.

    Raises:
      InputError: an option that it does not have, or a value that makes no sense.
    """
    name, given = plugins.split_options(spec, WHERE)
    score, known, holds, rule = BUILTINS[name]
    if name == "overlong":
        limit = given.get("max", response_tokens)
        known = {"max": limit, "buffer": limit // 5 if isinstance(limit, int) else None}
    options, right = known | given, False
    with contextlib.suppress(TypeError):  # an option it does not have, a text for a number
        right = holds(**options)
    if not right:
        names = ", ".join(known) or "none"
        raise InputError(f"{WHERE} = {spec!r}: its options are {names}; expected {rule}")
    if name == "math":
        return _math

    def call(items: Sequence[Item]) -> list[Part]:
        found = (score(item, **options) for item in items)
        return [each if isinstance(each, Part) else Part(each) for each in found]

    return call
