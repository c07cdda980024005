"""Problem files in, problems and their order out."""

import dataclasses
import json
import math
import pathlib
from typing import Any

import numpy as np

from remix_jax.errors import InputError

Answer = str | float


@dataclasses.dataclass(frozen=True)
class Problem:
    """A problem, the answers any one of which is right, and a name for it in logs."""

    problem: str
    answers: tuple[Answer, ...]
    id: str


@dataclasses.dataclass(frozen=True)
class Cursor:
    """Where training stands in the endless sequence of problems; plain data, saved as it is.

    The sequence is `order(seed, 0, n)` followed by `order(seed, 1, n)` and so on; `position` counts
    the problems already taken from the current epoch, 0 <= position < n.
    """

    seed: int
    epoch: int = 0
    position: int = 0


def order(seed: int, epoch: int, n_problems: int) -> np.ndarray:
    """The order of an epoch: a permutation of range(n_problems), int64, fixed by its arguments."""
    return np.random.default_rng((seed, epoch)).permutation(n_problems)


def take(cursor: Cursor, n_problems: int, count: int) -> tuple[np.ndarray, Cursor]:
    """The next `count` problem indices [count] and the cursor after them.

    Every problem comes exactly once per epoch; a batch may reach into the next epoch.

    Raises:
      InputError: the cursor lies outside the problem set (it was saved with another one).
    """
    if not 0 <= cursor.position < n_problems:
        raise InputError(
            f"the saved position {cursor.position} does not fit a training set of {n_problems} "
            "problems: resume with the problem file that the run was started with"
        )
    pieces, epoch, position = [], cursor.epoch, cursor.position
    while count > 0:
        piece = order(cursor.seed, epoch, n_problems)[position : position + count]
        pieces.append(piece)
        count -= len(piece)
        position += len(piece)
        if position == n_problems:
            epoch, position = epoch + 1, 0
    indices = np.concatenate(pieces) if pieces else np.zeros((0,), np.int64)
    return indices, Cursor(cursor.seed, epoch, position)


def load_problems(path: str | pathlib.Path) -> list[Problem]:
    """The problems of a `.jsonl` file (an object a line) or a `.json` file (a list of objects).

    Fields: `problem` (text), `answer` (text, a finite number, or a non-empty list of these: any of
    them is right) and optionally `id`; other fields are ignored.

    Raises:
      InputError: the file is missing, empty, of another kind or holds a malformed row; the message
        names the file, the row and what was expected there.
    """
    path = pathlib.Path(path)
    readers = {".jsonl": _read_jsonl, ".json": _read_json}
    if path.suffix not in readers:
        raise InputError(f"{path}: a problem file ends in .json or .jsonl")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path}: no such problem file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable UTF-8 file ({error})") from None
    rows = readers[path.suffix](path, text)
    problems = [_problem(row, where, f"{path.stem}-{i}") for i, (where, row) in enumerate(rows)]
    if not problems:
        raise InputError(f"{path}: holds no problem; expected rows with `problem` and `answer`")
    return problems


def _read_jsonl(path: pathlib.Path, text: str) -> list[tuple[str, Any]]:
    # Split at "\n" alone: str.splitlines would also cut at separators that JSON allows in strings.
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    return [(f"{path}, line {n}", _parse(line, f"{path}, line {n}")) for n, line in lines]


def _read_json(path: pathlib.Path, text: str) -> list[tuple[str, Any]]:
    content = _parse(text, str(path)) if text.strip() else []
    if not isinstance(content, list):
        raise InputError(f"{path}: expected a list of objects, found {_kind(content)}")
    return [(f"{path}, row {number}", row) for number, row in enumerate(content, 1)]


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = str(error).split("\n")[0]
        raise InputError(f"{where}: not JSON ({reason})") from None


def _problem(row: Any, where: str, default_id: str) -> Problem:
    if not isinstance(row, dict):
        raise InputError(
            f"{where}: expected an object with `problem` and `answer`, found {_kind(row)}"
        )
    text = row.get("problem")
    if not isinstance(text, str) or not text.strip():
        raise InputError(
            f"{where}: `problem` must be a non-empty text, found {_found(row, 'problem')}"
        )
    given = row.get("answer")
    answers: list[Any] = given if isinstance(given, list) else [given]
    if not answers or not all(_is_answer(answer) for answer in answers):
        raise InputError(
            f"{where}: `answer` must be a non-empty text, a finite number or a non-empty list of "
            f"these, found {_found(row, 'answer')}"
        )
    row_id = row.get("id", default_id)
    if isinstance(row_id, bool) or not isinstance(row_id, str | int):
        raise InputError(f"{where}: `id` must be a text or an integer, found {_found(row, 'id')}")
    return Problem(text, tuple(answers), str(row_id))


def _is_answer(value: Any) -> bool:
    if isinstance(value, str):
        return bool(value.strip())
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value)


def _found(row: dict[str, Any], field: str) -> str:
    if field not in row:
        return "no such field"
    shown = json.dumps(row[field])
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "a truth value"}
    if value is None:
        return "null"
    return names.get(type(value), "a number")
