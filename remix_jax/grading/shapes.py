r"""The structure of an answer: lists, tuples, sets, intervals, inequalities, equations.

Text in, text out: the scalars at the leaves are compared by whoever asks (`compare`).
"""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

Same = Callable[[str, str], bool]  # (answer, gold) of two scalars
SameEquation = Callable[[tuple[str, str], tuple[str, str]], bool]


class Shape(NamedTuple):
    """One level of an answer.

    kind: "scalar", "list" (no brackets), "()" "[]" "(]" "[)" (tuples and intervals), "{}",
    "union", "equation" (items: its sides), "relation" (items: its sides; `name`: operators), or
    "long": more than 64 items, equal only to the same text.
    """

    kind: str
    items: tuple["Shape", ...] = ()
    text: str = ""
    name: str = ""  # of the variable that an inequality bounds, where it has been made an interval


Equal = Callable[[Shape, Shape], bool]

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
_MORE = {">": "(", r"\gt": "(", r"\ge": "[", r"\geq": "[", r"\geqslant": "[", ">=": "["}
_CLOSING = {"(": ")", "[": "]"}
_CONSTANTS = frozenset(("e", "i", r"\pi", r"\infty"))
_MAX_ITEMS = 64


def read(text: str) -> Shape:
    """The structure of a cleaned answer without its unit."""
    text = _AND_OR.sub(",", text.strip())
    ungrouped = _GROUPED.sub(lambda group: group[0].replace(",", ""), text)
    if not re.search(r"[,(\[]", ungrouped):  # x = 1,234
        text = ungrouped
    pieces, _ = _split(text, {",", ";"})
    if len(pieces) > _MAX_ITEMS:
        return Shape("long", text=text)
    if len(pieces) > 1 and all(pieces):
        return Shape("list", tuple(map(read, pieces)), text)
    member = _split(text, {r"\in"})[0]
    if len(member) == 2 and _NAME.fullmatch(member[0]):
        return read(member[1])
    pieces, operators = _split(text, {"="})
    if operators and all(pieces):
        return Shape("equation", _scalars(pieces), text)
    unions = {r"\cup", "U"} if re.search(r"[\])]\s*U", text) else {r"\cup"}
    pieces, operators = _split(text, unions)
    if operators and all(pieces):
        return Shape("union", tuple(map(read, pieces)), text)
    return _bounds(text) or _bracketed(text) or _signs(text) or Shape("scalar", text=text)


def _scalars(texts: Sequence[str]) -> tuple[Shape, ...]:
    return tuple(Shape("scalar", text=text.strip()) for text in texts)


def _bounds(text: str) -> Shape | None:
    """2 < x < 5 is an interval; x < 5 and 5 > x are the same relation, and no interval."""
    sides, operators = _split(text, set(_LESS) | set(_MORE))
    if not operators or not all(sides):
        return None
    if len(sides) == 2 and operators[0] in _MORE:
        flipped = dict(zip(_MORE, _LESS, strict=True))
        sides, operators = sides[::-1], [flipped[operators[0]]]
    if not all(op in _LESS for op in operators) or len(operators) > 2:
        return None
    if len(sides) == 3 and _NAME.fullmatch(sides[1]) and sides[1] not in _CONSTANTS:
        low, name, high = sides
        opening, closing = _LESS[operators[0]], _CLOSING[_LESS[operators[1]]]
        return Shape(opening + closing, _scalars((low, high)), text, name)
    return Shape("relation", _scalars(sides), text, " ".join(_LESS[op] for op in operators))


def _bracketed(text: str) -> Shape | None:
    """A tuple, an interval or a set; brackets around one element say nothing."""
    for opening, closing in (("\\{", "\\}"), ("(", ")"), ("[", "]"), ("(", "]"), ("[", ")")):
        if not (text.startswith(opening) and text.endswith(closing)):
            continue
        inner = text[len(opening) : -len(closing)]
        if not inner or not _closes(inner):
            continue
        pieces, _ = _split(inner, {",", ";"})
        kind = (opening + closing).replace("\\", "")
        if len(pieces) > _MAX_ITEMS:
            return Shape("long", text=text)
        if len(pieces) > 1 and all(pieces):
            return Shape(kind, tuple(map(read, pieces)), text)
        if kind in ("()", "[]", "{}"):
            return read(inner)
    return None


def _signs(text: str) -> Shape | None:
    r"""Both values of one \pm."""
    if text.count(r"\pm") != 1 or r"\mp" in text:
        return None
    before, after = text.split(r"\pm")
    both = (f"{before}+{after}" if before.strip() else after, f"{before}-{after}")
    return Shape("list", _scalars(both), text)


def _closes(text: str) -> bool:
    """Whether no bracket of the text closes one that was opened before it."""
    depth = 0
    for token in _TOKEN.finditer(text):
        depth += _step(token.group())
        if depth < 0:
            return False
    return depth == 0


def _step(token: str) -> int:
    if token in ("(", "[", "{", "\\{") or token.startswith("\\begin{"):
        return 1
    return -(token in (")", "]", "}", "\\}") or token.startswith("\\end{"))


def _split(text: str, separators: set[str]) -> tuple[list[str], list[str]]:
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


def compare(answer: Shape, gold: Shape, same: Same, same_equation: SameEquation) -> bool:
    """Whether two answers have the same structure and the same scalars.

    Lists and sets are compared without their order, tuples and intervals in it; a list without
    brackets may be meant as a set, never as a tuple. `x = 5` is 5, where the left side is a name.
    """

    def equal(a: Shape, g: Shape) -> bool:
        if a.text and a.text == g.text:
            return True
        if "equation" in (a.kind, g.kind):
            return _equal_equations(a, g, equal, same_equation)
        if a.kind == g.kind == "scalar":
            return same(a.text, g.text)
        kinds = {a.kind, g.kind}
        if "long" in kinds:
            return False
        if kinds == {"relation"}:
            return a.name == g.name and _in_order(a.items, g.items, equal)
        if kinds <= {"list", "{}"} or kinds == {"union"}:
            return _in_any_order(a.items, g.items, equal)
        if a.kind != g.kind or (a.name and g.name and a.name != g.name):
            return False
        return _in_order(a.items, g.items, equal)

    return equal(answer, gold)


def _equal_equations(a: Shape, g: Shape, equal: Equal, same_equation: SameEquation) -> bool:
    (a_name, a_values), (g_name, g_values) = _assigned(a), _assigned(g)
    if a.kind != "equation":
        return bool(g_name) and len(g_values) == 1 and equal(a, g_values[0])
    if g.kind != "equation":
        return all(equal(value, g) for value in a_values)
    if a_name == g_name and a_name and len(g_values) == 1:
        return all(equal(value, g_values[0]) for value in a_values)
    if len(a.items) != 2 or len(g.items) != 2:
        return False
    first, second = [(x.items[0].text, x.items[1].text) for x in (a, g)]
    return same_equation(first, second)


def _assigned(shape: Shape) -> tuple[str, list[Shape]]:
    """(name, values): x of `x = 5` and `5 = x`, (x,y) of `(x,y) = (1,2)`; "" if no side is one."""
    if shape.kind != "equation":
        return "", [shape]
    sides = [side.text for side in shape.items]
    for i in (0, len(sides) - 1):
        named = _NAME.fullmatch(sides[i]) or _NAMES.fullmatch(sides[i])
        if named and sides[i] not in _CONSTANTS:
            return sides[i], [read(side) for side in sides[:i] + sides[i + 1 :]]
    return "", [read(side) for side in sides]


def _in_order(a: Sequence[Shape], g: Sequence[Shape], equal: Equal) -> bool:
    return len(a) == len(g) and all(equal(x, y) for x, y in zip(a, g, strict=True))


def _in_any_order(a: Sequence[Shape], g: Sequence[Shape], equal: Equal) -> bool:
    left = list(g)
    if len(a) != len(left):
        return False
    for item in a:
        match = next((i for i, other in enumerate(left) if equal(item, other)), None)
        if match is None:
            return False
        del left[match]
    return True
