"""Verdicts on responses: find the boxed answer, compare it with the listed ones.

A response is text from a model under optimisation, so anything may be in it. Equal text and equal
numbers are decided here, exactly and without evaluating anything; what needs algebra goes to the
killable processes of a GraderPool, which start only when the first such answer comes.
"""

import functools
import hashlib
import importlib.metadata
import numbers
import pathlib
from collections.abc import Sequence
from typing import Literal, NamedTuple

from remix_jax.grading import answers as texts
from remix_jax.grading.pool import GraderPool, Pair, process_pool

Reason = Literal["match", "wrong", "timeout", "empty-box", "unbalanced-box", "no-box"]
Answers = str | float | Sequence[str | float]

_THINK_END = "</think>"


class Verdict(NamedTuple):
    """Whether a response is right, the answer found in it (None without a box), and why."""

    correct: bool
    answer: str | None
    reason: Reason


def grade(response: str, answers: Answers) -> Verdict:
    """Grades the last balanced ``\\boxed{...}`` of a response against the listed answers.

    Looked at is the text after the last ``</think>`` if there is one, else the whole response. The
    answer is right if it equals any of `answers`: as text, as a number, or by algebra in a process
    of its own (one pool per process, ended with it). Never raises on any response.

    Returns:
      Verdict with the reason "match", "wrong", "timeout" (comparing took, or would take, more than
      a grader may spend: neither right nor shown to be wrong), "empty-box" (nothing in the box),
      "unbalanced-box" (a box was opened and never closed) or "no-box".
    """
    return grade_many([response], [answers], process_pool())[0]


def grade_many(
    responses: Sequence[str], answers: Sequence[Answers], pool: GraderPool
) -> list[Verdict]:
    """Verdicts of `grade`, in order; the comparisons that need algebra run side by side."""
    quick = functools.cache(_quick)  # of one batch: a hostile response may be a megabyte
    found = functools.cache(_find)
    boxes = [found(response) for response in responses]
    decided: list[list[_Quick]] = [
        [quick(box.answer, gold) for gold in _listed(golds)] if box.answer else []
        for box, golds in zip(boxes, answers, strict=True)
    ]
    # Nothing is computed for a response that one of its answers matches already.
    pairs = [d for each in decided if "match" not in each for d in each if isinstance(d, tuple)]
    compared = dict(zip(pairs, pool.compare(pairs), strict=True)) if pairs else {}
    return [
        box if not box.answer else Verdict(*_judge(box.answer, each, compared))
        for box, each in zip(boxes, decided, strict=True)
    ]


@functools.cache
def version() -> str:
    """A key for verdicts: it changes with the grader's code and with the libraries it asks."""
    digest = hashlib.blake2b(digest_size=8)
    here = pathlib.Path(__file__).parent
    for name in ("answers", "equivalence", "shapes", "verdicts", "worker"):
        digest.update((here / f"{name}.py").read_bytes())
    for package in ("math-verify", "latex2sympy2_extended", "sympy"):
        digest.update(f"{package} {importlib.metadata.version(package)}".encode())
    return digest.hexdigest()


_Quick = Literal["match", "wrong", "timeout"] | Pair


def _find(response: str) -> Verdict:
    """The verdict before any comparison: the answer, or why there is none."""
    answer, opened = texts.last_box(response.rpartition(_THINK_END)[2])
    if answer is None:
        return Verdict(False, None, "unbalanced-box" if opened else "no-box")
    answer = answer.strip()
    return Verdict(False, answer, "wrong" if answer else "empty-box")


def _listed(answers: Answers) -> list[str]:
    single = isinstance(answers, str | numbers.Number)  # also one of NumPy's
    listed: Sequence[str | float] = [answers] if single else answers  # type: ignore[list-item, assignment]
    # Python writes 1e16 as "1e+16", which is no numeral of an answer.
    return [gold if isinstance(gold, str) else str(gold).replace("e+", "e") for gold in listed]


def _quick(answer: str, gold: str) -> _Quick:
    """Compares as text and as numbers; a pair of expressions if that does not decide."""
    if len(answer) > texts.MAX_ANSWER:
        return "match" if answer == gold.strip() else "wrong"
    if texts.same_text(texts.clean(answer), texts.clean(gold)):
        return "match"
    ours, theirs = (texts.clean(texts.without_unit(text)) for text in (answer, gold))
    if texts.same_text(ours, theirs):
        return "match"
    if texts.is_word(gold, theirs):
        return "match" if texts.same_text(ours.strip("()"), theirs.strip("()")) else "wrong"
    if texts.is_product(theirs):
        return "match" if texts.same_product(ours, theirs) else "wrong"
    a, b = texts.number(ours), texts.number(theirs)
    if a is not None and b is not None:
        return "match" if texts.same_number(a, b) else "wrong"
    pair = texts.spell(ours), texts.spell(theirs)
    screened = {texts.screen(text) for text in pair}
    if "text" in screened:
        return "wrong"
    return "timeout" if "heavy" in screened else pair


def _judge(
    answer: str, decided: Sequence[_Quick], compared: dict[Pair, bool | None]
) -> tuple[bool, str, Reason]:
    """Right if any listed answer matches; a timeout counts only if none does."""
    outcomes = {
        {True: "match", False: "wrong", None: "timeout"}[compared[d]] if isinstance(d, tuple) else d
        for d in ([d for d in decided if d == "match"] or decided)
    }
    if "match" in outcomes:
        return True, answer, "match"
    return False, answer, "timeout" if "timeout" in outcomes else "wrong"
