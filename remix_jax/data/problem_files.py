"""Files of problems as rows: JSON, JSON lines, parquet, prepared TFDS directories.

A row comes with the place it stands at, for messages. Nothing is said here about what a row must
hold; `problems.load_problems` is the door that does.
"""

import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from remix_jax.errors import InputError
from remix_jax.text import one_line

SUFFIXES = (".json", ".jsonl", ".parquet")
PREPARED = "dataset_info.json"  # every directory that TFDS prepared holds one
_FEATURES = "features.json"  # what its columns are
_CLASS_KEYS, _TFDS_CLASSES = ("pythonClassName", "python_class_name"), "tensorflow_datasets.core."


class Unreadable(NamedTuple):
    """What stands in place of a row that cannot even be read, and why."""

    reason: str


def read_rows(path: pathlib.Path) -> Iterator[tuple[str, Any]]:
    """(place, row) of every row; a row is plain Python data, or `Unreadable`.

    Raises:
      InputError: the file or directory is missing, of another kind, or damaged as a whole.
    """
    readers = {".jsonl": _read_jsonl, ".json": _read_json, ".parquet": _read_parquet}
    if path.suffix in readers:
        if not path.exists():
            raise InputError(f"{path}: no such problem file")
        return readers[path.suffix](path)
    if path.is_dir():
        return _read_prepared(path)
    raise InputError(
        f"{path}: a problem file ends in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}, or is a "
        "directory that TFDS prepared"
    )


def kind(value: Any) -> str:
    """What JSON calls a value, for messages."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "a truth value"}
    return "null" if value is None else names.get(type(value), "a number")


def _read_jsonl(path: pathlib.Path) -> Iterator[tuple[str, Any]]:
    # Split at "\n" alone: str.splitlines would also cut at separators that JSON allows in strings.
    for number, line in enumerate(_text(path).split("\n"), 1):
        if line.strip():
            yield f"{path}, line {number}", parse_json(line)


def _read_json(path: pathlib.Path) -> Iterator[tuple[str, Any]]:
    text = _text(path)
    content = parse_json(text) if text.strip() else []
    if isinstance(content, Unreadable):
        raise InputError(f"{path}: {content.reason}")
    if not isinstance(content, list):
        raise InputError(f"{path}: expected a list of objects, found {kind(content)}")
    for number, row in enumerate(content, 1):
        yield f"{path}, row {number}", row


def _read_parquet(path: pathlib.Path) -> Iterator[tuple[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", row
    except (OSError, ValueError, pyarrow.ArrowException) as error:  # ValueError: names in no UTF-8
        raise InputError(f"{path}: not a readable parquet file ({one_line(error)})") from None


def _read_prepared(path: pathlib.Path) -> Iterator[tuple[str, Any]]:
    if not (path / PREPARED).is_file():
        raise InputError(
            f"{path}: no prepared problems (no {PREPARED}); `python -m experiments.prepare_data` "
            "makes such directories"
        )
    if (path / _FEATURES).is_file():
        _check_classes(path / _FEATURES)
    import tensorflow_datasets as tfds  # a third of a second to import; few callers need it

    try:
        builder = tfds.builder_from_directory(path)
        splits = sorted(builder.info.splits)
        source = builder.as_data_source(split=splits[0]) if len(splits) == 1 else None
    except Exception as error:  # TFDS raises many kinds for damaged or unsupported directories
        raise InputError(f"{path}: TFDS cannot read it ({one_line(error)})") from None
    if source is None:
        raise InputError(f"{path}: has the splits {', '.join(splits)}; a problem set has one")
    for i in range(len(source)):
        yield f"{path}, row {i + 1}", _plain(source[i])


def _check_classes(path: pathlib.Path) -> None:
    """Refuses a features.json that names a class of others: TFDS would import it."""
    foreign: list[str] = []

    def look(node: dict[str, Any]) -> None:
        for key, value in node.items():
            names_class = key in _CLASS_KEYS or (key == "type" and "content" in node)
            if names_class and not str(value).startswith(_TFDS_CLASSES):
                foreign.append(str(value)[:100])
            elif key in ("json", "content") and isinstance(value, str):
                parse_json(value, look)

    content = parse_json(_text(path), look)
    if isinstance(content, Unreadable):
        raise InputError(f"{path}: {content.reason}")
    for name in foreign:
        raise InputError(f"{path}: names the class {name}, which is none of TFDS's")


def _plain(value: Any) -> Any:
    """What TFDS gives as Python data; its texts are bytes."""
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, np.ndarray | list):
        return [_plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def _text(path: pathlib.Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable UTF-8 file ({one_line(error)})") from None


def parse_json(text: str, check: Callable[[dict[str, Any]], object] | None = None) -> Any:
    """The value of a text, or `Unreadable`; `check` sees every object in it."""
    try:
        return json.loads(text, object_hook=check)
    except (ValueError, RecursionError) as error:
        return Unreadable(f"not JSON ({one_line(error)})")
