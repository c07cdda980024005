r"""Mathematical equality: structure here, scalars by math-verify's LaTeX grammar and by sympy.

Runs only in the workers of a GraderPool. Only the grammar sees text, never math-verify's extraction
of plain expressions: that one calls sympy's `parse_expr`, which is `eval`. `answers.screen` stands
before this, `walls.forbid_evaluation` around it.
"""

import itertools
import re
from collections.abc import Callable, Iterable, Sequence, Set
from typing import NamedTuple

import sympy
from latex2sympy2_extended import latex2sympy2 as grammar
from math_verify.grader import should_treat_as_complex
from sympy.matrices import MatrixBase

from math_grader import answers, notation, walls

_AND, _OR, _AND_OR = (
    re.compile(rf"(?<![A-Za-z\\]),?\s*(?:{word})\s*(?![A-Za-z])")
    for word in ("and", "or", "and|or")
)
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
_CONDITIONS = frozenset(("relation", "union", "intersection", "equation", "()", "(]", "[)", "[]"))
_CONSTANTS = frozenset(("e", "i", r"\pi", r"\infty"))
_SETS = frozenset(("relation", "union", "intersection", "difference"))
_ALPHABET = "abcdefghijklmnopqrstuvwxyz"
_MAX_ITEMS = 64

_FUNCTION_POWER = re.compile(  # \sin^2(x): no product of 2 and x
    r"(\\(?:arc)?(?:sin|cos|tan|cot|sec|csc|sinh|cosh|tanh|log|ln)\s*\^)\s*([0-9a-z])"
)
# 2(3) and \frac{4}{2}\frac{1}{2} are products, to the grammar mixed numbers; 3\frac{1}{2} is one.
_FACTOR = re.compile(r"(?<=[0-9)])(?=\()|(?<=\))(?=[0-9]|\\frac)")
_FRACTIONS = re.compile(r"(\\frac\{[^{}]*\}\{[^{}]*\})(?=\\frac)")
_MIXED = re.compile(r"(?<![0-9A-Za-z.}])([0-9]+) ([0-9]+)/([0-9]+)(?![0-9A-Za-z.])")
_JUXTAPOSED = re.compile(r"[0-9.] +[0-9.]")
_SUBSCRIPTED = re.compile(r"[0-9)}]\s*_")
_LOG_BASE = re.compile(r"(\\log_)([0-9a-z])")  # \log_2 8: not the product 2 8
_NORMALIZATION = grammar.NormalizationConfig(
    basic_latex=True, units=False, malformed_operators=True, nits=False, boxed="none"
)
_CONVERSION = grammar.ConversionConfig(lowercase_symbols=False)  # R and r are two radii
_PERCENT = re.compile(r"\\?%$")
_DIGITS = 60  # compared where no exact method applies


class Shape(NamedTuple):
    """One level of an answer."""

    # "scalar", "list" (no brackets), "()" "[]" "(]" "[)" (tuples and intervals), "{}", "union",
    # "intersection" and "difference" (of sets), "equation" and "relation" (of their sides), "long"
    # (more than 64 items: equal as text alone).
    kind: str
    text: str
    items: tuple["Shape", ...] = ()
    name: str = ""  # a variable, of intervals written as inequalities, or operators; of a list "or"


def comparison() -> Callable[[tuple[str, str]], bool]:
    """What a worker does, warmed up: (answer, gold), both screened -> whether they mean the same.

    It may take any time and memory, and raises where an answer is no expression that sympy knows.
    """

    def equivalent(pair: tuple[str, str]) -> bool:
        return _equal(*map(_read, pair))

    equivalent((r"\frac{(x+1)^2}{\sqrt{3}}", r"\frac{1+2x+x^2}{\sqrt{3}}"))
    walls.forbid_evaluation()
    return equivalent


# Structure


def _read(text: str) -> Shape:
    """The structure of a cleaned answer without its unit."""
    for word, kind in ((_OR, "union"), (_AND, "intersection")):
        parts = tuple(map(_read, word.split(text))) if word.search(text) else ()
        stated = any(part.kind == "relation" or part.name for part in parts)
        if stated and {part.kind for part in parts} <= _CONDITIONS:
            return Shape(kind, text, parts)
    either = "or" if _OR.search(text) else ""
    text = _AND_OR.sub(",", text.strip())
    ungrouped = _GROUPED.sub(lambda group: group[0].replace(",", ""), text)
    if not re.search(r"[,(\[]", ungrouped):  # x = 1,234
        text = ungrouped
    pieces, operators = _split(text, {",", ";"})
    if operators and (len(pieces) > _MAX_ITEMS or all(pieces)):
        return _items("list", text, pieces)._replace(name=either)
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
    pieces, operators = _split(text, {r"\setminus"})
    if len(operators) == 1 and all(pieces):
        return Shape("difference", text, tuple(map(_read, pieces)))
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
    """2 < x < 5 and 5 > x > 2 are an interval; x < 5 and 5 > x the same relation."""
    sides, operators = _split(text, _LESS.keys() | _MORE.keys() | {r"\ne"})
    if not operators or not all(sides):
        return None
    if operators == [r"\ne"]:
        return Shape("relation", text, _scalars(sides), "!=")
    if _MORE.keys() >= set(operators):
        sides, operators = sides[::-1], [_MORE[operator] for operator in operators[::-1]]
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
        if opening == "\\{" and (described := _described(text, inner)):
            return described
        pieces, _ = _split(inner, {",", ";"})
        kind = (opening + closing).replace("\\", "")
        if len(pieces) > _MAX_ITEMS or (len(pieces) > 1 and all(pieces)):
            return _items(kind, text, pieces)
        if kind in ("()", "[]", "{}"):
            return _read(inner)
    return None


def _described(text: str, inner: str) -> Shape | None:
    """{x | x > 2} and {x in (0,9) : x > 2, x < 5}: where all conditions hold."""
    sides, _ = _split(inner, {r"\mid", "|", ":"})
    member = _split(sides[0], {r"\in"})[0]
    if len(sides) != 2 or len(member) > 2 or not _NAME.fullmatch(member[0]):
        return None
    conditions = [*member[1:], *_split(sides[1], {",", ";"})[0]]
    return Shape("intersection", text, tuple(map(_read, conditions)), member[0])


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
    if "long" in kinds:
        return False
    if kinds == {"list", "()"}:
        a, g = _coordinates(a), _coordinates(g)
    return _equal_items(a, g) or (bool(kinds & _SETS or a.name or g.name) and _same_set(a, g))


def _equal_items(a: Shape, g: Shape) -> bool:
    kinds = {a.kind, g.kind}
    if len(a.items) != len(g.items) or not a.items:
        return False
    relations = {item.kind for item in (*a.items, *g.items)} == {"relation"}
    # In any order; conditions between commas may be meant as alternatives or together.
    if kinds <= {"list", "{}"} or kinds == {"union"} or (relations and "list" in kinds):
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


def _coordinates(shape: Shape) -> Shape:
    """(1,2) of `x = 1, y = 2`, whose names leave no doubt of their order; else the shape itself."""
    pairs = [_assigned(item) for item in shape.items if item.kind == "equation"]
    values = {name: value[0] for name, value in pairs if len(value) == 1}
    names = sorted(values, key=lambda name: name.lstrip("\\"))
    ordered = len(names) > 1 and ("".join(names) in _ALPHABET or names == ["r", r"\theta"])
    if shape.kind != "list" or shape.name == "or" or len(names) != len(shape.items) or not ordered:
        return shape
    return Shape("()", "", tuple(values[name] for name in names))


def _same_set(a: Shape, g: Shape) -> bool:
    """Whether inequalities, intervals and what is made of them hold the same real numbers."""
    names: tuple[set[str], set[str]] = (set(), set())
    ours, theirs = (_parts(_solutions(x, of)) for x, of in zip((a, g), names, strict=True))
    if len(names[0] | names[1]) > 1 or not ours or len(ours) != len(theirs):
        return False
    return all(
        x[1::2] == y[1::2] and _equal_values(x[0], y[0]) and _equal_values(x[2], y[2])
        for x, y in zip(ours, theirs, strict=True)
    )


def _parts(numbers: sympy.Set) -> list[tuple]:
    """(lower end, whether that is left out, upper end, whether left out) of each part, in order."""
    parts = []
    for part in numbers.args if isinstance(numbers, sympy.Union) else (numbers,):
        if isinstance(part, sympy.Interval):
            parts.append((part.start, part.left_open, part.end, part.right_open))
        elif isinstance(part, sympy.FiniteSet):
            parts += [(point, False, point, False) for point in part]
        else:
            return []
    return sorted(parts, key=lambda part: part[0])


def _solutions(shape: Shape, names: set[str]) -> sympy.Set:
    """The real numbers of a shape; `names` takes the variables that it is written with.

    Raises:
      ValueError: it is no set of numbers, or one with letters in it.
    """
    names |= {shape.name} if _NAME.fullmatch(shape.name) else set()
    if shape.kind in ("union", "intersection", "difference"):
        parts = [_solutions(item, names) for item in shape.items]
        make = {"union": sympy.Union, "intersection": sympy.Intersection}
        return make.get(shape.kind, sympy.Complement)(*parts)
    if shape.kind in ("()", "(]", "[)", "[]") and len(shape.items) == 2:
        low, high = _reals(shape.items)
        return sympy.Interval(low, high, shape.kind[0] == "(", shape.kind[1] == ")")
    if shape.kind in ("{}", "scalar"):
        return sympy.FiniteSet(*_reals(shape.items or (shape,)))
    if shape.kind == "equation":
        name, (value, *others) = _assigned(shape)
        if name and not others:
            names.add(name)
            return _solutions(value, names)
    if shape.kind == "relation" and len(shape.items) == 2:
        left, right = shape.items
        is_upper = bool(_NAME.fullmatch(left.text)) and left.text not in _CONSTANTS
        name, bound = (left.text, right) if is_upper else (right.text, left)
        if _NAME.fullmatch(name) and name not in _CONSTANTS:
            names.add(name)
            (value,) = _reals((bound,))
            if shape.name == "!=":
                return sympy.Complement(sympy.S.Reals, sympy.FiniteSet(value))
            low, high = (-sympy.oo, value) if is_upper else (value, sympy.oo)
            return sympy.Interval(low, high, shape.name == "(", shape.name == "(")
    raise ValueError("no set of numbers")


def _reals(shapes: Sequence[Shape]) -> list[sympy.Expr]:
    values = [value.doit() for value in _parse_all([notation.clean(x.text) for x in shapes])]
    if not all(value.is_number and value.is_extended_real for value in values):
        raise ValueError("no real number")
    return values


def _equal_equations(a: Shape, g: Shape) -> bool:
    (a_name, a_values), (g_name, g_values) = _assigned(a), _assigned(g)
    if a.kind != "equation":
        return bool(g_name) and len(g_values) == 1 and _equal(a, g_values[0])
    if g.kind != "equation" or (a_name == g_name != "" and len(g_values) == 1):
        return all(_equal(value, g_values[0]) for value in a_values)
    if len(a.items) != 2 or len(g.items) != 2:
        return False
    # Whether one equation is a constant, not 0, times the other.
    sides = _parse_all([notation.clean(side.text) for side in (*a.items, *g.items)])
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
    ours, theirs = notation.clean(answer), notation.clean(gold)
    decided = answers.same(ours, theirs)
    if decided is not None:
        return decided
    value, target = _parse_all([_PERCENT.sub("", text) for text in (ours, theirs)])
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
        if any(d.expr.is_Symbol for d in value.atoms(sympy.Derivative)):
            raise ValueError("dx/dt, which is no 0 though x is a symbol")
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
