"""Walls around a process that computes with texts of a policy: it executes and writes nothing.

docs/grading.md says what passes.
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
from sympy.integrals import manualintegrate  # noqa: F401  (compiles text when it is imported)
from sympy.parsing import sympy_parser
from sympy.polys import monomials

from math_grader.units import words_of

_NUMERAL = re.compile(r"[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]{1,3})?|\.[0-9]+")
_HARMLESS = words_of(  # events of computing, of importing and of the end of a process
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


def forbid_evaluation() -> None:
    """From here on this process computes, imports installed modules, and does nothing else.

    Cannot be undone. An audit hook refuses every event of the interpreter that is not on a short
    list (docs/grading.md). Compiled and marshalled code passes where the import system itself asks
    for it and it lies in the installation. What raises no event is left to the kernel: no byte goes
    into a file (RLIMIT_FSIZE).

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
    passes = event in _HARMLESS
    if event == "open":  # path, mode (None of os.open), flags
        passes = isinstance(args[2], int) and not args[2] & _WRITING
    elif event in ("compile", "exec", "marshal.loads"):
        passes = sys._getframe(1).f_code.co_filename in _IMPORT_SYSTEM
        if event != "marshal.loads":  # of a .pyc; what comes out of it is executed next
            path = args[1] if event == "compile" else args[0].co_filename
            passes = passes and isinstance(path, str) and path.startswith(_INSTALLED)
    if not passes:
        raise EvaluationError(event)
