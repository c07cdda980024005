r"""The text of an answer: where it lies in a response, what typesetting adds to it, its number.

Text comes from a model under optimisation, so anything may be in it. Nothing here evaluates an
expression; every step is a bounded scan, and numbers are compared exactly, as fractions.
"""

import itertools
import re
from fractions import Fraction
from typing import Literal


def words_of(text: str) -> frozenset[str]:
    """The words of a text: how the lists here are written."""
    return frozenset(text.split())


_OPENING = re.compile(r"\\boxed\s*\{")
_BRACES = re.compile(r"\\.|[{}]", re.DOTALL)  # \{ and \} are no braces
_MAX_BRACES = 100_000  # looked at in one response; what has more is no answer
_MAX_ANSWER_BRACES = 1_000
_MAX_ANSWER = 2_000  # characters; longer ones are compared letter by letter only
_MAX_NUMBER = 400  # characters of a numeral, and its powers of ten: conversion is not linear

_UNICODE = str.maketrans(
    {"−": "-", "≤": r"\le ", "≥": r"\ge ", "π": r"\pi ", "×": r"\times ", "·": r"\cdot "}
    | {"÷": r"\div ", "±": r"\pm ", "∪": r"\cup ", "α": r"\alpha ", "β": r"\beta ", "θ": r"\theta "}
    | {"\t": " ", "\n": " ", "\r": " "}
)
_WRAPPERS = re.compile(
    r"\\(?:text|textbf|textrm|textit|textnormal|texttt|emph|mathrm|mathbf|mathit|mbox|boxed|fbox)"
    r"\s*\{([^{}]*)\}"
)
_WRAPPED = re.compile(r"(?:\\(?:text|mathrm|mathbf|boldsymbol|underline|mbox|boxed|fbox)\s*)?\{")
_SINGLE = re.compile(r"([_^])\{([0-9A-Za-z])\}(?![0-9A-Za-z])")
_FRACTION = re.compile(r"\\[dtc]?frac(?![a-zA-Z])(?: *([0-9A-Za-z]) *([0-9A-Za-z]))?")  # \frac 3 8
_PERCENT = re.compile(r"(?<=[0-9}]) *(?:\\ )?(?:\\text\{ *percent *\}|percent)$")
_SPACES = re.compile(r"(?<!\\)\\(?:[,;: ]|quad(?![a-zA-Z]))|(?<=.)~")  # ~9.6 is about 9.6
# Sizing, colour, negative space, dollars and degrees never change what is meant.
_NOISE = re.compile(
    r"\\(?:left|right|displaystyle|bf|large|Large)(?![a-zA-Z])|\\(?:text)?color\s*\{[a-z]*\}|\\!|\\?\$"
    r"|(?:\{\})?\^\s*\\circ(?![a-zA-Z])|\^\s*\{\s*\\circ\s*\}|\\degree(?![a-zA-Z])|\u200b"
)
_ROOT = re.compile(r"(\\sqrt\[[0-9a-z]\]) *([0-9a-z])")
_ROUNDED = re.compile(r"(?<=[0-9A-Za-z})]) *\\approx *-?[0-9]*\.?[0-9]+$")  # 1/3 \approx .33
_IDLE_SPACE = re.compile(r"(?<![0-9A-Za-z]) | (?![0-9A-Za-z])")  # "1 2" is not "12": it stays

_WORDS = re.compile(r"\(?[A-Za-z][A-Za-z ]*\)?")
_THREE_LETTERS = re.compile(r"[A-Za-z] ?[A-Za-z] ?[A-Za-z]")

_PLAIN = r"[0-9]+(?:\.[0-9]*)?|\.[0-9]+"
_NUMBER = re.compile(
    r"(?P<sign>[+-]?)(?:"
    r"(?P<grouped>[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]*)?)"
    rf"|(?P<mantissa>{_PLAIN})(?:[eE]|(?:\\times|\*) ?10\^)"
    r"(?:\{(?P<braced>[+-]?[0-9]{1,3})\}|(?P<exponent>-?[0-9]{1,3}))"
    r"|10\^(?:\{(?P<power_braced>[+-]?[0-9]{1,3})\}|(?P<power>-?[0-9]))"
    rf"|(?P<plain>{_PLAIN})"
    rf"|\\frac\{{(?P<top>[+-]?(?:{_PLAIN}))\}}\{{(?P<bottom>[+-]?(?:{_PLAIN}))\}}"
    rf"|(?P<over>{_PLAIN})/(?P<under>{_PLAIN})"
    r")(?P<percent>\\?%)?"
)

_END_SPACE = re.compile(r"(?:\\[,;:! ]|[~ ])+$")
_UNIT_TEXT = r"\\(?:text|textrm|mathrm|mbox)\s*\{([^{}]*)\}(?:\s*\^\s*\{?-?[0-9]\}?)?\s*"
_UNITS = re.compile(rf"(?:{_UNIT_TEXT}(?:(?:/|\\cdot(?![a-zA-Z])|\\[,;: ]|~)\s*)*)+\.?$")
_BARE_UNITS = (
    "cm mm km nm dm kg mg ml mL ft yd mi hr hrs min sec ms mph kph Hz kHz MHz eV keV MeV GeV "
    "kJ kW Pa kPa mol oz lb lbs am pm m/s km/h deg rad "
    "degree degrees centimeter centimeters meter meters mile miles foot feet inch inches yard "
    "yards second seconds minute minutes hour hours day days week weeks month months year years"
).replace(" ", "|")
_BARE_UNIT = re.compile(rf"(?<=[0-9}}) ])(?:{_BARE_UNITS})(?:\^\{{?[0-9]\}}?)?\.?$")
_LONE_UNITS = frozenset("msghlLJNWVAKCFT")  # only inside \text: a letter may be a variable
# With one of these the text is no unit: it gives another value, a range, a multiple.
_NO_UNITS = words_of(
    "or and less more than greater fewer least most over under up only except without plus "
    "minus times mod modulo base dozen hundred hundreds thousand thousands million millions "
    "billion billions trillion trillions half halves third thirds quarter quarters double twice "
    "triple squared cubed percent factorial where both some one two three four five six seven "
    "eight nine ten to power root of if pi sqrt sin cos tan cot sec csc log ln exp max gcd lcm "
    "infinity infty inf theta alpha beta gamma delta lambda omega sigma"
)
_UNIT_WORDS = re.compile(r"[A-Za-zµΩ]+")
_UNIT_LETTERS = re.compile(r"[A-Za-zµΩ/ .()*~-]+")

# What may be shown to the parser of expressions: these characters, commands and short names.
_CHARACTERS = re.compile(r"[0-9A-Za-z\s+\-*/^_=<>()\[\]{}|!.,;&\\%:]*")
_COMMANDS = words_of(
    "frac sqrt pi times cdot div pm mp infty cup cap in le leq leqslant ge geq geqslant lt gt "
    "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln exp lim to max min "
    "gcd lcm binom sum prod int lfloor rfloor lceil rceil lvert rvert vert mid begin end "
    "alpha beta gamma delta epsilon varepsilon zeta eta theta kappa lambda mu nu xi rho sigma "
    "tau phi varphi chi psi omega Gamma Delta Theta Lambda Sigma Phi Psi Omega hbar ell angle"
)
_ENVIRONMENTS = frozenset(("matrix", "pmatrix", "bmatrix", "vmatrix"))
_COMMAND = re.compile(r"\\([A-Za-z]+)")
_ENVIRONMENT = re.compile(r"\\(?:begin|end)\{([A-Za-z]*)\}")
_NEVER = re.compile(r"__|\*\*|\.\.")
_LONG_WORD = re.compile(r"[A-Za-z]{4,}")
_BRACKETS = re.compile(r"\\[a-zA-Z]+|\\.|[{}()\[\]]")
_MAX_DEPTH = 12

_NAMES = re.compile(
    r"(?<![\\A-Za-z])(sqrt|pi|sin|cos|tan|log|ln|infty|theta|alpha|beta|gamma|omega)(?![A-Za-z])"
)
_INFINITY = re.compile(r"(?<![\\A-Za-z])(?:inf|oo)(?![A-Za-z])")
_CALLED_ROOT = re.compile(r"\\sqrt\(([^()]*)\)")

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
            close, seen = _closing(text, opening.end(), left)
            if close is not None:
                return text[opening.end() : close], True
            left -= seen
        left -= 1
        end = start
    return None, opened


def _closing(text: str, begin: int, limit: int) -> tuple[int | None, int]:
    """Where the brace opened before `begin` is closed, and how many braces were looked at."""
    depth, seen = 1, 0
    for token in itertools.islice(_BRACES.finditer(text, begin), limit):
        seen += 1
        depth += (token.group() == "{") - (token.group() == "}")
        if depth == 0:
            return token.start(), seen
    return None, seen


def compare(answer: str, gold: str) -> Literal["match", "wrong", "timeout"] | tuple[str, str]:
    """Compares as text and as numbers; a pair of expressions where that takes algebra.

    "timeout": evaluating one of them costs more than a grader can spend.
    """
    if len(answer) > _MAX_ANSWER:
        return "match" if answer == gold.strip() else "wrong"
    if same(clean(answer), clean(gold)):
        return "match"
    ours, theirs = (clean(without_unit(text)) for text in (answer, gold))
    equal = same(ours, theirs)
    if equal is None and ("\\text" in gold or "\\mbox" in gold) and _WORDS.fullmatch(theirs):
        equal = bool(same(ours.strip("()"), theirs.strip("()")))  # words, no product of variables
    elif equal is None and _THREE_LETTERS.fullmatch(theirs) and spell(theirs) == theirs:
        # abc is c b a. More letters are a word, or spaced, and no case of their own.
        equal = sorted(ours.replace(" ", "")) == sorted(theirs.replace(" ", ""))
    if equal is not None:
        return "match" if equal else "wrong"
    pair = spell(ours), spell(theirs)
    screened = {screen(text) for text in pair}
    if "text" in screened:
        return "wrong"
    return "timeout" if "heavy" in screened else pair


def clean(text: str) -> str:
    """Takes away what typesetting adds to an answer: dollars, spaces, wrappers, a final period."""
    text = _FRACTION.sub(
        lambda found: r"\frac" + "".join(f"{{{digit}}}" for digit in found.groups() if digit),
        text.translate(_UNICODE),
    )
    text = _unwrap(_ROOT.sub(r"\1{\2}", _NOISE.sub("", _SPACES.sub(" ", text))).strip())
    # Twice: a wrapper in a wrapper. Deeper ones say something else.
    text = _WRAPPERS.sub(r"\1", _WRAPPERS.sub(r"\1", text))
    text = _IDLE_SPACE.sub("", " ".join(text.replace("{,}", ",").replace("{:}", ":").split()))
    text = _SINGLE.sub(r"\1\2", text)
    return text[:-1] if text.endswith(".") and len(text) > 1 else text


def _unwrap(text: str) -> str:
    """The content of braces, or of a text command, around the whole."""
    found = _WRAPPED.match(text)
    if found is None or _closing(text, found.end(), _MAX_ANSWER_BRACES)[0] != len(text) - 1:
        return text
    return text[found.end() : -1].strip()


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
    value = Fraction((top or "1").replace(",", "")) * Fraction(10) ** int(tens) / bottom
    return -value if part["sign"] == "-" else value, part["percent"] is not None


def without_unit(text: str) -> str:
    """The value of an answer as it was written, without the unit or remark behind it.

    That is text at the end, none of whose words changes the value ("or", "million"), or a bare
    abbreviation. What it says is not compared. A rounded value beside an exact one goes too.
    """
    text = _PERCENT.sub(r"\%", _unwrap(text.strip().rstrip("$").rstrip()))
    found = _UNITS.search(text)
    if found is None or not _is_unit(" ".join(re.findall(_UNIT_TEXT, found.group()))):
        found = _BARE_UNIT.search(text)
    value = _END_SPACE.sub("", text[: found.start()]) if found else ""
    if re.search(r"[0-9]|\\pi|\\sqrt", value) and not value.endswith(("\\", "^", "_", "{", "(")):
        text = value
    return _ROUNDED.sub("", text)


def _is_unit(text: str) -> bool:
    words = _UNIT_WORDS.findall(text)
    if not words or not _UNIT_LETTERS.fullmatch(text):
        return False
    lone = len(words) == len(words[0]) == 1
    return words[0] in _LONE_UNITS if lone else _NO_UNITS.isdisjoint(map(str.lower, words))


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


def spell(text: str) -> str:
    """Writes bare names of functions and constants as commands: sqrt(2), pi/4, inf."""
    text = _INFINITY.sub(r"\\infty ", _NAMES.sub(r"\\\1 ", text))
    text = _CALLED_ROOT.sub(r"\\sqrt{\1}", text.replace("sqrt (", "sqrt("))
    return _IDLE_SPACE.sub("", " ".join(text.split()))
