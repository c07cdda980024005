"""Verdicts on responses: find the boxed answer, compare it with the listed ones.

A response is text from a model under optimisation, so anything may be in it. Nothing here evaluates
an expression; every step is a linear scan, and numbers are compared exactly, as fractions.
"""

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal, NamedTuple

Reason = Literal["match", "wrong", "empty-box", "unbalanced-box", "no-box"]

_THINK, _THINK_END, _BOX = "<think>", "</think>", "\\boxed"

# A box (also with a doubled backslash), an escaped character such as \{, or a brace.
_BRACES = re.compile(r"(?P<box>\\\\?boxed\s*\{)|\\.|[{}]", re.DOTALL)

_WRAPPERS = re.compile(r"\\(?:text|textbf|textrm|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
_FRACTION = re.compile(r"\\[dt]frac(?![a-zA-Z])")
_SPACES = re.compile(r"\\(?:[,;: ]|quad(?![a-zA-Z]))|~")
# Sizing, negative space, dollars and degrees never change what is meant.
_NOISE = re.compile(
    r"\\(?:left|right|displaystyle)(?![a-zA-Z])|\\!|\\?\$"
    r"|\^\s*\\circ(?![a-zA-Z])|\^\s*\{\s*\\circ\s*\}|[°\u200b\ufeff]"
)
_IDLE_SPACE = re.compile(r"(?<![0-9A-Za-z]) | (?![0-9A-Za-z])")  # "1 2" is not "12": it stays
_DASHES = str.maketrans({"−": "-", "–": "-"})

_PLAIN = r"[0-9]+(?:\.[0-9]*)?|\.[0-9]+"
_NUMBER = re.compile(
    r"(?P<sign>[+-]?)(?:"
    r"(?P<grouped>[0-9]{1,3}(?:[, ][0-9]{3})+(?:\.[0-9]*)?)"
    rf"|(?P<plain>{_PLAIN})"
    rf"|\\frac\{{(?P<top>[+-]?(?:{_PLAIN}))\}}\{{(?P<bottom>[+-]?(?:{_PLAIN}))\}}"
    r"|\\frac(?P<digit_top>[0-9])(?P<digit_bottom>[0-9])"
    rf"|(?P<over>{_PLAIN})/(?P<under>{_PLAIN})"
    r")(?P<percent>\\?%)?"
)
_MAX_NUMBER = 400  # characters; longer numerals are compared as text: conversion is not linear


class Verdict(NamedTuple):
    """Whether a response is right, the answer found in it (None without a box), and why."""

    correct: bool
    answer: str | None
    reason: Reason


def grade(response: str, answers: str | float | Sequence[str | float]) -> Verdict:
    """Grades the last balanced ``\\boxed{...}`` of a response against the listed answers.

    Looked at is the text after the last ``</think>`` if there is one, else the whole response. The
    answer is right if it equals any of `answers`. Never raises on any response, and takes time
    linear in its length.

    Returns:
      Verdict with the reason "match", "wrong", "empty-box" (nothing in the box), "unbalanced-box"
      (a box was opened and never closed) or "no-box".
    """
    listed = [answers] if isinstance(answers, str | int | float) else answers
    final = response.rpartition(_THINK_END)[2]
    answer, opened = _last_box(final)
    if answer is None:
        return Verdict(False, None, "unbalanced-box" if opened else "no-box")
    answer = answer.strip()
    if not answer:
        return Verdict(False, answer, "empty-box")
    correct = any(_equal(answer, gold) for gold in listed)
    return Verdict(correct, answer, "match" if correct else "wrong")


def format_ok(response: str) -> bool:
    """Whether the response thinks once, closes its thinking and then boxes an answer.

    The opening ``<think>`` may be missing, because many chat templates put it into the prompt.
    """
    thinking, end, final = response.partition(_THINK_END)
    if not end or _THINK_END in final or _THINK in final:
        return False
    opening = thinking.find(_THINK)
    if opening >= 0 and (thinking[:opening].strip() or _THINK in thinking[opening + 1 :]):
        return False
    answer, _ = _last_box(final)
    return answer is not None and bool(answer.strip())


def _last_box(text: str) -> tuple[str | None, bool]:
    """The content of the balanced box that starts last, and whether any box was opened."""
    start = text.find(_BOX)
    best: tuple[int, int] | None = None
    opened = False
    stack: list[int] = []  # where the content of each open box starts; -1 for other braces
    for token in _BRACES.finditer(text, start) if start >= 0 else ():
        if token["box"]:
            opened = True
            stack.append(token.end())
        elif token.group() == "{":
            stack.append(-1)
        elif token.group() == "}" and stack:
            content = stack.pop()
            if content >= 0 and (best is None or content > best[0]):
                best = content, token.start()
    return (text[best[0] : best[1]] if best else None), opened


def _equal(answer: str, gold: str | float) -> bool:
    """Whether two answers are the same text after normalisation, or exactly the same number.

    This is the place for a wider equivalence (algebraic forms, sets, intervals, units): it would
    be asked last, after the two exact comparisons have failed.
    """
    ours, theirs = _normalise(answer), _normalise(str(gold))
    if ours == theirs:
        return bool(theirs)
    a, b = _number(ours), _number(theirs)
    if a is None or b is None:
        return False
    if a.percent == b.percent:
        return a.value == b.value
    # A percent sign on one side only: "50%" is taken for 50 (a rate asked for in percent) and 1/2.
    rate, bare = (a.value, b.value) if a.percent else (b.value, a.value)
    return bare in (rate, rate / 100)


def _normalise(text: str) -> str:
    """Takes away what typesetting adds to an answer: dollars, spaces, wrappers, a final period."""
    text = _WRAPPERS.sub(r"\1", text.translate(_DASHES))
    text = _NOISE.sub("", _SPACES.sub(" ", _FRACTION.sub(r"\\frac", text)))
    text = _IDLE_SPACE.sub("", " ".join(text.replace("{,}", ",").split()))
    return text[:-1] if text.endswith(".") and len(text) > 1 else text


class _Number(NamedTuple):
    value: Fraction
    percent: bool


def _number(text: str) -> _Number | None:
    """The number that a normalised answer writes, exactly; None if it writes anything else."""
    if len(text) > _MAX_NUMBER:
        return None
    if text.startswith("(") and text.endswith(")"):
        text = text[1:-1]
    found = _NUMBER.fullmatch(text)
    if found is None:
        return None
    part = found.groupdict()
    top = part["top"] or part["digit_top"] or part["over"]
    if top is None:
        value = Fraction((part["grouped"] or part["plain"]).replace(",", "").replace(" ", ""))
    else:
        bottom = Fraction(part["bottom"] or part["digit_bottom"] or part["under"])
        if bottom == 0:
            return None
        value = Fraction(top) / bottom
    return _Number(-value if part["sign"] == "-" else value, part["percent"] is not None)
