"""Files and directories of long work: whole or absent after a kill, whose they are, in buckets too.

A directory is a local path, or `gs://...` or `s3://...` (by etils.epath). Of one in a bucket the
files are written to a local copy, which `Mirror.push` uploads.
"""

import contextlib
import fcntl
import functools
import importlib
import json
import math
import os
import pathlib
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from etils import epath

from remix_jax.errors import InputError
from remix_jax.text import one_line

Path = Any  # pathlib.Path, or an epath.Path of a bucket; etils has no types that mypy can follow
BUCKETS = {"gs": "gcsfs", "s3": "s3fs"}  # scheme -> the package that reaches it
LOCK = ".lock"
_BLOCK = 1 << 16


def write_durably(path: pathlib.Path, content: str | bytes) -> None:
    """Writes a file whole or not at all, also through a loss of power."""
    spare = path.with_name(path.name + ".tmp")
    with spare.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    spare.replace(path)
    handle = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def claimed(
    directory: pathlib.Path,
    file: str,
    settings: Mapping[str, Any],
    *,
    what: str,
    flag: str,
    check: Callable[[Any], object] | None = None,
) -> Iterator[bool]:
    """Makes a directory for work of these settings, or takes one that holds the same work.

    Nobody else gets it meanwhile: a lock, which ends with the process however it ends.

    Args:
      file: name of the JSON file in it that keeps the settings.
      what: the work in messages, as "run".
      flag: that gave the directory, in messages, as "--workdir".
      check: raises InputError for saved settings that cannot be continued; by default each field
        must be equal.

    Yields:
      Whether there is work to continue.

    Raises:
      InputError: it holds something else, which is left as it is; another process works there; or
        it cannot be written.
    """
    check = check or functools.partial(_check_equal, settings, directory, what, flag)
    with contextlib.ExitStack() as held:
        try:
            there = _check_free(directory, file, what, flag, check)
            directory.mkdir(parents=True, exist_ok=True)
            lock = held.enter_context((directory / LOCK).open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not there:
                write_durably(directory / file, json.dumps(settings, indent=2) + "\n")
        except InputError:
            raise
        except BlockingIOError:
            raise InputError(f"{directory}: another process works on this {what}") from None
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"{flag}={directory} cannot be used ({one_line(error)})") from None
        yield there


def _check_free(directory: pathlib.Path, file: str, what: str, flag: str, check) -> bool:
    """Whether it holds settings, which are checked; otherwise it must be empty."""
    if (directory / file).exists():
        check(json.loads((directory / file).read_text()))
        return True
    ours = {LOCK, f"{file}.tmp"}  # of an attempt that was killed at once
    if directory.exists() and any(path.name not in ours for path in directory.iterdir()):
        raise InputError(f"{directory} is not empty and holds no {what}: give another {flag}")
    return False


def _check_equal(
    new: Mapping[str, Any], directory: pathlib.Path, what: str, flag: str, old: Any
) -> None:
    new = json.loads(json.dumps(new))  # tuples as lists
    if not isinstance(old, dict):
        raise InputError(f"{directory} holds a {what} without settings: give another {flag}")
    for field in sorted(old.keys() | new.keys()):
        if old.get(field) != new.get(field):
            raise InputError(
                f"{directory} holds a {what} with {field} = {json.dumps(old.get(field))}, now "
                f"{json.dumps(new.get(field))}: give another {flag}, or the same to continue it"
            )


def plain(value: Any) -> Any:
    """A value that strict JSON can hold: NumPy and JAX arrays unwrapped, NaN and inf as strings."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if not isinstance(value, str | int | float | None):
        return plain(value.item() if getattr(value, "ndim", 0) == 0 else value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


class JsonLines:
    """Appends objects to a file, one a line; a context manager that may close twice.

    A half-written last line (the process was killed within a write) is cut off on opening, so
    that later lines are never glued to it. Where the file system takes no more, `error` says why,
    lines wait in memory, and each later write tries them all again.
    """

    def __init__(self, path: pathlib.Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        mend(path)
        self._file = path.open("ab", buffering=0)
        self._size = self._file.seek(0, os.SEEK_END)
        self._waiting = b""
        self.error: str | None = None

    def write(self, item: Mapping[str, Any]) -> None:
        """Appends one object, as strict JSON (`plain`)."""
        text = json.dumps(plain(item), ensure_ascii=False, allow_nan=False) + "\n"
        # A lone surrogate in a sampled text becomes \udcxx, which is JSON's own escape for it.
        self._waiting += text.encode("utf-8", "backslashreplace")
        try:
            self._drain()
            self.error = None
        except OSError as error:
            self.error = f"{self._file.name}: {error.strerror or error}"

    def sync(self) -> int:
        """Brings all lines to the disk; the length of the file, an offset to continue from.

        Raises:
          OSError: the file system does not take them.
        """
        self._drain()
        os.fsync(self._file.fileno())
        return self._size

    def close(self) -> None:
        """Closes the file. Harmless when repeated. Raises OSError if lines are lost by it."""
        if self._file.closed:
            return
        try:
            self._drain()
        except OSError as error:
            raise OSError(error.errno, error.strerror, self._file.name) from None
        finally:
            self._file.close()

    def __enter__(self) -> "JsonLines":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _drain(self) -> None:
        """Writes what waits. On an error the file ends where it ended before."""
        if not self._waiting:
            return
        try:
            rest = memoryview(self._waiting)
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            self._file.truncate(self._size)
            raise
        self._size += len(self._waiting)
        self._waiting = b""


def read_json_lines(path: pathlib.Path) -> list[dict[str, Any]]:
    """The objects of a file; a half-written last line is left out with a warning.

    Raises:
      InputError: a damaged line before the last, or a line that holds no object.
    """
    records = []
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            records.append(parse_line(path, number, line))
        except InputError:
            if number < len(lines):
                raise
            warnings.warn(f"{path}: left out a half-written last line", stacklevel=2)
    return records


def parse_line(path: pathlib.Path, number: int, line: bytes) -> dict[str, Any]:
    """One line as a dict; InputError names the line otherwise."""
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise InputError(f"{path}, line {number}: damaged, expected a JSON object")
    return record


def mend(path: pathlib.Path) -> None:
    """Makes a file of lines, if it is there, end at the end of a line."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        size = end = file.seek(0, os.SEEK_END)
        tail = b""
        while end and b"\n" not in tail:  # from the end: samples can be gigabytes
            start = max(0, end - _BLOCK)
            file.seek(start)
            tail = file.read(end - start) + tail
            end = start
        tail = tail[tail.rfind(b"\n") + 1 :]
        if not tail:
            return
        try:
            json.loads(tail)
        except ValueError:
            warnings.warn(f"{path}: cut off a half-written last line", stacklevel=2)
            file.truncate(size - len(tail))
        else:
            file.seek(0, os.SEEK_END)
            file.write(b"\n")


def resolve(text: str | os.PathLike[str], flag: str) -> Path:
    """The path of a flag's value: `~` expanded; a bucket reached.

    Raises:
      InputError: a scheme that cannot be written, a missing package, or a bucket out of reach.
    """
    text = os.fspath(text)
    scheme, separator, rest = text.partition("://")
    if not separator or scheme == "file":
        return pathlib.Path(rest if separator else text).expanduser()
    if scheme not in BUCKETS:
        raise InputError(f"{flag}={text}: must be a local path, gs://BUCKET/... or s3://BUCKET/...")
    try:
        path = epath.Path(text)
        path.exists()
        if scheme == "gs":
            importlib.import_module("google.cloud.storage")  # which orbax asks there
    except ImportError:
        package = BUCKETS[scheme]
        raise InputError(
            f"{flag}={text} needs the package {package}: pip install {package}"
        ) from None
    except Exception as error:  # of whatever kind the client library has
        raise InputError(f"{flag}={text} cannot be reached ({one_line(error)})") from None
    return path


class Mirror:
    """A directory of files: itself where it is local, else a local copy to be pushed to a bucket.

    A context manager, at whose end the copy is pushed and removed.

    Args:
      names: files that are fetched from the bucket at the start.
    """

    def __init__(self, root: Path, names: tuple[str, ...]) -> None:
        self.root = root
        self.error: str | None = None
        self._pushed: dict[str, tuple[int, int]] = {}
        self.is_remote = not isinstance(root, pathlib.Path)
        if isinstance(root, pathlib.Path):
            self.local = root
            return
        self.local = pathlib.Path(tempfile.mkdtemp(prefix="remix_jax-"))
        for name in names:
            if (root / name).exists():
                (self.local / name).write_bytes((root / name).read_bytes())

    def push(self) -> None:
        """Uploads what has changed; what cannot be uploaded is said in `error`, and tried again."""
        self.error = None
        for path in sorted(self.local.rglob("*")) if self.is_remote else ():
            name = str(path.relative_to(self.local))
            if not path.is_file() or path.name == LOCK or path.suffix == ".tmp":
                continue
            status = path.stat()
            state = status.st_mtime_ns, status.st_size
            if self._pushed.get(name) == state:
                continue
            try:
                target = self.root / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with path.open("rb") as source, target.open("wb") as file:
                    shutil.copyfileobj(source, file, 1 << 24)
                self._pushed[name] = state
            except Exception as error:  # of whatever kind the client library has
                self.error = f"{self.root}/{name} could not be uploaded ({one_line(error)})"

    def __enter__(self) -> "Mirror":
        return self

    def __exit__(self, *exception: object) -> None:
        self.push()
        if self.is_remote:
            shutil.rmtree(self.local, ignore_errors=True)
