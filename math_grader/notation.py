r"""One notation for what can be written in several: Unicode, TeX, names of functions.

Every step is a bounded scan of the text; nothing is evaluated.
"""

import itertools
import re
from fractions import Fraction

BRACES = re.compile(r"\\.|[{}]", re.DOTALL)  # \{ and \} are no braces
_MAX_BRACES = 1_000
_MAX_INFIX = 16  # \over and \choose of one answer

_RAISED, _LOWERED = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿ", "₀₁₂₃₄₅₆₇₈₉"
_LEVEL = str.maketrans(_RAISED + _LOWERED, "0123456789+-()n0123456789")
_FRACTIONS = "¼1/4 ½1/2 ¾3/4 ⅓1/3 ⅔2/3 ⅕1/5 ⅖2/5 ⅗3/5 ⅘4/5 ⅙1/6 ⅚5/6 ⅛1/8 ⅜3/8 ⅝5/8 ⅞7/8"
_UNICODE = str.maketrans(
    {"−": "-", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "∈": r"\in ", "∪": r"\cup ", "⁄": "/"}
    | {
        "×": r"\times ",
        "·": r"\cdot ",
        "⋅": r"\cdot ",
        "÷": r"\div ",
        "±": r"\pm ",
        "∞": r"\infty ",
    }
    | {
        "π": r"\pi ",
        "α": r"\alpha ",
        "β": r"\beta ",
        "θ": r"\theta ",
        "°": r"^\circ ",
        "ℝ": r"\mathbb{R}",
    }
    | {"⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ", "⌉": r"\rceil ", "Å": "Angstrom"}
    | dict.fromkeys("\t\n\r\u00a0\u2009\u202f\u3000", " ")
    | {each[0]: rf"\frac{{{each[1]}}}{{{each[3]}}}" for each in _FRACTIONS.split()}
    | {chr(0xFF00 + i): chr(0x20 + i) for i in range(1, 95)}  # full width
)
_SCRIPT = re.compile(rf"(?<=[0-9A-Za-z)\]}}])(?:([{_RAISED}]+)|([{_LOWERED}]+))")
_RADICAL = re.compile(
    r"([√∛∜]) *(?:\{([^{}]*)\}|\(([^()]*)\)"
    r"|(\\frac\{[^{}]*\}\{[^{}]*\}|[0-9]+(?:\.[0-9]+)?|[A-Za-z]|\\pi))"
)
_INDEX = {"√": "", "∛": "[3]", "∜": "[4]"}

_TEXTUAL = "text|textbf|textrm|textit|textnormal|texttt|emph|mathrm|mathbf|mathit|mbox|boxed|fbox"
_WRAPPERS = re.compile(rf"\\(?:{_TEXTUAL})\s*\{{([^{{}}]*)\}}")
_WRAPPED = re.compile(r"(?:\\(?:text|mathrm|mathbf|boldsymbol|underline|mbox|boxed|fbox)\s*)?\{")
_SINGLE = re.compile(r"([_^])\{([0-9A-Za-z])\}(?![0-9A-Za-z])")
_FRACTION = re.compile(  # \frac 3 8, \tbinom52
    r"\\[dtc]?(frac|binom)(?![a-zA-Z])(?: *([0-9A-Za-z]) *([0-9A-Za-z]))?"
)
_INFIX = re.compile(r"\\(over|choose)(?![A-Za-z])")
_NO_INFIX = re.compile(r"&|\\\\|\\(?:left|right)(?![A-Za-z])")  # ends a part, too
_ARGUMENT = re.compile(r"(?:\\[A-Za-z]+|[\]}^_])\s*$")  # of what stands before: braces stay
_REPEATING = re.compile(
    r"(?<![0-9.,])(?<![0-9] )([0-9]{0,30})\.([0-9]{0,30})(?:\\(?:overline|bar|dot)(?![A-Za-z])\s*"
    r"(?:\{([0-9]{1,30})\}|([0-9]))|\\dot\s*\{?([0-9])\}?([0-9]{0,30})\\dot\s*\{?([0-9])\}?)"
    r"(?!\s*(?:[0-9.,{]|\\(?:dot|bar|overline)))"
)
DEGREE = r"(?:(?:\{\})?\^\s*\\circ(?![a-zA-Z])|\^\s*\{\s*\\circ\s*\}|\\degree(?![a-zA-Z]))"
TRIGONOMETRY = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-zA-Z])")
_DEGREES = re.compile(rf"(?<![0-9.,])([0-9]+(?:\.[0-9]+)?)\s*{DEGREE}")
_SPACES = re.compile(r"(?<!\\)\\(?:[,;: ]|q?quad(?![a-zA-Z]))|~")
# Sizing, colour, negative space, dollars and degrees never change what is meant.
_NOISE = re.compile(
    r"\\(?:left|right)(?:\.|(?![a-zA-Z]))|\\(?:[bB]igg?[lr]?|displaystyle|textstyle|bf|rm|small|[lL]arge)"
    rf"(?![a-zA-Z])|\\(?:text)?color\s*\{{[a-z]*\}}|\\!|\\?\$|{DEGREE}|\u200b"
)
_ARRAY = re.compile(r"([(\[])\\begin\{array\}\{[clr| ]*\}((?:(?!\\begin).)*)\\end\{array\}[)\]]")
_ROOT = re.compile(r"(\\sqrt\[[0-9a-z]\]) *([0-9a-z])")
_IDLE_SPACE = re.compile(r"(?<![0-9A-Za-z]) | (?![0-9A-Za-z])")  # "1 2" is not "12": it stays
_SYNONYMS = {
    r"\lbrace": r"\{",
    r"\rbrace": r"\}",
    r"\lbrack": "[",
    r"\rbrack": "]",
    r"\neq": r"\ne",
}
_SYNONYM = re.compile(r"\\(?:[lr]brac[ek]|neq)(?![A-Za-z])")

_NAMES = re.compile(
    r"(?<![\\A-Za-z])(sqrt|pi|sin|cos|tan|log|ln|infty|theta|alpha|beta|gamma|omega)(?![A-Za-z])"
)
_INFINITY = re.compile(r"(?<![\\A-Za-z])(?:inf|oo|[iI]nfinity)(?![A-Za-z])")
_REALS = re.compile(r"\\mathbb\s*(?:\{R\}|R)(?!\s*[\^_])|(?:all|the) real numbers|all reals")
_CALLED_ROOT = re.compile(r"\\sqrt\(([^()]*)\)")
# ]2,5] and [2,5[ as they are written in France, alone or in a union.
_BEGIN, _END = r"(?:(?<=^)|(?<=\\cup)|(?<=\\in))", r"(?=$|\\cup)"
_OPEN_LEFT = re.compile(rf"{_BEGIN}\]([^()\[\]]*[,;][^()\[\]]*[\[\])]){_END}")
_OPEN_RIGHT = re.compile(rf"{_BEGIN}([\[(][^()\[\]]*[,;][^()\[\]]*)\[{_END}")


def clean(text: str) -> str:
    """Takes away what typesetting adds to an answer: dollars, spaces, wrappers, a final period."""
    text = _SYNONYM.sub(lambda found: _SYNONYMS[found[0]], plain(text))
    text = _infix(_FRACTION.sub(_braced, text))
    text = _REPEATING.sub(_repeated, text)
    if TRIGONOMETRY.search(text):
        text = _DEGREES.sub(r"{\\frac{\1\\pi}{180}}", text)
    text = unwrap(_ROOT.sub(r"\1{\2}", _NOISE.sub("", _SPACES.sub(" ", text))).strip())
    # Twice: a wrapper in a wrapper. Deeper ones say something else.
    text = _WRAPPERS.sub(r"\1", _WRAPPERS.sub(r"\1", text))
    text = _ARRAY.sub(r"\\begin{pmatrix}\2\\end{pmatrix}", text)
    text = _IDLE_SPACE.sub("", " ".join(text.replace("{,}", ",").replace("{:}", ":").split()))
    text = _SINGLE.sub(r"\1\2", text)
    return text[:-1] if text.endswith(".") and len(text) > 1 else text


def plain(text: str) -> str:
    r"""Signs of Unicode as TeX writes them: \u221a2, x\u00b2, \u00bd, \u221e, full-width digits."""
    text = text.translate(_UNICODE)
    text = _RADICAL.sub(lambda f: rf"\sqrt{_INDEX[f[1]]}{{{f[2] or f[3] or f[4]}}}", text)
    return _SCRIPT.sub(lambda f: f"{'^' if f[1] else '_'}{{{f[0].translate(_LEVEL)}}}", text)


def _braced(found: re.Match[str]) -> str:
    digits = "".join(f"{{{digit}}}" for digit in found.groups()[1:] if digit)
    return f"\\{found[1]}{digits}"


def _infix(text: str) -> str:
    r"""{a \over b} as \frac{a}{b}, {a \choose b} as \binom{a}{b}."""
    for _ in range(_MAX_INFIX):
        found = _INFIX.search(text)
        if not found:
            break
        opened: list[int] = []
        for token in itertools.islice(BRACES.finditer(text, 0, found.start()), _MAX_BRACES):
            if token.group() == "{":
                opened.append(token.end())
            elif token.group() == "}" and opened:
                opened.pop()
        begin, end = (opened[-1], closing(text, opened[-1])[0]) if opened else (0, len(text))
        top, bottom = text[begin : found.start()].strip(), text[found.end() : end].strip()
        if end is None or _NO_INFIX.search(top + bottom) or _INFIX.search(bottom):
            break
        name = {"over": "frac", "choose": "binom"}[found[1]]
        before, after = text[:begin], text[end:]
        if begin and not _ARGUMENT.search(before[:-1]):
            before, after = before[:-1], after[1:]
        text = f"{before}\\{name}{{{top}}}{{{bottom}}}{after}"
    return text


def _repeated(found: re.Match[str]) -> str:
    r"""0.\overline{6}, 0.\bar{6} and 0.\dot{1}4285\dot{7} as the fractions they are."""
    whole, fixed, *several = found.groups("")
    digits = "".join(several)
    value = Fraction(int(whole + fixed + digits) - int(whole + fixed or 0))
    value /= 10 ** len(fixed) * (10 ** len(digits) - 1)
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


def closing(text: str, begin: int, limit: int = _MAX_BRACES) -> tuple[int | None, int]:
    """Where the brace opened before `begin` is closed, and how many braces were looked at."""
    depth, seen = 1, 0
    for token in itertools.islice(BRACES.finditer(text, begin), limit):
        seen += 1
        depth += (token.group() == "{") - (token.group() == "}")
        if depth == 0:
            return token.start(), seen
    return None, seen


def unwrap(text: str) -> str:
    """The content of braces, or of a text command, around the whole."""
    found = _WRAPPED.match(text)
    if found is None or closing(text, found.end())[0] != len(text) - 1:
        return text
    return text[found.end() : -1].strip()


def spell(text: str) -> str:
    """Writes bare names of functions, constants and intervals as TeX: sqrt(2), pi/4, inf, ]2,5]."""
    text = _INFINITY.sub(r"\\infty ", _NAMES.sub(r"\\\1 ", _REALS.sub(r"(-\\infty,\\infty)", text)))
    text = _CALLED_ROOT.sub(r"\\sqrt{\1}", text.replace("sqrt (", "sqrt("))
    text = _OPEN_RIGHT.sub(r"\1)", _OPEN_LEFT.sub(r"(\1", text))
    return _IDLE_SPACE.sub("", " ".join(text.split()))
