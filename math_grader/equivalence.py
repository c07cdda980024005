r"""Mathematical equality: structure here, scalars by math-verify's LaTeX grammar and by sympy.

Runs only in the workers of a GraderPool. Only the grammar sees text, never math-verify's extraction
of plain expressions: that one calls sympy's `parse_expr`, which is `eval`. `answers.screen` stands
before this, `forbid_evaluation` around it.
"""

import encodings
import fractions
import itertools
import os
import pathlib
import re
import resource
import sys
from collections.abc import Callable, Iterable, Sequence, Set
from typing import NamedTuple

import sympy
from latex2sympy2_extended import latex2sympy2 as grammar
from math_verify.grader import should_treat_as_complex
from sympy.integrals import manualintegrate  # noqa: F401  (compiles text when it is imported)
from sympy.matrices import MatrixBase
from sympy.parsing import sympy_parser
from sympy.polys import monomials

from math_grader import answers

_AND_OR = re.compile(r"(?<![A-Za-z\\]),?\s*(?:and|or)\s*(?![A-Za-z])")
_GROUPED = re.compile(r"(?<![0-9,.])[0-9]{1,3}(?:,[0-9]{3})+(?![0-9,])")
_TOKEN = re.compile(
    r"\\(?:begin|end)\{[A-Za-z]*\}|\\(?:leq|geq|leqslant|geqslant|le|ge|lt|gt|cup|in|mid)(?![A-Za-z])"
    r"|\\[A-Za-z]+|\\.|<=|>=|.",
    re.DOTALL,
)
_NAME = re.compile(
    r"\\?[A-Za-z]+(?:_(?:\{[A-Za-z0-9]+\}|[A-Za-z0-9]))?'?(?:\([A-Za-z](?:,[A-Za-z])*\))?"
)
_NAMES = re.compile(rf"\((?:{_NAME.pattern})(?:, ?(?:{_NAME.pattern}))+\)")  # (x,y) = (1,2)
_LESS = {"<": "(", r"\lt": "(", r"\le": "[", r"\leq": "[", r"\leqslant": "[", "<=": "["}
_MORE = {">": "<", r"\gt": "<", r"\ge": "<=", r"\geq": "<=", r"\geqslant": "<=", ">=": "<="}
_CONSTANTS = frozenset(("e", "i", r"\pi", r"\infty"))
_MAX_ITEMS = 64

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
_NORMALIZATION = grammar.NormalizationConfig(
    basic_latex=True, units=False, malformed_operators=True, nits=False, boxed="none"
)
_CONVERSION = grammar.ConversionConfig(lowercase_symbols=False)  # R and r are two radii
_DIGITS = 60  # compared where no exact method applies

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


class Shape(NamedTuple):
    """One level of an answer."""

    # "scalar", "list" (no brackets), "()" "[]" "(]" "[)" (tuples and intervals), "{}", "union",
    # "equation" and "relation" (of their sides), "long" (more than 64 items: equal as text alone).
    kind: str
    text: str
    items: tuple["Shape", ...] = ()
    name: str = ""  # an interval's variable, if it was written as an inequality; operators


def comparison() -> Callable[[tuple[str, str]], bool]:
    """What a worker does, warmed up: (answer, gold), both screened -> whether they mean the same.

    It may take any time and memory, and raises where an answer is no expression that sympy knows.
    """

    def equivalent(pair: tuple[str, str]) -> bool:
        return _equal(*map(_read, pair))

    equivalent((r"\frac{(x+1)^2}{\sqrt{3}}", r"\frac{1+2x+x^2}{\sqrt{3}}"))
    forbid_evaluation()
    return equivalent


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


# Structure


def _read(text: str) -> Shape:
    """The structure of a cleaned answer without its unit."""
    text = _AND_OR.sub(",", text.strip())
    ungrouped = _GROUPED.sub(lambda group: group[0].replace(",", ""), text)
    if not re.search(r"[,(\[]", ungrouped):  # x = 1,234
        text = ungrouped
    pieces, operators = _split(text, {",", ";"})
    if operators and (len(pieces) > _MAX_ITEMS or all(pieces)):
        return _items("list", text, pieces)
    member = _split(text, {r"\in"})[0]
    if len(member) == 2 and _NAME.fullmatch(member[0]):
        return _read(member[1])
    pieces, operators = _split(text, {"="})
    if operators and all(pieces):
        return Shape("equation", text, _scalars(pieces))
    unions = {r"\cup", "U"} if re.search(r"[\])]\s*U", text) else {r"\cup"}
    pieces, operators = _split(text, unions)
    if operators and all(pieces):
        return Shape("union", text, tuple(map(_read, pieces)))
    if shape := _bounds(text) or _bracketed(text):
        return shape
    if text.count(r"\pm") != 1 or r"\mp" in text:
        return Shape("scalar", text)
    before, after = text.split(r"\pm")  # both values
    both = (f"{before}+{after}" if before.strip() else after, f"{before}-{after}")
    return Shape("list", text, _scalars(both))


def _items(kind: str, text: str, pieces: Sequence[str]) -> Shape:
    long = len(pieces) > _MAX_ITEMS
    return Shape("long", text) if long else Shape(kind, text, tuple(map(_read, pieces)))


def _scalars(texts: Iterable[str]) -> tuple[Shape, ...]:
    return tuple(Shape("scalar", text.strip()) for text in texts)


def _bounds(text: str) -> Shape | None:
    """2 < x < 5 is an interval; x < 5 and 5 > x are the same relation, and no interval."""
    sides, operators = _split(text, _LESS.keys() | _MORE.keys())
    if not operators or not all(sides):
        return None
    if len(sides) == 2 and operators[0] in _MORE:
        sides, operators = sides[::-1], [_MORE[operators[0]]]
    if len(operators) > 2 or not _LESS.keys() >= set(operators):
        return None
    opened = [_LESS[operator] for operator in operators]
    if len(sides) == 3 and _NAME.fullmatch(sides[1]) and sides[1] not in _CONSTANTS:
        low, name, high = sides
        closing = ")" if opened[1] == "(" else "]"
        return Shape(opened[0] + closing, text, _scalars((low, high)), name)
    return Shape("relation", text, _scalars(sides), " ".join(opened))


def _bracketed(text: str) -> Shape | None:
    """A tuple, an interval or a set; brackets around one element say nothing."""
    for opening, closing in (("\\{", "\\}"), ("(", ")"), ("[", "]"), ("(", "]"), ("[", ")")):
        inner = text[len(opening) : -len(closing)]
        if not (inner and text.startswith(opening) and text.endswith(closing)):
            continue
        depths = list(itertools.accumulate(_step(t) for t in _TOKEN.findall(inner)))
        if min(depths) < 0 or depths[-1] != 0:  # a bracket of the inner text closes the first one
            continue
        pieces, _ = _split(inner, {",", ";"})
        kind = (opening + closing).replace("\\", "")
        if len(pieces) > _MAX_ITEMS or (len(pieces) > 1 and all(pieces)):
            return _items(kind, text, pieces)
        if kind in ("()", "[]", "{}"):
            return _read(inner)
    return None


def _step(token: str) -> int:
    if token in ("(", "[", "{", "\\{") or token.startswith("\\begin{"):
        return 1
    return -(token in (")", "]", "}", "\\}") or token.startswith("\\end{"))


def _split(text: str, separators: Set[str]) -> tuple[list[str], list[str]]:
    """(pieces, separators between them) of a text, split outside all brackets."""
    pieces: list[str] = []
    found: list[str] = []
    depth = begin = 0
    for token in _TOKEN.finditer(text):
        depth += _step(token.group())
        if depth == 0 and token.group() in separators:
            pieces.append(text[begin : token.start()].strip())
            found.append(token.group())
            begin = token.end()
    return [*pieces, text[begin:].strip()], found


def _equal(a: Shape, g: Shape) -> bool:
    """Whether two answers have the same structure and the same scalars.

    Lists and sets are compared without their order, tuples and intervals in it; a list without
    brackets may be meant as a set, never as a tuple. `x = 5` is 5, where the left side is a name.
    """
    kinds = {a.kind, g.kind}
    if a.text and a.text == g.text:
        return True
    if "equation" in kinds:
        return _equal_equations(a, g)
    if kinds == {"scalar"}:
        return _same_scalar(a.text, g.text)
    if "long" in kinds or len(a.items) != len(g.items):
        return False
    if kinds <= {"list", "{}"} or kinds == {"union"}:  # in any order
        left = list(g.items)
        for item in a.items:
            match = next((i for i, other in enumerate(left) if _equal(item, other)), None)
            if match is None:
                return False
            del left[match]
        return True
    if len(kinds) > 1 or (a.name != g.name and ("relation" in kinds or (a.name and g.name))):
        return False
    return all(map(_equal, a.items, g.items))


def _equal_equations(a: Shape, g: Shape) -> bool:
    (a_name, a_values), (g_name, g_values) = _assigned(a), _assigned(g)
    if a.kind != "equation":
        return bool(g_name) and len(g_values) == 1 and _equal(a, g_values[0])
    if g.kind != "equation" or (a_name == g_name != "" and len(g_values) == 1):
        return all(_equal(value, g_values[0]) for value in a_values)
    if len(a.items) != 2 or len(g.items) != 2:
        return False
    # Whether one equation is a constant, not 0, times the other.
    sides = _parse_all([answers.clean(side.text) for side in (*a.items, *g.items)])
    difference, target = sides[0] - sides[1], sides[2] - sides[3]
    if not isinstance(difference, sympy.Expr) or not isinstance(target, sympy.Expr):
        return False
    if difference.free_symbols != target.free_symbols or not target.free_symbols:
        return False
    ratio = sympy.simplify(difference / target)
    return bool(ratio.is_number and ratio.is_finite and ratio.is_zero is False)


def _assigned(shape: Shape) -> tuple[str, list[Shape]]:
    """(name, values): x of `x = 5` and `5 = x`, (x,y) of `(x,y) = (1,2)`; "" if no side is one."""
    if shape.kind != "equation":
        return "", [shape]
    sides = [side.text for side in shape.items]
    for i in (0, len(sides) - 1):
        named = _NAME.fullmatch(sides[i]) or _NAMES.fullmatch(sides[i])
        if named and sides[i] not in _CONSTANTS:
            return sides[i], [_read(side) for side in sides[:i] + sides[i + 1 :]]
    return "", [_read(side) for side in sides]


# Scalars


def _same_scalar(answer: str, gold: str) -> bool:
    ours, theirs = answers.clean(answer), answers.clean(gold)
    decided = answers.same(ours, theirs)
    if decided is not None:
        return decided
    value, target = _parse_all([ours.rstrip("\\%"), theirs.rstrip("\\%")])
    percent = ours.endswith("%")
    if percent == theirs.endswith("%"):
        return _equal_values(value, target)
    # A percent sign on one side only: as in `answers.same`.
    rate, other = (value, target) if percent else (target, value)
    return _equal_values(rate, other) or _equal_values(rate / 100, other)


def _parse_all(texts: Sequence[str]) -> list[sympy.Expr | MatrixBase]:
    """The expressions of cleaned scalars that are compared, their decimals as exact fractions.

    An i in one is an i in all.

    Raises:
      Exception: of any kind, where a text is no expression.
    """
    real, values = not any(map(should_treat_as_complex, texts)), []
    for text in texts:
        if _SUBSCRIPTED.search(text) or ":" in text:  # 2516_8: the grammar drops the base
            raise ValueError("a numeral with a subscript, or a ratio")
        text = _FUNCTION_POWER.sub(r"\1{\2}", text)
        text = _LOG_BASE.sub(r"\1{\2}", _MIXED.sub(r"\1\\frac{\2}{\3}", text))
        if _JUXTAPOSED.search(text):
            raise ValueError("two numerals side by side")
        text = _FRACTIONS.sub(r"\1\\cdot ", _FACTOR.sub(r"\\cdot ", text))
        text = grammar.normalize_latex(text, _NORMALIZATION)
        value = grammar.latex2sympy(
            text, is_real=real, normalization_config=None, conversion_config=_CONVERSION
        )
        if not isinstance(value, sympy.Expr | MatrixBase):
            raise ValueError("no scalar and no matrix")
        floats = value.atoms(sympy.Float)
        values.append(value.xreplace({x: sympy.Rational(str(x)) for x in floats}))
    return values


def _equal_values(answer: sympy.Expr | MatrixBase, gold: sympy.Expr | MatrixBase) -> bool:
    """Exactly where an exact method applies, else to 60 digits of the value itself.

    Never by the digits of a difference: a value below their number of places would be none.
    """
    ours, theirs = answer.doit(), gold.doit()
    if isinstance(ours, MatrixBase) and isinstance(theirs, MatrixBase):
        return ours.shape == theirs.shape and all(map(_equal_values, ours.flat(), theirs.flat()))
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
