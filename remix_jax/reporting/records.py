"""JSON files of results: small, strict, and with one trial a line, so that a change shows."""

import json
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from remix_jax.errors import InputError


def significant(value: float, digits: int = 5) -> float:
    """The number with so many significant digits; whole numbers become int, which is shorter."""
    rounded = float(f"{value:.{digits}g}")
    return int(rounded) if rounded.is_integer() else rounded


def write_json(data: Mapping[str, Any], path: pathlib.Path) -> None:
    """Writes a dict, one key a line and each item of "trials" on a line of its own.

    Raises:
      InputError: a number in it is not finite.
    """

    def text(value: Any) -> str:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)

    try:
        parts = [
            f"{text(key)}: [\n" + ",\n".join(map(text, value)) + "\n]"
            if key == "trials"
            else f"{text(key)}: {text(value)}"
            for key, value in data.items()
        ]
    except ValueError:
        raise InputError(f"{path}: a number is not finite; JSON has no word for it") from None
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")


def read_json(
    path: str | pathlib.Path,
    keys: tuple[str, ...],
    check: Callable[[dict[str, Any]], None] = lambda data: None,
) -> dict[str, Any]:
    """Reads what `write_json` wrote.

    Args:
      keys: that must be there.
      check: raises InputError where the rest is wrong.
    Raises:
      InputError: no such file, no JSON object, one without some of the keys, or what `check` says.
    """
    path = pathlib.Path(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected a JSON file of results ({error})") from None
    require_keys(data, keys, str(path))
    check(data)
    return data


def require_keys(data: Any, keys: tuple[str, ...], where: str) -> None:
    """Raises InputError unless `data` is a dict with all of the keys."""
    if not isinstance(data, dict):
        raise InputError(f"{where}: expected a JSON object with {', '.join(keys)}")
    missing = [key for key in keys if key not in data]
    if missing:
        raise InputError(f"{where}: {', '.join(missing)} missing; expected {', '.join(keys)}")


def finite(value: Any) -> bool:
    """Whether the value is a number that is neither NaN nor infinite."""
    return isinstance(value, int | float) and math.isfinite(value)
