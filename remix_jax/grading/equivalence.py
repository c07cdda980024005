r"""Mathematical equality of two answers by math-verify. Runs only in the workers of a GraderPool.

Only math-verify's LaTeX grammar sees text, never its extraction of plain expressions: that one
calls sympy's `parse_expr`, which is `eval`. Two more doors stand around this: `answers.screen` lets
no other characters, commands and words pass than those of mathematics, and `forbid_evaluation`
takes the place of `parse_expr` and makes the interpreter itself refuse to compile a string or to
start a program.
"""

import fractions
import re
import sys
from collections.abc import Callable

import sympy
from latex2sympy2_extended.latex2sympy2 import (
    ConversionConfig,
    NormalizationConfig,
    latex2sympy,
    normalize_latex,
)
from math_verify.grader import should_treat_as_complex, verify
from sympy.integrals import manualintegrate  # noqa: F401  (compiles text when it is imported)
from sympy.matrices import MatrixBase
from sympy.parsing import sympy_parser
from sympy.polys import monomials

from remix_jax.grading import answers, shapes

_NORMALIZATION = NormalizationConfig(
    basic_latex=True, units=False, malformed_operators=True, nits=False, boxed="none"
)
_CONVERSION = ConversionConfig(lowercase_symbols=False)  # R and r are two radii
_DIGITS = 60  # compared where no exact method applies

# 2(3) and \frac{4}{2}\frac{1}{2} are products, to the grammar mixed numbers; 3\frac{1}{2} is one.
_FACTOR = re.compile(r"(?<=[0-9)])(?=\()|(?<=\))(?=[0-9]|\\frac)")
_FRACTIONS = re.compile(r"(\\frac\{[^{}]*\}\{[^{}]*\})(?=\\frac)")
_MIXED = re.compile(r"(?<![0-9A-Za-z.}])([0-9]+) ([0-9]+)/([0-9]+)(?![0-9A-Za-z.])")
_NUMERAL = re.compile(r"[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]{1,3})?|\.[0-9]+")
_JUXTAPOSED = re.compile(r"[0-9.] +[0-9.]")
_SUBSCRIPTED = re.compile(r"[0-9)}]\s*_")
_LOG_BASE = re.compile(r"(\\log_)([0-9a-z])")  # \log_2 8: not the product 2 8

Pair = tuple[str, str]
_FORBIDDEN = answers.words_of(
    "os.system os.exec os.posix_spawn os.spawn os.fork os.forkpty os.startfile "
    "subprocess.Popen os.remove os.rename os.rmdir os.mkdir os.link os.symlink os.chmod "
    "os.chown os.truncate shutil.rmtree shutil.move shutil.copyfile socket.connect "
    "socket.bind socket.getaddrinfo ctypes.dlopen ctypes.dlsym urllib.Request"
)


class EvaluationError(RuntimeError):
    """Text of an answer was about to be executed."""


def equivalent(answer: str, gold: str) -> bool:
    """Whether an answer means the same as the gold one. Both have passed `answers.screen`.

    May take any time and memory, and may raise: see `grader_worker`.
    """
    return shapes.compare(shapes.read(answer), shapes.read(gold), _same_scalar, _same_equation)


def forbid_evaluation() -> None:
    """From here on this process compiles no string, starts no program, writes and deletes no file.

    Cannot be undone. sympy's own parser of strings, which the LaTeX grammar calls for every numeral
    (sympy.Number -> sympify -> parse_expr -> eval), reads decimal numerals and nothing else.
    The functions of monomials that it would write and compile are taken in their plain form.
    """
    sys.dont_write_bytecode = True
    for name in ("parse_expr", "eval_expr", "stringify_expr"):
        setattr(sympy_parser, name, _numeral)
    monomials.MonomialOps._build = _monomial_operation
    sys.addaudithook(_audit)


def _numeral(text: str, *_args, **_kwargs) -> sympy.Rational:
    """The exact value of a decimal numeral, in the place of sympy's `parse_expr`."""
    if not isinstance(text, str) or not _NUMERAL.fullmatch(text):
        raise EvaluationError("text for sympy's parser of Python expressions")
    return sympy.Rational(*fractions.Fraction(text).as_integer_ratio())


def _monomial_operation(_self, _code: str, name: str) -> Callable:
    """What sympy would compile from text for a number of variables, in its plain form."""
    if name == "monomial_mulpow":
        return lambda a, b, k: tuple(x + y * k for x, y in zip(a, b, strict=True))
    return getattr(monomials, name)


def _audit(event: str, args: tuple) -> None:
    if event == "compile":
        refused = len(args) > 1 and args[1] in ("<string>", b"<string>")  # eval and exec of text
    elif event == "open":
        refused = isinstance(args[1], str) and any(letter in args[1] for letter in "wax+")
    else:
        refused = event in _FORBIDDEN
    if refused:
        raise EvaluationError(event)


def _same_scalar(answer: str, gold: str) -> bool:
    ours, theirs = answers.clean(answer), answers.clean(gold)
    if answers.same_text(ours, theirs):
        return True
    a, b = answers.number(ours), answers.number(theirs)
    if a is not None and b is not None:
        return answers.same_number(a, b)
    value, target = _parse_both(ours.rstrip("\\%"), theirs.rstrip("\\%"))
    percent = ours.endswith("%")
    if percent == theirs.endswith("%"):
        return _equal(value, target)
    # A percent sign on one side only: as in `answers.same_number`.
    rate, other = (value, target) if percent else (target, value)
    return _equal(rate, other) or _equal(rate / 100, other)


def _same_equation(answer: Pair, gold: Pair) -> bool:
    """Whether one equation is a constant, not 0, times the other."""
    sides = _parse_both(*(answers.clean(side) for side in (*answer, *gold)))
    difference, target = sides[0] - sides[1], sides[2] - sides[3]
    if not isinstance(difference, sympy.Expr) or not isinstance(target, sympy.Expr):
        return False
    if difference.free_symbols != target.free_symbols or not target.free_symbols:
        return False
    ratio = sympy.simplify(difference / target)
    return bool(ratio.is_number and ratio.is_finite and ratio.is_zero is False)


def _parse_both(*texts: str) -> list[sympy.Expr | MatrixBase]:
    """The expressions of cleaned scalars that are compared: an i in one is an i in all."""
    real = not any(should_treat_as_complex(text) for text in texts)
    return [_parse(text, real) for text in texts]


def _parse(text: str, real: bool) -> sympy.Expr | MatrixBase:
    """The expression that a cleaned scalar writes, its decimals as exact fractions.

    Raises:
      Exception: of any kind, where the text is no expression.
    """
    if _SUBSCRIPTED.search(text) or ":" in text:  # 2516_8: the grammar drops the base
        raise ValueError("a numeral with a subscript, or a ratio")
    text = _LOG_BASE.sub(r"\1{\2}", _MIXED.sub(r"\1\\frac{\2}{\3}", text))
    if _JUXTAPOSED.search(text):
        raise ValueError("two numerals side by side")
    text = _FRACTIONS.sub(r"\1\\cdot ", _FACTOR.sub(r"\\cdot ", text))
    text = normalize_latex(text, _NORMALIZATION)
    value = latex2sympy(
        text,
        is_real=real,
        normalization_config=None,
        conversion_config=_CONVERSION,
    )
    if not isinstance(value, sympy.Expr | MatrixBase):
        raise ValueError("no scalar and no matrix")
    floats = value.atoms(sympy.Float)
    return value.xreplace({x: sympy.Rational(str(x)) for x in floats}) if floats else value


def _equal(answer: sympy.Expr | MatrixBase, gold: sympy.Expr | MatrixBase) -> bool:
    """math-verify's comparison, without its own clock: the pool has one."""
    if isinstance(gold, sympy.Symbol):  # it compares these by their looks: x is not 1x
        return bool(sympy.simplify(answer) == gold)
    return bool(
        verify(
            gold,
            answer,
            float_rounding=_DIGITS,
            numeric_precision=_DIGITS + 20,  # so that its last digit is none of the 60
            timeout_seconds=None,
            raise_on_error=True,
        )
    )
