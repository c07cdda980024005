import time

import pytest

from math_grader import Verdict, grade

LONG = 1_000_000


def verdict(response, answers="42"):
    return grade(response, answers)


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("42", "42"),
        (" 42 ", "42"),
        ("42.", "42"),
        ("042", "42"),
        ("+42", "42"),
        ("42.0", "42"),
        ("42", 42),
        ("42", 42.0),
        ("(42)", "42"),
        ("−42", "-42"),
        ("-42", -42.0),
        ("$42$", "42"),
        (r"\$42", "42"),
        ("42", r"\$42"),
        (r"\text{42}", "42"),
        (r"\mathbf{42}", "42"),
        (r"\left(42\right)", "42"),
        (r"\displaystyle 42", "42"),
        ("1,234", "1234"),
        ("1{,}234{,}567", "1234567"),
        (r"32,\!348", "32348"),
        ("12,345,678,901,234,567,890,123", "12345678901234567890123"),
        ("1.50", "1.5"),
        (".5", "0.5"),
        ("0.5", 0.5),
        ("3/2", "1.5"),
        (r"\frac{3}{2}", "1.5"),
        (r"\dfrac{6}{4}", "3/2"),
        (r"\tfrac32", r"\frac{3}{2}"),
        (r"-\frac{1}{2}", r"\frac{-1}{2}"),
        (r"\frac{1}{-2}", "-0.5"),
        (r"\frac{0.5}{2}", "1/4"),
        (r"60^\circ", "60"),
        ("60", r"60^{\circ}"),
        ("10^{16}", 1e16),
        (r"5~\text{cm}", "5"),
        (r"5\ \mathrm{~cm}", "5"),
        (r"9.8 \mathrm{~m} / \mathrm{s}^2", "9.8"),
        (r"6 \times 10^{13}\ \text{kg}\cdot\text{m}^2", "6e13"),
        (r"\text{90 degrees}", r"90^\circ"),
        (r"60\degree", "60"),
        (r"50\text{ percent}", r"50\%"),
        (r"10:45 \text{ AM}", "10:45"),
        (r"\frac{3}{8} \approx 0.38", "3/8"),
        (r"\frac 3 8", "3/8"),
        ("10^-3", "0.001"),
        (r"\textcolor{blue}{42}", "42"),
        (r"\boldsymbol{42}", "42"),
        (r"\underline{42}", "42"),
        ("10{:}45", "10:45"),
        (r"50\%", "50"),
        ("50%", r"\frac12"),
        ("Evelyn", r"\text{Evelyn}"),
        (r"\textbf{no solution}", r"\text{no  solution}"),
        (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\frac{\pi}{2})"),
        (r"x^{2^{3}}", "x^{2^{3}}"),
        (r"\{1, 2\}", r"\{1,2\}"),
        ("42=42", "42"),  # both sides are
        ("43-1", "42"),
    ],
)
def test_equal_answers_match(answer, gold):
    assert grade(f"so \\boxed{{{answer}}}", gold) == Verdict(True, answer.strip(), "match")


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("41", "42"),
        ("42.0000001", "42"),
        ("4 2", "42"),  # two tokens are not one number
        ("12,34", "1234"),
        ("41=42", "42"),
        ("42 and 43", "42"),
        (r"42 \text{ or } 43", "42"),
        (r"42\text{ million}", "42"),
        ("42...", "42"),
        (r"3\text{i}", "3"),
        (r"\approx 42", "42"),
        (r"42 \approx 42.0, 43", "42"),  # two answers
        ("thorn", "north"),
        ("0.3333", r"\frac{1}{3}"),
        ("3.61e-10", "0"),
        ("12345678901234567000000", "12345678901234567890123"),
        (r"1\frac{1}{2}", "1/2"),
        (r"\frac{x+1}{2}", "x+1/2"),
        (r"2^{n}-1", "2^{n-1}"),
        (r"\sqrt[3]{8}", r"\sqrt{8}"),
        ("1/0", "1/0.0"),
        ("5%", r"50\%"),
        ("5000%", "50%"),
        ("50%", "5"),
        ("50%", "5000"),
        (r"\phantom{42}41", "42"),
        ("correct", "42"),
        ("4²", "42"),
        ("٤٢", "42"),
        ("9**(9**9)", "42"),
        ('__import__("os")', "42"),
        (r"\text{}", ""),  # nothing left on either side is no agreement
        ("1", float("nan")),
    ],
)
def test_different_answers_are_wrong(answer, gold):
    assert grade(f"so \\boxed{{{answer}}}", gold) == Verdict(False, answer, "wrong")


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (r"\boxed{41}, no: \boxed{42}", Verdict(True, "42", "match")),
        (r"\boxed{42}, no: \boxed{41}", Verdict(False, "41", "wrong")),
        (r"\boxed{\boxed{42}}", Verdict(True, "42", "match")),
        (r"\boxed {42}", Verdict(True, "42", "match")),
        (r"\\boxed{42}", Verdict(True, "42", "match")),
        (r"\\boxed{41} \\boxed{42}", Verdict(True, "42", "match")),
        (r"{ { \boxed{42}", Verdict(True, "42", "match")),
        (r"} \boxed{42} }", Verdict(True, "42", "match")),
        (r"\boxed{42} then \boxed{43", Verdict(True, "42", "match")),
        (r"\boxed{41 \boxed{42}", Verdict(True, "42", "match")),
        (r"<think> 1 </think> \boxed{ 42 }", Verdict(True, "42", "match")),
        (r"<think>\boxed{41}</think> \boxed{42}", Verdict(True, "42", "match")),
        (r"<think>\boxed{42}</think> it is 42", Verdict(False, None, "no-box")),
        (r"<think>\boxed{42}</think> \boxed{43</think>", Verdict(False, None, "no-box")),
        (r"<think> still thinking \boxed{42}", Verdict(True, "42", "match")),
        (r"a</think>\boxed{1}</think>\boxed{42}", Verdict(True, "42", "match")),
        (r"\boxed{42", Verdict(False, None, "unbalanced-box")),
        (r"\boxed{42\}", Verdict(False, None, "unbalanced-box")),
        (r"\boxed{{42}", Verdict(False, None, "unbalanced-box")),
        (r"\boxed42", Verdict(False, None, "no-box")),
        ("the answer is 42", Verdict(False, None, "no-box")),
        ("", Verdict(False, None, "no-box")),
        (r"\boxed{}", Verdict(False, "", "empty-box")),
        (r"\boxed{ }", Verdict(False, "", "empty-box")),
    ],
)
def test_extraction(response, expected):
    assert verdict(response) == expected


def test_escaped_braces_do_not_close_a_box():
    assert verdict(r"\boxed{\left\{1,2\right.}", r"\{1,2.").answer == r"\left\{1,2\right."


def test_any_listed_answer_counts():
    assert verdict(r"\boxed{2}", ["1", 2.0]).correct
    assert verdict(r"\boxed{2}", ("2",)).correct
    assert not verdict(r"\boxed{3}", ["1", 2.0]).correct
    assert not verdict(r"\boxed{3}", []).correct


@pytest.mark.parametrize(
    "response",
    [
        "{" * LONG,
        "}" * LONG,
        "\\" * LONG,
        "\\boxed{" * (LONG // 7),
        "\\boxed{1" + "{" * LONG,
        "\\boxed{1}" + "\\" * LONG,
        "\\boxed" + " " * LONG,
        "\\boxed{" + "9" * LONG + "}",
        "\\boxed{" + "9" * LONG + "x}",
        "\\boxed{" + "1," * (LONG // 2) + "}",
        "\\boxed{" + " " * LONG + "1 }",
        "\\boxed{" + "\\text{" * (LONG // 6) + "}" * (LONG // 6) + "}",
        "\\boxed{" + "\\text{a" * (LONG // 7) + "}",
        "\\boxed{" + "^ " * (LONG // 2) + "}",
        "\\boxed{^" + " " * LONG + "}",
        "\\boxed{" + "$" * LONG + "}",
        "\\boxed{" + "-" * LONG + "}",
        "\\boxed{" + "\\frac{1}{" * (LONG // 9) + "}" * (LONG // 9) + "}",
        "<think>" * (LONG // 7) + "</think>" * (LONG // 8),
        "<think>x</think>\\boxed{41}" * (LONG // 26),
    ],
    ids=lambda response: response[:14],
)
def test_hostile_megabyte_is_wrong_soon(response):
    begin = time.process_time()
    assert not verdict(response).correct
    # Linear scans take well under a second of processor time; anything quadratic takes hours.
    assert time.process_time() - begin < 10
