"""Problem files in, problems and their order out."""

import dataclasses
import json
import math
import pathlib
from typing import Any

import numpy as np

from remix_jax.data.problem_files import Unreadable, kind, read_rows
from remix_jax.errors import InputError

Answer = str | float

# What the paper's runs append to a problem; parquet files of chat messages hold it already.
INSTRUCTION = "Let's think step by step and output the final answer within \\boxed{}."


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


def load_problems(path: str | pathlib.Path, skipped: list[str] | None = None) -> list[Problem]:
    """The problems of a `.json`, `.jsonl` or `.parquet` file or of a prepared TFDS directory.

    Fields of a row: `problem` (text), `answer` (text, a finite number, or a non-empty list of
    these: any of them is right) and optionally `id`; other fields are ignored. Two other forms are
    known: GSM8K's `question` and `answer`, where the answer follows the last "####"; and chat
    messages, `prompt` (one user message, without its trailing `INSTRUCTION`) and
    `reward_model.ground_truth`.

    Args:
      path: what to read.
      skipped: takes the message of each malformed row, which is then left out; None refuses the
        file at its first malformed row.

    Raises:
      InputError: the path is missing, empty, of another kind, or holds a malformed row; the message
        names the file, the line or row and what was expected there.
    """
    path = pathlib.Path(path)
    problems = []
    for i, (where, row) in enumerate(read_rows(path)):
        try:
            problems.append(_problem(row, where, f"{path.stem}-{i}"))
        except InputError as error:
            if skipped is None:
                raise
            skipped.append(str(error))
    if not problems:
        raise InputError(f"{path}: holds no problem; expected rows with `problem` and `answer`")
    return problems


def _problem(row: Any, where: str, default_id: str) -> Problem:
    if isinstance(row, Unreadable):
        raise InputError(f"{where}: {row.reason}")
    if not isinstance(row, dict):
        raise InputError(
            f"{where}: expected an object with `problem` and `answer`, found {kind(row)}"
        )
    text, answers = _question(row, where), _answers(row, where)
    row_id = row.get("id", default_id)
    if isinstance(row_id, bool) or not isinstance(row_id, str | int):
        raise InputError(f"{where}: `id` must be a text or an integer, found {_found(row, 'id')}")
    return Problem(text, answers, str(row_id))


def _question(row: dict[str, Any], where: str) -> str:
    field = next((f for f in ("problem", "question", "prompt") if f in row), "problem")
    text = row.get(field)
    if field == "prompt":
        messages = text if isinstance(text, list) else []
        if len(messages) != 1 or not isinstance(messages[0], dict):
            messages = [{}]
        text = messages[0].get("content") if messages[0].get("role") == "user" else None
        if not isinstance(text, str) or not text.strip():
            raise InputError(
                f"{where}: `prompt` must be a list of one user message with a text, "
                f"found {_found(row, field)}"
            )
        text = text.removesuffix(f" {INSTRUCTION}")
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"{where}: `{field}` must be a non-empty text, found {_found(row, field)}")
    return text


def _answers(row: dict[str, Any], where: str) -> tuple[Answer, ...]:
    """What makes a response right, wherever the row's form keeps it."""
    field, holder = "answer", row
    if "reward_model" in row and "answer" not in row:
        field, holder = "ground_truth", row["reward_model"]
        if not isinstance(holder, dict):
            raise InputError(f"{where}: `reward_model` must be an object, found {kind(holder)}")
    given = holder.get(field)
    if isinstance(row.get("answers_json"), list):  # as `tfds_builders` writes them
        field, given = "answers_json", [_from_json(text) for text in row["answers_json"]]
    if "question" in row and isinstance(given, str) and "####" in given:  # GSM8K's solutions
        given = given.rpartition("####")[2].strip()
    answers: list[Any] = given if isinstance(given, list) else [given]
    if not answers or not all(_is_answer(answer) for answer in answers):
        raise InputError(
            f"{where}: `{field}` must be a non-empty text, a finite number or a non-empty list of "
            f"these, found {_found(holder, field)}"
        )
    return tuple(answers)


def _from_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, TypeError):
        return None  # no answer: refused by its caller


def _is_answer(value: Any) -> bool:
    if isinstance(value, str):
        return bool(value.strip())
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isinstance(value, int) or math.isfinite(value)


def _found(row: dict[str, Any], field: str) -> str:
    if field not in row:
        return "no such field"
    shown = json.dumps(row[field], default=str)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
