"""Builtin rewards against their sources: verl's gsm8k, DAPO's equation, TRL's functions."""

import random
import re

import pytest

from remix_jax.data.problems import Problem
from remix_jax.rewards import Item, Scorer, builtins


def score(spec, completion, ids=(), answers=("18",), prompt=""):
    return Scorer((spec,))([Item(Problem("q", answers, "p"), prompt, completion, ids, True, "x")])[
        0
    ]


@pytest.mark.parametrize(
    ("text", "strict", "flexible"),
    [
        ("so #### 18", "18", "18"),
        ("#### 17\n#### 18", "18", "18"),  # the last one
        ("#### 1,800", "1800", "1,800"),
        ("#### -3.50", "-3.50", "-3.50"),
        ("#### $18", None, "18"),
        ("####18", None, "18"),
        ("### 18", None, "18"),
        ("#### 18.", "18.", "18."),
        ("it is 18 .", None, "18"),
        ("no number", None, None),
        ("...", None, "..."),
        (".", None, "."),
        ("#### 18" + " " * 300, None, None),  # 300 characters from the end
        ("#### 18" + " " * 293, "18", "18"),
        ("18 dollars, not 19 #### x", None, "19"),
    ],
)
def test_gsm8k_reads_what_verl_reads(text, strict, flexible):
    assert builtins.gsm8k_answer(text, "strict") == strict
    assert builtins.gsm8k_answer(text, "flexible") == flexible


def test_gsm8k_scores_by_equal_text():
    found = score("gsm8k", "#### 18")
    assert (found.reward, found.correct, found.answer, found.reason) == (1.0, True, "18", "match")
    assert score("gsm8k", "#### 18.0")[:2] == (0.0, False)
    assert score("gsm8k", "it is 18").reason == "no-answer"
    assert score("gsm8k?method=flexible", "it is 18").correct
    assert score("gsm8k", "#### 1,800", answers=("1,800",)).correct
    assert score("gsm8k", "#### 18", answers=(18.0,)).correct


def test_gsm8k_accepts_every_solution_of_the_real_set(shared):
    """verl's own files: each worked solution earns 1, by strict and by flexible rule."""
    pandas = pytest.importorskip("pandas")
    rows = pandas.read_parquet(shared / "data" / "gsm8k" / "test.parquet")
    items = [
        Item(Problem("q", (model["ground_truth"],), "p"), "", info["answer"], [], True, "hash")
        for model, info in zip(rows["reward_model"], rows["extra_info"], strict=True)
    ]
    for method in ("strict", "flexible"):
        found = Scorer((f"gsm8k?method={method}",))(items)
        right = [s.correct for s in found]
        # The flexible rule keeps the commas of a number, as verl's does.
        commas = ["," in s.answer for s in found]
        assert [r or c for r, c in zip(right, commas, strict=True)] == [True] * 1319
        assert method == "flexible" or all(right)


def test_think_format_is_trls_pattern():
    pattern = re.compile(r"^<think>(?!.*<think>)(.*?)</think>.*$", re.DOTALL | re.MULTILINE)
    rng = random.Random(0)
    pieces = ["<think>", "</think>", "a", "\n", " ", "\\boxed{1}"]
    seen = set()
    for _ in range(3000):
        text = "".join(rng.choices(pieces, weights=[2, 2, 1, 1, 1, 1], k=rng.randrange(6)))
        expected = float(pattern.match(text) is not None)
        assert builtins.think_format("", text) == expected, text
        seen.add(expected)
    assert seen == {0.0, 1.0}
    assert builtins.think_format("<|assistant|><think>\n", "a</think> b") == 1.0
    assert builtins.think_format("<|assistant|><think>\n", "<think>a</think> b") == 0.0


def test_overlong_is_dapos_equation():
    longest, buffer = 20, 5
    for n in range(30):
        expected = 0.0 if n <= 15 else (15 - n) / 5 if n <= 20 else -1.0
        assert builtins.overlong(n, longest, buffer) == expected
        assert score(f"overlong?max={longest}&buffer={buffer}", "", range(n)).reward == expected
    # The numbers of TRL's docstring, and the defaults: the limit of responses, a fifth of it.
    assert builtins.overlong(90, 100, 20) == -0.5
    default = Scorer(("overlong",), response_tokens=100)
    lengths = [
        default([Item(Problem("q", (), "p"), "", "", range(n), True, "x")])[0] for n in (80, 90)
    ]
    assert [s.reward for s in lengths] == [0.0, -0.5]


def test_repetition_is_trls_formula():
    # The numbers of TRL's docstring.
    assert builtins.repetition([1, 2, 3, 4], 2, -1.0) == 0.0
    assert builtins.repetition([5, 5, 5, 5, 5], 2, -1.0) == -0.75
    rng = random.Random(1)
    for _ in range(200):
        ids = rng.choices(range(4), k=rng.randrange(30))
        grams = [tuple(ids[i : i + 3]) for i in range(len(ids) - 2)]
        expected = -0.5 * (1 - len(set(grams)) / len(grams)) if grams else 0.0
        assert score("repetition?n=3&penalty=-0.5", "", ids).reward == pytest.approx(expected)
