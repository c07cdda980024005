r"""Mathematical equality of two answers: math-verify's LaTeX grammar, sympy's algebra.

Runs only in the workers of a GraderPool. Only the grammar sees text, never math-verify's extraction
of plain expressions: that one calls sympy's `parse_expr`, which is `eval`. Two more walls stand
around this: `answers.screen` lets no other characters, commands and words pass than those of
mathematics, and `forbid_evaluation` takes the place of `parse_expr` and makes the interpreter
itself refuse everything but arithmetic and imports.
"""

import encodings
import fractions
import os
import pathlib
import re
import resource
import sys
from collections.abc import Callable

import sympy
from latex2sympy2_extended.latex2sympy2 import (
    ConversionConfig,
    NormalizationConfig,
    latex2sympy,
    normalize_latex,
)
from math_verify.grader import should_treat_as_complex
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

_FUNCTION_POWER = re.compile(  # \sin^2(x): no product of 2 and x
    r"(\\(?:arc)?(?:sin|cos|tan|cot|sec|csc|sinh|cosh|tanh|log|ln)\s*\^)\s*([0-9a-z])"
)
# 2(3) and \frac{4}{2}\frac{1}{2} are products, to the grammar mixed numbers; 3\frac{1}{2} is one.
_FACTOR = re.compile(r"(?<=[0-9)])(?=\()|(?<=\))(?=[0-9]|\\frac)")
_FRACTIONS = re.compile(r"(\\frac\{[^{}]*\}\{[^{}]*\})(?=\\frac)")
_MIXED = re.compile(r"(?<![0-9A-Za-z.}])([0-9]+) ([0-9]+)/([0-9]+)(?![0-9A-Za-z.])")
_NUMERAL = re.compile(r"[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]{1,3})?|\.[0-9]+")
_JUXTAPOSED = re.compile(r"[0-9.] +[0-9.]")
_SUBSCRIPTED = re.compile(r"[0-9)}]\s*_")
_LOG_BASE = re.compile(r"(\\log_)([0-9a-z])")  # \log_2 8: not the product 2 8

Pair = tuple[str, str]
_HARMLESS = answers.words_of(  # events of computing, of importing and of the end of a process
    "import os.listdir os.scandir builtins.id array.__new__ object.__getattr__ sys._getframe "
    "cpython._PySys_ClearAuditHooks cpython._PyInterpreterState_Clear"
)
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC
_IMPORT_SYSTEM = ("<frozen importlib._bootstrap>", "<frozen importlib._bootstrap_external>")
_INSTALLED = tuple(
    f"{pathlib.Path(module.__file__ or '').parents[1]}{os.sep}" for module in (sympy, encodings)
)


class EvaluationError(RuntimeError):
    """Text of an answer was about to be executed."""


def equivalent(answer: str, gold: str) -> bool:
    """Whether an answer means the same as the gold one. Both have passed `answers.screen`.

    May take any time and memory, and may raise: see `grader_worker`.
    """
    return shapes.compare(shapes.read(answer), shapes.read(gold), _same_scalar, _same_equation)


def comparison() -> Callable[[Pair], bool]:
    """`equivalent` for a worker: warmed up, with everything that executes text shut off."""
    equivalent(r"\frac{(x+1)^2}{\sqrt{3}}", r"\frac{1+2x+x^2}{\sqrt{3}}")
    forbid_evaluation()
    return lambda pair: equivalent(*pair)


def forbid_evaluation() -> None:
    """From here on this process computes, imports installed modules, and does nothing else.

    Cannot be undone. An audit hook refuses every event of the interpreter that is not on a short
    list: so no compilation of text or syntax trees (also not by `ast` or `codeop`), no execution of
    code objects, no code object or function made of parts, no `marshal` or `pickle`, no file opened
    for writing by `open` or `os.open`, created, renamed or removed, no program, signal, socket,
    environment, `ctypes` or memory map. Compiled and marshalled code passes where the import system
    itself asks for it and it lies in the installation. What raises no event is left to the kernel:
    no byte goes into a file (RLIMIT_FSIZE).

    sympy's own parser of strings, which the LaTeX grammar calls for every numeral (sympy.Number ->
    sympify -> parse_expr -> eval), reads decimal numerals and nothing else. The functions of
    monomials that it would write and compile are taken in their plain form.
    """
    sys.dont_write_bytecode = True
    for name in ("parse_expr", "eval_expr", "stringify_expr"):
        setattr(sympy_parser, name, _numeral)
    monomials.MonomialOps._build = _monomial_operation
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
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
    if event in _HARMLESS:
        return
    if event == "open":  # path, mode (None of os.open), flags
        passes = isinstance(args[2], int) and not args[2] & _WRITING
    else:
        passes = event in ("compile", "exec", "marshal.loads") and (
            sys._getframe(1).f_code.co_filename in _IMPORT_SYSTEM and _installed(event, args)
        )
    if not passes:
        raise EvaluationError(event)


def _installed(event: str, args: tuple) -> bool:
    """Whether what the import system compiles or executes lies in the installation."""
    if event == "marshal.loads":  # of a .pyc; what comes out of it is executed next
        return True
    path = args[1] if event == "compile" else args[0].co_filename
    return isinstance(path, str) and path.startswith(_INSTALLED)


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
    text = _FUNCTION_POWER.sub(r"\1{\2}", text)
    text = _LOG_BASE.sub(r"\1{\2}", _MIXED.sub(r"\1\\frac{\2}{\3}", text))
    if _JUXTAPOSED.search(text):
        raise ValueError("two numerals side by side")
    text = _FRACTIONS.sub(r"\1\\cdot ", _FACTOR.sub(r"\\cdot ", text))
    text = normalize_latex(text, _NORMALIZATION)
    value = latex2sympy(
        text, is_real=real, normalization_config=None, conversion_config=_CONVERSION
    )
    if not isinstance(value, sympy.Expr | MatrixBase):
        raise ValueError("no scalar and no matrix")
    floats = value.atoms(sympy.Float)
    return value.xreplace({x: sympy.Rational(str(x)) for x in floats}) if floats else value


def _equal(answer: sympy.Expr | MatrixBase, gold: sympy.Expr | MatrixBase) -> bool:
    """Exactly where an exact method applies, else to 60 digits of the value itself.

    Never by the digits of a difference: a value below their number of places would be none.
    """
    ours, theirs = answer.doit(), gold.doit()
    if isinstance(ours, MatrixBase) and isinstance(theirs, MatrixBase):
        return ours.shape == theirs.shape and all(map(_equal, ours.flat(), theirs.flat()))
    if ours.has(sympy.nan, sympy.zoo):  # 1/0 is nothing, and not the same as itself
        return False
    if ours == theirs:
        return True
    if isinstance(ours, sympy.Expr) and ours.is_number and theirs.is_number:
        difference = sympy.expand(ours - theirs)
        if isinstance(difference, sympy.Rational):
            return difference == 0
        a, b = ours.evalf(_DIGITS + 20), theirs.evalf(_DIGITS + 20)
        size, least = sympy.Max(abs(a), abs(b)), sympy.Rational(1, 10**_DIGITS)
        if size > least or not size.is_finite:
            return bool(size.is_finite and abs(a - b) <= size * least)
    return bool(sympy.simplify(ours - theirs).is_zero)
