"""Rows of JSON, JSON lines, parquet or a prepared TFDS directory in, problems out."""

import ast
import contextlib
import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from math_grader.answers import last_box
from remix_jax.errors import InputError
from remix_jax.text import one_line

Answer = str | float

# What the paper's runs append to a problem; parquet files of chat messages hold it already.
INSTRUCTION = "Let's think step by step and output the final answer within \\boxed{}."
HASH_INSTRUCTION = 'Let\'s think step by step and output the final answer after "####".'  # verl's
TAG_INSTRUCTION = "Provide your final answer between <answer> and </answer> tags."
# Form of the answer -> (for people, what asks for it, its mark in an instruction).
FORMS = {
    "boxed": ("in \\boxed{}", INSTRUCTION, "\\boxed"),
    "hash": ("a number after ####", HASH_INSTRUCTION, "####"),
    "reasoning_gym": ("scored by reasoning-gym", TAG_INSTRUCTION, "<answer>"),
}
SUFFIXES = (".json", ".jsonl", ".parquet")
_EXPECTED = (
    "`problem` and `answer`, or `question` and `answer`, or `prompt` (a text or chat messages) "
    "with `answer`, `solution` or `reward_model.ground_truth`"
)
_ASKED = ("problem", "question", "prompt")  # the first that is there holds; of answers too
_ANSWERED = ("answers_json", "answer", "reward_model", "solution")
_CLASS_KEYS, _TFDS_CLASSES = ("pythonClassName", "python_class_name"), "tensorflow_datasets.core."


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is asked, what is right, and the row that said so."""

    problem: str
    answers: tuple[Answer, ...]  # any of them is right; none where the reward needs none
    id: str  # its name in logs
    columns: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False, repr=False)
    context: tuple[tuple[str, str], ...] = ()  # (role, text) of the messages before it
    asks: str = dataclasses.field(default="", compare=False)  # by its own prompt: a key of FORMS

    @property
    def instructed(self) -> bool:
        """Whether the text itself says in which form to answer."""
        return bool(self.asks) and FORMS[self.asks][2] in self.problem


def load_problems(
    path: str | pathlib.Path,
    skipped: list[str] | None = None,
    needs_answer: bool = True,
    problem_field: str = "",
    answer_field: str = "",
) -> list[Problem]:
    """The problems of a `.json`, `.jsonl` or `.parquet` file or of a prepared TFDS directory.

    docs/tasks.md says which fields a row may have; all of them are kept for reward functions.

    Args:
      skipped: takes the message of each malformed row, which is then left out; None refuses the
        file at its first malformed row.
      needs_answer: False takes rows without a usable answer too.
      problem_field, answer_field: what the rows call these, where it is none of the usual names.

    Raises:
      InputError: names the file, the line or row, and what was expected there.
    """
    path = pathlib.Path(path).expanduser()
    try:
        rows = list(read_rows(path))
    except (OSError, ValueError, pyarrow.ArrowException) as error:  # InputError is a ValueError
        kind = "parquet" if path.suffix == ".parquet" else "UTF-8"
        damaged = f"not a readable {kind} file ({one_line(error)})"
        raise InputError(f"{path}: {error if isinstance(error, InputError) else damaged}") from None
    problems = []
    for i, (place, row) in enumerate(rows):
        try:
            usual = _renamed(_renamed(row, problem_field, _ASKED), answer_field, _ANSWERED)
            found = _problem(usual, f"{path.stem}-{i}", needs_answer)
            problems.append(dataclasses.replace(found, columns=row))
        except InputError as error:
            message = f"{path}, {place}: {error}"
            if skipped is None:
                raise InputError(message) from None
            skipped.append(message)
    if not problems:
        raise InputError(f"{path}: holds no problem; expected rows with {_EXPECTED}")
    return problems


def asked_form(text: str) -> str:
    """The form of answer that a text asks for, a key of FORMS, or empty."""
    return next((form for form, (_, _, mark) in FORMS.items() if mark in text), "")


def read_rows(path: pathlib.Path) -> Iterator[tuple[str, Any]]:
    """(place, row) of every row: plain Python data, or the InputError of one that is no JSON."""
    if path.suffix in SUFFIXES and not path.exists():
        raise InputError("no such problem file")
    if path.suffix == ".jsonl":
        # Not str.splitlines, which also cuts at separators that JSON allows in strings.
        lines = enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1)
        return ((f"line {n}", _parsed(line)) for n, line in lines if line.strip())
    if path.suffix == ".json":
        rows = _parsed(path.read_text(encoding="utf-8-sig").strip() or "[]")
        if isinstance(rows, InputError):
            raise rows
        if not isinstance(rows, list):
            raise _unlike("expected a list of objects", rows)
    elif path.suffix == ".parquet":
        with pyarrow.parquet.ParquetFile(path) as file:
            rows = file.read().to_pylist()
    elif path.is_dir():
        rows = _prepared_rows(path)
    else:
        raise InputError(
            f"a problem file ends in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}, or is a "
            "directory that TFDS prepared"
        )
    return ((f"row {n}", row) for n, row in enumerate(rows, 1))


def _prepared_rows(path: pathlib.Path) -> list[Any]:
    """The rows of a TFDS directory of one split; its texts are bytes, its lists arrays."""
    if not (path / "dataset_info.json").is_file():
        raise InputError(
            "no prepared problems (no dataset_info.json); `python -m experiments.prepare_data` "
            "makes such directories"
        )
    if (path / "features.json").is_file():
        _check_classes((path / "features.json").read_text(encoding="utf-8-sig"))
    import tensorflow_datasets as tfds  # a third of a second to import; few callers need it

    def plain(value: Any) -> Any:
        return value.decode(errors="replace") if isinstance(value, bytes) else value.tolist()

    try:
        builder = tfds.builder_from_directory(path)
        splits = sorted(builder.info.splits)
        source = builder.as_data_source(split=splits[0]) if len(splits) == 1 else []
        rows = [json.loads(json.dumps(source[i], default=plain)) for i in range(len(source))]
    except Exception as error:  # TFDS raises many kinds for damaged or unsupported directories
        raise InputError(f"TFDS cannot read it ({one_line(error)})") from None
    if len(splits) != 1:
        raise InputError(f"has the splits {', '.join(splits)}; a problem set has one")
    return rows


def _check_classes(features: str) -> None:
    """Refuses a features.json that names a class of others: TFDS would import it."""
    foreign: list[str] = []

    def look(node: dict[str, Any]) -> None:
        for key, value in node.items():
            names_class = key in _CLASS_KEYS or (key == "type" and "content" in node)
            if names_class and not str(value).startswith(_TFDS_CLASSES):
                foreign.append(f"names the class {str(value)[:100]}, which is none of TFDS's")
            elif key in ("json", "content") and isinstance(value, str):
                _parsed(value, look)

    content = _parsed(features, look)
    wrong = [content] if isinstance(content, InputError) else foreign
    if wrong:
        raise InputError(f"features.json: {wrong[0]}")


def _parsed(text: str, check: Callable[[dict[str, Any]], object] | None = None) -> Any:
    """The value of a JSON text, or an InputError in its place; `check` sees every object in it."""
    try:
        return json.loads(text, object_hook=check)
    except (ValueError, RecursionError) as error:
        return InputError(f"not JSON ({one_line(error)})")


def _renamed(row: Any, field: str, usual: tuple[str, ...]) -> Any:
    """The row with one of its fields in the place of those that are usual."""
    if not field or not isinstance(row, dict):
        return row
    if field not in row:
        raise InputError(f"has no field {field}; found {', '.join(map(str, row))[:200] or 'none'}")
    others = {name: value for name, value in row.items() if name not in usual}
    return others | {"prompt" if usual is _ASKED else "answer": row[field]}


def _problem(row: Any, default_id: str, needs_answer: bool) -> Problem:
    """Raises InputError where the row is malformed."""
    if isinstance(row, InputError):
        raise row
    if not isinstance(row, dict):
        raise _unlike(f"expected an object with {_EXPECTED}", row)
    asked = next((field for field in _ASKED if field in row), "")
    answered = next((field for field in _ANSWERED if field in row), "")
    if not asked or (needs_answer and not answered):
        fields = ", ".join(map(str, row)) or "none"
        raise InputError(f"expected {_EXPECTED}; found the fields {fields[:200]}")
    row_id = row.get("id", default_id)
    if isinstance(row_id, bool) or not isinstance(row_id, str | int):
        raise _unlike("`id` must be a text or an integer", row_id)
    text, context, asks = _question(row, asked)
    try:
        answers = _answers(row, answered) if answered else ()
    except InputError:
        if needs_answer:
            raise
        answers = ()
    for part in (text, str(row_id), *(t for _, t in context), *map(str, answers)):
        if any("\ud800" <= letter <= "\udfff" for letter in part):
            raise InputError(f"holds half a character (a lone surrogate): {part[:60]!a}")
    return Problem(text, answers, str(row_id), row, context, asks)


def _question(row: dict[str, Any], field: str) -> tuple[str, tuple[tuple[str, str], ...], str]:
    """The problem's text, the messages before it, and the form of answer that it asks for."""
    text, context, asks = row[field], (), ""
    if field == "prompt" and isinstance(text, list):
        messages = (m if isinstance(m, dict) else {} for m in text)
        pairs: list[Any] = [(m.get("role"), m.get("content")) for m in messages]
        are_texts = all(isinstance(part, str) for pair in pairs for part in pair)
        if not pairs or not are_texts or pairs[-1][0] != "user":
            message = "`prompt` must be a text or a list of messages that ends with the user's"
            raise _unlike(message, text)
        context, text = tuple(pairs[:-1]), pairs[-1][1]
    if not isinstance(text, str) or not text.strip():
        raise _unlike(f"`{field}` must be a non-empty text", text)
    if field == "prompt":
        asks = asked_form(text) or ("hash" if row.get("data_source") == "openai/gsm8k" else "")
        for sentence in (INSTRUCTION, HASH_INSTRUCTION):  # they are added again
            text = text.removesuffix(f" {sentence}")
    return text, context, asks


def _answers(row: dict[str, Any], field: str) -> tuple[Answer, ...]:
    """What makes a response right, wherever the row's form keeps it."""
    given = row[field]
    if field == "reward_model":
        if not isinstance(given, dict):
            raise _unlike("`reward_model` must be an object", given)
        field, given = "ground_truth", given.get("ground_truth")
    found = given
    if field == "answers_json" and isinstance(given, list):  # as the TFDS builders write them
        found = [_parsed(x) if isinstance(x, str) else None for x in given]
    elif isinstance(given, str):
        found = _final(given, field, "question" in row)
    answers = tuple(map(_answer, found if isinstance(found, list) else [found]))
    if not answers or None in answers:
        kinds = "a non-empty text, a finite number or a non-empty list of these"
        raise _unlike(f"`{field}` must be {kinds}", given)
    return answers


def _final(text: str, field: str, gsm8k: bool) -> Any:
    """The answer in a text: behind GSM8K's "####", in a solution's box, or a list as JSON."""
    if gsm8k and "####" in text:
        return text.rpartition("####")[2].strip()
    if field == "solution" and (box := (last_box(text)[0] or "").strip()):
        return box
    # A list of numbers may be an interval or a vector; of texts, as JSON or Python writes them, it
    # is a list of answers.
    listed = _parsed(text) if text.lstrip().startswith("[") else None
    if isinstance(listed, InputError):
        with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            listed = ast.literal_eval(text.strip())
    is_texts = isinstance(listed, list) and listed and all(isinstance(x, str) for x in listed)
    return listed if is_texts else text


def _answer(value: Any) -> Any:
    """An answer, or None; 0.1 for 0.10000000149011612, which is of a float32 column."""
    if isinstance(value, str):
        return value if value.strip() else None
    if type(value) is not float:
        return value if type(value) is int else None
    if value.is_integer() or not abs(value) < 1e30:
        return value if math.isfinite(value) else None
    single = np.float32(value)
    return float(str(single)) if float(single) == value else value


def _unlike(expected: str, value: Any) -> InputError:
    """Says what was expected and what was found: a value as JSON, cut where it is long."""
    text = json.dumps(value, default=str)
    return InputError(f"{expected}, found {text if len(text) <= 60 else f'{text[:57]}...'}")
