"""Verdicts on responses: find the boxed answer, compare it with the listed ones."""

import functools
import hashlib
import importlib.metadata
import numbers
import pathlib
from collections.abc import Sequence
from typing import Literal, NamedTuple

from math_grader import answers as texts
from math_grader.pool import GraderPool, process_pool

Reason = Literal["match", "wrong", "timeout", "empty-box", "unbalanced-box", "no-box"]
Answers = str | float | Sequence[str | float]


class Verdict(NamedTuple):
    """Whether a response is right, the answer found in it (None without a box), and why."""

    correct: bool
    answer: str | None
    reason: Reason


def grade(response: str, answers: Answers) -> Verdict:
    """Grades the last balanced ``\\boxed{...}`` of a response against the listed answers.

    Looked at is the text after the last ``</think>`` if there is one, else the whole response. The
    answer is right if it equals any of `answers`: as text, as a number, or by algebra in a process
    of its own. Never raises on any response.

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
    # Of one batch, for equal responses come often; a hostile one may be a megabyte.
    find, compare = functools.cache(_find), functools.cache(texts.compare)
    found = [find(response) for response in responses]
    decided = [
        [compare(box.answer, gold) for gold in _listed(golds)] if box.answer else []
        for box, golds in zip(found, answers, strict=True)
    ]
    # Nothing is computed for a response that one of its answers matches already.
    pairs = [d for each in decided if "match" not in each for d in each if isinstance(d, tuple)]
    said = {True: "match", False: "wrong", None: "timeout"}
    reasons = {pair: said[e] for pair, e in zip(pairs, pool.compare(pairs), strict=True)}
    verdicts = []
    for box, each in zip(found, decided, strict=True):
        outcomes = [reasons.get(d) if isinstance(d, tuple) else d for d in each]
        # A timeout counts only if no other answer matches.
        reason = next((r for r in ("match", "timeout") if r in outcomes), box.reason)
        verdicts.append(Verdict(reason == "match", box.answer, reason))
    return verdicts


def _find(response: str) -> Verdict:
    """The verdict before any comparison: the answer, or why there is none."""
    answer, opened = texts.last_box(response.rpartition("</think>")[2])
    if answer is None:
        return Verdict(False, None, "unbalanced-box" if opened else "no-box")
    answer = answer.strip()
    return Verdict(False, answer, "wrong" if answer else "empty-box")


def _listed(answers: Answers) -> list[str]:
    single = isinstance(answers, str | numbers.Number)  # also one of NumPy's
    listed: Sequence[str | float] = [answers] if single else answers  # type: ignore[list-item, assignment]
    # Python writes 1e16 as "1e+16", which is no numeral of an answer.
    return [gold if isinstance(gold, str) else str(gold).replace("e+", "e") for gold in listed]


@functools.cache
def version() -> str:
    """A key for verdicts: it changes with the grader's code and with the libraries it asks."""
    digest = hashlib.blake2b(digest_size=8)
    for source in sorted(pathlib.Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    for package in ("math-verify", "latex2sympy2_extended", "sympy"):
        digest.update(f"{package} {importlib.metadata.version(package)}".encode())
    return digest.hexdigest()
