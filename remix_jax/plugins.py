"""Functions of the user: `path/to/file.py:function` or `package.module:function` of a config."""

import functools
import hashlib
import importlib
import importlib.util
import inspect
import json
import pathlib
import sys
import urllib.parse
from collections.abc import Callable
from types import ModuleType
from typing import Any

from math_grader import pool
from remix_jax.errors import InputError

_FORMS = "expected path/to/file.py:function or package.module:function"


def load(spec: str, what: str) -> Callable[..., Any]:
    """The function (or class) that `path/to/file.py:function` or `package.module:function` names.

    Either is looked for from the working directory on, and imported once a process. A file may
    import what lies beside it.

    Args:
      what: names the setting in errors, as "config.reward.functions".

    Raises:
      InputError: no such file, module or function, it cannot be called, or its import failed.
    """
    where = f"{what} = {spec!r}"
    source, _, name = spec.rpartition(":")
    if not source or not name.isidentifier():
        raise InputError(f"{where}: {_FORMS}")
    is_file, path = source.endswith(".py"), pathlib.Path(source).expanduser().resolve()
    if is_file and not path.is_file():
        raise InputError(f"{where}: no such file {path}")
    for directory in (str(pathlib.Path.cwd()), *([str(path.parent)] * is_file)):
        if directory not in sys.path:
            sys.path.append(directory)
    try:
        module = _from_file(path) if is_file else importlib.import_module(source)
    except (Exception, SystemExit) as error:  # a user's module may raise anything
        missing = isinstance(error, ModuleNotFoundError) and error.name
        absent = missing and not is_file and f"{source}.".startswith(f"{missing}.")
        said = f"no module {missing!r}; {_FORMS}" if absent else error_line(error)
        raise InputError(f"{where}: {said}") from None
    found = getattr(module, name, None)
    if found is None:
        functions = [n for n, f in vars(module).items() if inspect.isfunction(f) and n[0] != "_"]
        known = ", ".join(functions) or "none"
        raise InputError(f"{where}: {source} has no {name}; its functions: {known}")
    if not callable(found):
        raise InputError(f"{where}: {name} is no function but {type(found).__name__}")
    return found


def split_options(spec: str, what: str) -> tuple[str, dict[str, Any]]:
    """The name and the options of `NAME?option=value&option=value`.

    Values are read as JSON where they can be (numbers, true, null, lists), else taken as text;
    `%26` and the like stand for characters that separate.

    Raises:
      InputError: an option without a value, or given twice.
    """
    name, _, rest = spec.partition("?")
    options: dict[str, Any] = {}
    for part in filter(None, rest.split("&")):
        key, equals, text = part.partition("=")
        if not key.isidentifier() or not equals or key in options:
            raise InputError(f"{what} = {spec!r}: {part!r}; expected NAME?option=value&...")
        text = urllib.parse.unquote(text)
        try:
            options[key] = json.loads(text)
        except ValueError:
            options[key] = text
    return name, options


def digest(function: Callable[..., Any]) -> str:
    """A digest of the source file that defines a function; "" where it has none."""
    while isinstance(function, functools.partial):
        function = function.func
    try:
        source = inspect.getsourcefile(inspect.unwrap(function)) or ""
        return hashlib.sha256(pathlib.Path(source).read_bytes()).hexdigest()[:16]
    except (TypeError, OSError):
        return ""


def _from_file(path: pathlib.Path) -> ModuleType:
    """The module of a file, under a name of its own, so that files of one name do not meet."""
    name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name not in sys.modules:
        spec: Any = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(sys.modules[name])
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def error_line(error: BaseException) -> str:
    """`pool.error_line` of what a user's module raised."""
    return pool.error_line(error, skip=__file__)
