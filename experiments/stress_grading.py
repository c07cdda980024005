"""Throughput of the grader, clean and under attack: python -m experiments.stress_grading

Two sets of items are graded, each with a pool of its own: clean ones, and the same with one in a
hundred replaced by towers of powers, huge factorials, megabytes, unbalanced braces and noise.
Printed: items a second of both, verdicts that are not as they should be, and processes left over.
"""

import os
import pathlib
import random
import time
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from absl import app, flags

from math_grader.pool import GraderPool
from math_grader.verdicts import Verdict, grade_many

ITEMS = flags.DEFINE_integer("items", 10_000, "items in each set", lower_bound=100)
SHARE = flags.DEFINE_float("pathological", 0.01, "share of pathological items", 0, 1)

GROUP = 8  # responses to a problem
ALGEBRA = 0.3  # share of the problems whose answers need algebra


class Item(NamedTuple):
    """A response, its gold answer, and whether it is right."""

    response: str
    gold: str
    correct: bool


class Stress(NamedTuple):
    """What grading a set gave."""

    seconds: float
    errors: list[tuple[Item, Verdict]]
    reasons: Counter
    leftover: set[int]


def clean_items(count: int, seed: int = 0) -> list[Item]:
    """Groups of right and wrong answers; of three groups in ten the answers need algebra."""
    rng = random.Random(seed)
    items: list[Item] = []
    while len(items) < count:
        gold, right, wrong = _algebra(rng) if rng.random() < ALGEBRA else _number(rng)
        for _ in range(GROUP):
            correct = rng.random() < 0.5
            answer = rng.choice(right if correct else wrong)
            text = f"<think>{'so we compute, ' * rng.randrange(50, 150)}</think>"
            items.append(Item(f"{text}The answer is $\\boxed{{{answer}}}$.", gold, correct))
    return items[:count]


def _number(rng: random.Random) -> tuple[str, list[str], list[str]]:
    n, d = rng.randrange(-999, 9999), rng.randrange(2, 30)
    right = [f"{n}", f"{n}.0", f" {n} ", f"\\frac{{{n * d}}}{{{d}}}", f"{n} \\text{{ cm}}"]
    return str(n), right, [f"{n + 1}", f"{n}.5", f"{-n - 1}", f"\\frac{{{n}}}{{{d}}}", "none"]


def _algebra(rng: random.Random) -> tuple[str, list[str], list[str]]:
    a, b = rng.sample(range(2, 12), 2)
    c = rng.choice([2, 3, 5, 7, 11])
    return rng.choice([
        (f"{a}\\sqrt{{{c}}}",
         [f"\\sqrt{{{a * a * c}}}", f"\\frac{{{a * c}}}{{\\sqrt{{{c}}}}}"],
         [f"\\sqrt{{{a * a * c + 1}}}", f"{a}+\\sqrt{{{c}}}", f"-{a}\\sqrt{{{c}}}"]),
        (f"(x+{a})(x-{b})",
         [f"x^2+{a}x-{b}x-{a * b}", f"(x-{b})(x+{a})"],
         [f"(x-{a})(x+{b})", f"x^2-{a * b}"]),
        (f"\\frac{{x+{a}}}{{{b}}}",
         [f"\\frac{{{a}+x}}{{{b}}}", f"\\frac{{x}}{{{b}}}+\\frac{{{a}}}{{{b}}}"],
         [f"x+\\frac{{{a}}}{{{b}}}", f"\\frac{{x-{a}}}{{{b}}}"]),
        (f"({a},\\frac{{\\pi}}{{{b}}})",
         [f"\\left({a}, \\pi/{b}\\right)", f"({a},\\frac{{2\\pi}}{{{2 * b}}})"],
         [f"({a},\\frac{{\\pi}}{{{b + 1}}})", f"(\\frac{{\\pi}}{{{b}}},{a})"]),
        (f"[{a},{a + c})", [f"{a} \\le x < {a + c}", f"x \\in [{a},{a + c})"],
         [f"{a} < x < {a + c}", f"({a},{a + c}]"]),
    ])  # fmt: skip


def pathological_responses(seed: int = 0) -> Iterator[str]:
    """Ever other answers that hang, grow or confuse a naive grader; none is ever right.

    The first passes every screen and hangs: it meets the deadline. The others are refused unseen.
    """
    rng = random.Random(seed)
    yield "\\boxed{\\prod_{k=1}^{999}(k+\\sqrt{k})}"
    i = 0
    while True:
        i += 1
        noise = bytes(rng.randrange(256) for _ in range(3000)).decode("latin-1")
        yield f"\\boxed{{9^{{9^{{{i + 8}}}}}}}"
        yield f"\\boxed{{{10**7 + i}!}}"
        yield f"\\boxed{{({i}0^7)!}}"
        yield f"\\boxed{{{'9' * 1_000_000}{i}}}"
        yield f"{i}\\boxed{{{'{' * 1_000_000}"
        yield f"{i}\\boxed{{{'{}' * 500_000}"
        yield f"\\boxed{{\\frac{{{i}}}{{2}}}}}}{{{{\\boxed{{\\frac{{1}}{{"
        yield f"\\boxed{{{noise}}}"
        yield noise * 300
        yield f"\\boxed{{{'(' * i}1{'+1)' * i}^{{{i}0000}}}}"


def spoil(items: list[Item], share: float, seed: int = 0) -> list[Item]:
    """The items with a share of them replaced by pathological ones."""
    spoilt = list(items)
    places = random.Random(seed).sample(range(len(items)), round(share * len(items)))
    for place, response in zip(places, pathological_responses(seed), strict=False):
        spoilt[place] = Item(response, items[place].gold, False)
    return spoilt


def children() -> set[int]:
    """The child processes of this one, the dead but unburied included."""
    found = set()
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = stat.read_text().rpartition(")")[2].split()[1]
        except OSError:  # it ended meanwhile
            continue
        if int(parent) == os.getpid():
            found.add(int(stat.parent.name))
    return found


def measure(items: list[Item]) -> Stress:
    """Grades the items in a pool of their own, its start included."""
    before = children()
    begin = time.perf_counter()
    with GraderPool() as pool:
        verdicts = grade_many([i.response for i in items], [i.gold for i in items], pool)
        seconds = time.perf_counter() - begin
    pairs = zip(items, verdicts, strict=True)
    errors = [(item, verdict) for item, verdict in pairs if verdict.correct != item.correct]
    return Stress(seconds, errors, Counter(v.reason for v in verdicts), children() - before)


def main(_argv) -> None:
    """Measures both sets and prints what came out."""
    items = clean_items(ITEMS.value)
    results = {"clean": measure(items), "spoilt": measure(spoil(items, SHARE.value))}
    for name, result in results.items():
        speed = len(items) / result.seconds
        print(f"{name}: {speed:,.0f} items/s ({result.seconds:.1f} s), {dict(result.reasons)}")
        print(f"  wrong verdicts {len(result.errors)}, processes left {len(result.leftover)}")
        for item, verdict in result.errors[:10]:
            print(f"  {item.gold!r}: {verdict.answer!r:.80} -> {verdict.reason}")
    ratio = results["clean"].seconds / results["spoilt"].seconds
    print(f"throughput of the spoilt set: {ratio:.2f} of the clean one")


if __name__ == "__main__":
    app.run(main)
