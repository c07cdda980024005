"""What an evaluation leaves: its settings, every generation; and how it is taken up again."""

import json
import os
import pathlib
from collections.abc import Iterable
from typing import Any

from remix_jax.errors import InputError

SETTINGS, GENERATIONS = "settings.json", "generations.jsonl"


def claim(out: pathlib.Path, settings: dict[str, Any]) -> None:
    """Makes the directory of an evaluation, or checks that it holds the same one, to be continued.

    Raises:
      InputError: it holds something else or an evaluation whose settings differ (the first is
        named); or it cannot be written.
    """
    saved = out / SETTINGS
    try:
        if saved.exists():
            _check_same(out, json.loads(saved.read_text()), settings)
        elif out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise InputError(f"{out} is not empty and holds no evaluation: give another --out")
        else:
            out.mkdir(parents=True, exist_ok=True)
            saved.write_text(json.dumps(settings, indent=2) + "\n")
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"--out={out} cannot be used ({error})") from None


def _check_same(out: pathlib.Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    for field in sorted(old.keys() | new.keys()):
        if old.get(field) != new.get(field):
            raise InputError(
                f"{out} holds an evaluation with {field} = {json.dumps(old.get(field))}, now it is "
                f"{json.dumps(new.get(field))}: give another --out, or the same to continue it"
            )


def read_generations(out: pathlib.Path) -> list[dict[str, Any]]:
    """The generations written so far; a last line that a kill cut in half is taken off the file.

    Raises:
      InputError: another line is damaged.
    """
    path = out / GENERATIONS
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)
    records = []
    for number, line in enumerate(content[:whole].split(b"\n")[:-1], 1):
        try:
            records.append(json.loads(line))
        except ValueError:
            raise InputError(
                f"{path}, line {number}: damaged; delete it, and it is generated again"
            ) from None
    return records


def append_generations(out: pathlib.Path, records: Iterable[dict[str, Any]]) -> None:
    """Adds records to the file; returns when they are on disk."""
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    with (out / GENERATIONS).open("a", encoding="utf-8") as file:
        file.write(lines)
        file.flush()
        os.fsync(file.fileno())
