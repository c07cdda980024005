"""Rows in, problems out."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from remix_jax.data.problem_files import Unreadable, kind, parse_json, read_rows
from remix_jax.errors import InputError
from remix_jax.grading.answers import last_box

Answer = str | float

# What the paper's runs append to a problem; parquet files of chat messages hold it already.
INSTRUCTION = "Let's think step by step and output the final answer within \\boxed{}."
HASH_INSTRUCTION = 'Let\'s think step by step and output the final answer after "####".'  # verl's
TAG_INSTRUCTION = "Provide your final answer between <answer> and </answer> tags."

FORMS = (
    "`problem` and `answer`, or `question` and `answer`, or `prompt` (a text or chat messages) "
    "with `answer`, `solution` or `reward_model.ground_truth`"
)
_MESSAGE = ("role", "content")
_MARKS = {"boxed": "\\boxed", "hash": "####", "tag": "<answer>"}  # of a form of answer


@dataclasses.dataclass(frozen=True)
class Problem:
    """A problem, the answers any one of which is right, and a name for it in logs."""

    problem: str
    answers: tuple[Answer, ...]  # none where the reward needs none
    id: str
    columns: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False, repr=False)
    context: tuple[tuple[str, str], ...] = ()  # (role, text) of the messages before it
    # The form of answer that the row's own prompt asks for; empty: none.
    asks: str = dataclasses.field(default="", compare=False)

    @property
    def instructed(self) -> bool:
        """Whether the text itself says in which form to answer."""
        return bool(self.asks) and _MARKS[self.asks] in self.problem


def load_problems(
    path: str | pathlib.Path, skipped: list[str] | None = None, needs_answer: bool = True
) -> list[Problem]:
    """The problems of a `.json`, `.jsonl` or `.parquet` file or of a prepared TFDS directory.

    A row gives the problem as `problem`, GSM8K's `question`, or `prompt` (a text, or chat messages
    that end with the user's); the answer as `answer` (text, finite number or a list of these: any
    is right), TRL's `solution` or verl's `reward_model.ground_truth`; optionally an `id`. All
    columns are kept for reward functions. See docs/tasks.md.

    Args:
      path: what to read; ~ is the home directory.
      skipped: takes the message of each malformed row, which is then left out; None refuses the
        file at its first malformed row.
      needs_answer: False takes rows without a usable answer too.

    Raises:
      InputError: the path is missing, empty, of another kind, or holds a malformed row; the message
        names the file, the line or row and what was expected there.
    """
    path = pathlib.Path(path).expanduser()
    problems = []
    for i, (where, row) in enumerate(read_rows(path)):
        try:
            problems.append(_problem(row, where, f"{path.stem}-{i}", needs_answer))
        except InputError as error:
            if skipped is None:
                raise
            skipped.append(str(error))
    if not problems:
        raise InputError(f"{path}: holds no problem; expected rows with {FORMS}")
    return problems


def asked_form(text: str) -> str:
    """The form of answer that a text asks for: boxed, hash, tag, or empty."""
    return next((form for form, mark in _MARKS.items() if mark in text), "")


def _problem(row: Any, where: str, default_id: str, needs_answer: bool) -> Problem:
    if isinstance(row, Unreadable):
        raise InputError(f"{where}: {row.reason}")
    if not isinstance(row, dict):
        raise InputError(f"{where}: expected an object with {FORMS}, found {kind(row)}")
    row_id = row.get("id", default_id)
    if isinstance(row_id, bool) or not isinstance(row_id, str | int):
        raise InputError(f"{where}: `id` must be a text or an integer, found {_found(row, 'id')}")
    text, context, asks = _question(row, where)
    answers = _answers(row, where, needs_answer)
    for part in (text, str(row_id), *(t for _, t in context), *map(str, answers)):
        if any("\ud800" <= letter <= "\udfff" for letter in part):
            raise InputError(f"{where}: holds half a character (a lone surrogate): {part[:60]!a}")
    return Problem(text, answers, str(row_id), row, context, asks)


def _question(row: dict[str, Any], where: str) -> tuple[str, tuple[tuple[str, str], ...], str]:
    """The problem's text, the messages before it, and the form of answer that it asks for.

    Known sentences that ask for a form are taken off a prompt, for they are added again.
    """
    field = next((f for f in ("problem", "question", "prompt") if f in row), "problem")
    text, asks = row.get(field), ""
    context: tuple[tuple[str, str], ...] = ()
    if isinstance(text, list) and field == "prompt":
        text, context = _messages(text)
        if text is None:
            raise InputError(
                f"{where}: `prompt` must be a text or a list of messages that ends with the "
                f"user's, found {_found(row, field)}"
            )
    if field not in row:
        raise InputError(f"{where}: {_no_field(row)}")
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"{where}: `{field}` must be a non-empty text, found {_found(row, field)}")
    if field == "prompt":
        asks = asked_form(text) or ("hash" if row.get("data_source") == "openai/gsm8k" else "")
        for sentence in (INSTRUCTION, HASH_INSTRUCTION):
            text = text.removesuffix(f" {sentence}")
    return text, context, asks


def _messages(given: list[Any]) -> tuple[str | None, tuple[tuple[str, str], ...]]:
    """The last message's text, if it is the user's, and (role, text) of those before it."""
    pairs: list[tuple[str, str]] = []
    for message in given:
        role, text = (message.get(k) if isinstance(message, dict) else None for k in _MESSAGE)
        if not isinstance(role, str) or not isinstance(text, str):
            return None, ()
        pairs.append((role, text))
    if not pairs or pairs[-1][0] != "user":
        return None, ()
    return pairs[-1][1], tuple(pairs[:-1])


def _answers(row: dict[str, Any], where: str, needed: bool) -> tuple[Answer, ...]:
    """What makes a response right, wherever the row's form keeps it."""
    field = next((f for f in ("answers_json", "answer", "solution") if f in row), "answer")
    holder = row
    if "reward_model" in row and "answer" not in row:
        field, holder = "ground_truth", row["reward_model"]
        if not isinstance(holder, dict):
            raise InputError(f"{where}: `reward_model` must be an object, found {kind(holder)}")
    given = holder.get(field)
    if field == "answers_json" and isinstance(given, list):  # as the TFDS builders write them
        given = [parse_json(x) if isinstance(x, str) else None for x in given]
    elif isinstance(given, str):
        given = _final(given, field, "question" in row)
    answers: list[Any] = given if isinstance(given, list) else [given]
    if answers and all(_is_answer(answer) for answer in answers):
        return tuple(map(_shortest, answers))
    if not needed:
        return ()
    if not row.keys() & {"answer", "answers_json", "solution", "reward_model"}:
        raise InputError(f"{where}: {_no_field(row)}")
    raise InputError(
        f"{where}: `{field}` must be a non-empty text, a finite number or a non-empty list of "
        f"these, found {_found(holder, field)}"
    )


def _final(text: str, field: str, gsm8k: bool) -> Any:
    """The answer in a text: behind GSM8K's "####", in a solution's box, or a list as JSON."""
    if gsm8k and "####" in text:
        return text.rpartition("####")[2].strip()
    if field == "solution" and (box := (last_box(text)[0] or "").strip()):
        return box
    if text.lstrip().startswith(("[", "{")):
        listed = parse_json(text)
        # A list of numbers may be an interval or a vector; of texts it is a list of answers.
        if isinstance(listed, list) and listed and all(isinstance(x, str) for x in listed):
            return listed
    return text


def _is_answer(value: Any) -> bool:
    if isinstance(value, str):
        return bool(value.strip())
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isinstance(value, int) or math.isfinite(value)


def _shortest(answer: Answer) -> Answer:
    """0.1 for 0.10000000149011612: such a fraction comes from a column of float32."""
    if not isinstance(answer, float) or answer.is_integer() or abs(answer) > 1e30:
        return answer
    single = np.float32(answer)
    return float(str(single)) if float(single) == answer else answer


def _no_field(row: dict[str, Any]) -> str:
    fields = ", ".join(map(str, row)) or "none"
    return f"expected {FORMS}; found the fields {fields[:200]}"


def _found(row: dict[str, Any], field: str) -> str:
    if field not in row:
        return "no such field"
    shown = json.dumps(row[field], default=str)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
