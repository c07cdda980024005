r"""The text of an answer: where it lies in a response, what typesetting adds to it, its number.

Text comes from a model under optimisation, so anything may be in it. Nothing here evaluates an
expression; every step is a bounded scan, and numbers are compared exactly, as fractions.
"""

import re
from fractions import Fraction
from typing import Literal

from math_grader import units
from math_grader.notation import clean, closing, spell
from math_grader.units import words_of

_OPENING = re.compile(r"\\boxed\s*\{")
_MAX_BRACES = 100_000  # looked at in one response; what has more is no answer
_MAX_ANSWER = 2_000  # characters; longer ones are compared letter by letter only
_MAX_NUMBER = 400  # characters of a numeral, and its powers of ten: conversion is not linear

_WORDS = re.compile(r"\(?[A-Za-z][A-Za-z ]*\)?")
_PRODUCT = re.compile(r"\\cdot(?![a-z])|\\times(?![a-z])|[* ]")
_THREE_LETTERS = re.compile(r"[A-Za-z] ?[A-Za-z] ?[A-Za-z]")

_PLAIN = r"[0-9]+(?:\.[0-9]*)?|\.[0-9]+"
_NUMBER = re.compile(
    r"(?P<sign>[+-]?)(?:"
    r"(?P<grouped>[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]*)?|[1-9][0-9]{0,2}(?: [0-9]{3})+)"
    rf"|(?P<mantissa>{_PLAIN})(?:[eE]|(?:\\times|\\cdot|\*| ?x) ?10\^)"
    r"(?:\{(?P<braced>[+-]?[0-9]{1,3})\}|(?P<exponent>[+-]?[0-9]{1,3}))"
    r"|10\^(?:\{(?P<power_braced>[+-]?[0-9]{1,3})\}|(?P<power>-?[0-9]))"
    rf"|(?P<plain>{_PLAIN})"
    rf"|\\frac\{{(?P<top>[+-]?(?:{_PLAIN}))\}}\{{(?P<bottom>[+-]?(?:{_PLAIN}))\}}"
    rf"|(?P<over>{_PLAIN})/(?P<under>{_PLAIN})"
    r")(?P<percent>\\?%)?"
)

# What may be shown to the parser of expressions: these characters, commands and short names.
_CHARACTERS = re.compile(r"[0-9A-Za-z\s+\-*/^_=<>()\[\]{}|!.,;&\\%:]*")
_COMMANDS = words_of(
    "frac sqrt pi times cdot div pm mp infty cup cap in le leq leqslant ge geq geqslant lt gt "
    "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln exp lim to max min "
    "gcd lcm binom sum prod int lfloor rfloor lceil rceil lvert rvert vert mid begin end ne "
    "alpha beta gamma delta epsilon varepsilon zeta eta theta kappa lambda mu nu xi rho sigma "
    "tau phi varphi chi psi omega Gamma Delta Theta Lambda Sigma Phi Psi Omega hbar ell angle "
    "setminus"
)
_ENVIRONMENTS = frozenset(("matrix", "pmatrix", "bmatrix", "vmatrix"))
_COMMAND = re.compile(r"\\([A-Za-z]+)")
_ENVIRONMENT = re.compile(r"\\(?:begin|end)\{([A-Za-z]*)\}")
_NEVER = re.compile(r"__|\*\*|\.\.")
_LONG_WORD = re.compile(r"[A-Za-z]{4,}")
_BRACKETS = re.compile(r"\\[a-zA-Z]+|\\.|[{}()\[\]]")
_MAX_DEPTH = 12

# Numbers, or operations on them, that no exact comparison can afford.
_BIG = r"(?:[0-9]{5,})"
_HEAVY = re.compile(
    rf"\^\s*[({{]?\s*-?\s*{_BIG}"  # x^{100000}
    r"|[0-9)}]\s*\^\s*[({][^{}()]*(?:[0-9)}]\s*\^|!)"  # 9^{9^..., 2^{5!}
    r"|\^\s*[0-9A-Za-z]\s*\^"  # 9^9^9
    rf"|{_BIG}\s*[)}}]*!|\([^()]*[0-9]\s*\^[^()]*\)\s*!|!\s*[)}}]*\s*!"  # 10000!, (10^7)!, (9!)!
    r"|[eE][+-]?[0-9]{4,}"  # 1e999999999
    r"|\^\{?[+-]?\d{2,}\}?\s*[)}]\s*\^\{?[+-]?\d{2,}"  # (9^99)^99
)
_COUNTING = re.compile(r"\\(?:binom|sum|prod|int|lim)(?![A-Za-z])")
_COUNTED_FAR = re.compile(r"[0-9]{4,}|(?<!_)[0-9]\s*\^\s*\{?[0-9]")


def last_box(text: str) -> tuple[str | None, bool]:
    """The content of the balanced ``\\boxed{...}`` that starts last, and whether any was opened.

    A response with more than 100,000 braces behind its boxes counts as unbalanced.
    """
    opened, left, end = False, _MAX_BRACES, len(text)
    while left > 0 and (start := text.rfind("\\boxed", 0, end)) >= 0:
        opening = _OPENING.match(text, start)
        if opening:
            opened = True
            close, seen = closing(text, opening.end(), left)
            if close is not None:
                return text[opening.end() : close], True
            left -= seen
        left -= 1
        end = start
    return None, opened


def compare(answer: str, gold: str) -> Literal["match", "wrong", "timeout"] | tuple[str, str]:
    """Compares as text and as numbers; a pair of expressions where that takes algebra.

    "timeout": evaluating one of them costs more than a grader can spend.
    """
    if len(answer) > _MAX_ANSWER:
        return "match" if answer == gold.strip() else "wrong"
    if same(clean(answer), clean(gold)):
        return "match"
    (ours, unit), (theirs, wanted) = (units.split(text) for text in (answer, gold))
    ours, theirs = clean(ours), clean(theirs)
    if unit is None and wanted == units.DEGREE and "\\pi" in ours:
        unit = units.RADIAN
    if unit and wanted and unit != wanted:
        if unit.powers != wanted.powers:
            return "wrong"
        ours = _times(ours, unit.factor / wanted.factor, unit.pis - wanted.pis)
    equal = same(ours, theirs)
    is_word = _WORDS.fullmatch(theirs) and spell(theirs) == theirs
    if equal is None and ("\\text" in gold or "\\mbox" in gold) and is_word:
        equal = bool(same(ours.strip("()"), theirs.strip("()")))  # words, no product of variables
    elif equal is None and _THREE_LETTERS.fullmatch(theirs) and is_word:
        # abc is c b a. More letters are a word, or spaced, and no case of their own.
        equal = sorted(_PRODUCT.sub("", ours)) == sorted(theirs.replace(" ", ""))
    if equal is not None:
        return "match" if equal else "wrong"
    pair = spell(ours), spell(theirs)
    screened = {screen(text) for text in pair}
    if "text" in screened:
        return "wrong"
    return "timeout" if "heavy" in screened else pair


def same(a: str, b: str) -> bool | None:
    """Whether two cleaned answers agree as text or as numbers; None where that does not decide.

    Words may differ in case. "50%" is taken for 50 (a rate asked for in percent) and for 1/2.
    """
    if a == b or (a.casefold() == b.casefold() and _WORDS.fullmatch(b)):
        return bool(b)
    ours, theirs = number(a), number(b)
    if ours is None or theirs is None:
        return None
    (value, percent), (other, percent_too) = ours, theirs
    if percent == percent_too:
        return value == other
    rate, bare = (value, other) if percent else (other, value)
    return bare in (rate, rate / 100)


def number(text: str) -> tuple[Fraction, bool] | None:
    """(exact value, whether a percent sign follows) of a cleaned answer that is a numeral."""
    if len(text) > _MAX_NUMBER:
        return None
    found = _NUMBER.fullmatch(text[1:-1] if text[:1] + text[-1:] == "()" else text)
    if found is None:
        return None
    part = found.groupdict()
    tens = part["braced"] or part["exponent"] or part["power_braced"] or part["power"] or 0
    bottom = Fraction(part["bottom"] or part["under"] or 1)
    if abs(int(tens)) > _MAX_NUMBER or not bottom:
        return None
    top = part["grouped"] or part["plain"] or part["mantissa"] or part["top"] or part["over"]
    value = Fraction(re.sub("[, ]", "", top or "1")) * Fraction(10) ** int(tens) / bottom
    return -value if part["sign"] == "-" else value, part["percent"] is not None


def _times(text: str, factor: Fraction, pis: int) -> str:
    """A cleaned answer times `factor * pi**pis`: a numeral where it is one."""
    known = number(text)
    if known and not (pis or known[1]):
        factor, text = factor * known[0], ""
    top, bottom = factor.numerator, factor.denominator
    power = rf"\cdot\pi^{{{pis}}}" if pis else ""
    return rf"\frac{{{top}}}{{{bottom}}}{power}" + (rf"\cdot({text})" if text else "")


def screen(text: str) -> Literal["expression", "text", "heavy"]:
    """What may be done with a cleaned answer.

    "expression": it may be parsed and compared. "text": it is no mathematics that is supported, and
    only equal text is equal. "heavy": it is, but evaluating it costs more than a grader can spend.
    """
    if (
        not 0 < len(text) <= _MAX_ANSWER // 2
        or not _CHARACTERS.fullmatch(text)
        or not _COMMANDS.issuperset(_COMMAND.findall(text))
        or not _ENVIRONMENTS.issuperset(_ENVIRONMENT.findall(text))
        or _NEVER.search(text)
        or _LONG_WORD.search(_COMMAND.sub("", _ENVIRONMENT.sub("", text)))
    ):
        return "text"
    # Braces close as they open, nested at most 12 deep; brackets are only counted.
    depth = brackets = 0
    for token in _BRACKETS.findall(text):
        depth += (token == "{") - (token == "}")
        brackets += (token in ("(", "[")) - (token in (")", "]"))
        if not 0 <= depth <= _MAX_DEPTH or not 0 <= brackets <= _MAX_DEPTH:
            return "text"
    if depth or brackets:
        return "text"
    if _HEAVY.search(text) or (_COUNTING.search(text) and _COUNTED_FAR.search(text)):
        return "heavy"
    return "expression"
