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
LOCK, SPARE = ".lock", ".tmp"


def write_durably(path: pathlib.Path, content: str | bytes) -> None:
    """Writes a file whole or not at all, also through a loss of power."""
    spare = path.with_name(path.name + SPARE)
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
    root: Path,
    file: str,
    settings: Mapping[str, Any],
    *,
    what: str,
    flag: str,
    others: tuple[str, ...] = (),
    check: Callable[[Any, pathlib.Path], object] | None = None,
) -> Iterator["Mirror"]:
    """Makes a directory for work of these settings, or takes one that holds the same work.

    Nobody else gets it meanwhile: a lock, which ends with the process however it ends. In a bucket
    there is none: two processes there would overwrite each other's files.

    Args:
      file: name of the JSON file in it that keeps the settings.
      what, flag: the work and where the directory was given, for messages: "run", "--workdir".
      others: files of the work that are written to further.
      check: of saved settings and the mirror's directory; raises InputError where the work cannot
        be continued. By default each field must be equal.

    Raises:
      InputError: it holds something else, which is left as it is; another process works there; or
        it cannot be written.
    """
    ours = {LOCK, file + SPARE}  # of an attempt killed at once
    with contextlib.ExitStack() as held:
        try:
            mirror = held.enter_context(Mirror(root, (file, *others)))
            local, path = mirror.local, mirror.local / file
            there = path.exists()
            if there:
                saved = json.loads(path.read_text())
                check(saved, local) if check else _check_equal(saved, settings, root, what, flag)
            elif root.exists() and any(p.name not in ours for p in root.iterdir()):
                raise InputError(f"{root} is not empty and holds no {what}: give another {flag}")
            local.mkdir(parents=True, exist_ok=True)
            lock = held.enter_context((local / LOCK).open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not there:
                write_durably(path, json.dumps(settings, indent=2) + "\n")
        except InputError:
            raise
        except BlockingIOError:
            raise InputError(f"{root}: another process works on this {what}") from None
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"{flag}={root} cannot be used ({one_line(error)})") from None
        yield mirror


def _check_equal(old: Any, new: Mapping[str, Any], root: Path, what: str, flag: str) -> None:
    new = json.loads(json.dumps(new))  # tuples as lists
    if not isinstance(old, dict):
        raise InputError(f"{root} holds a {what} without settings: give another {flag}")
    for field in sorted(old.keys() | new.keys()):
        if old.get(field) != new.get(field):
            raise InputError(
                f"{root} holds a {what} with {field} = {json.dumps(old.get(field))}, now "
                f"{json.dumps(new.get(field))}: give another {flag}, or the same to continue it"
            )


def plain(value: Any) -> Any:
    """A value that strict JSON can hold: NumPy and JAX arrays unwrapped, NaN and inf as strings."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if not isinstance(value, str | int | float | None):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return json.dumps(value)  # NaN, Infinity or -Infinity
    return value


class JsonLines:
    """Appends objects to a file, one a line; `close` may be called twice.

    A half-written last line (the process was killed within a write) is cut off on opening. Where
    the file system takes no more, `error` says why, lines wait in memory, and each later write
    tries them all again.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self._file = path.open("ab", buffering=0)
        end, line = 0, b"\n"
        for line, _ in json_lines(path):
            end += len(line)
        self._file.truncate(end)
        self._waiting = b"" if line.endswith(b"\n") else b"\n"
        self.error: str | None = None

    def write(self, item: Mapping[str, Any]) -> None:
        """Appends one object, as strict JSON (`plain`)."""
        to_text = functools.partial(json.dumps, ensure_ascii=False, allow_nan=False)
        try:
            text = to_text(item) + "\n"
        except (TypeError, ValueError):  # an array, or not finite; to look at all would cost more
            text = to_text(plain(item)) + "\n"
        # A lone surrogate in a sampled text becomes \udcxx, which is JSON's own escape for it.
        self._waiting += text.encode("utf-8", "backslashreplace")
        try:
            self._drain()
            self.error = None
        except OSError as error:
            self.error = one_line(error)

    def sync(self) -> None:
        """Brings all lines to the disk. Raises OSError if the file system does not take them."""
        self._drain()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file. Raises OSError if lines are lost by it."""
        try:
            self._drain()
        finally:
            self._file.close()
            self._waiting = b""

    def _drain(self) -> None:
        """Writes what waits. On an error the file ends where it ended before."""
        if not self._waiting:
            return
        end, rest = self._file.seek(0, os.SEEK_END), memoryview(self._waiting)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self._file.truncate(end)
            raise OSError(error.errno, error.strerror, self._file.name) from None
        self._waiting = b""


def json_lines(path: pathlib.Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """The lines of a file and their objects; a half-written last one is left out with a warning.

    Raises:
      InputError: a damaged line before the last, or a line that holds no object.
    """
    with path.open("rb") as file:  # line by line: samples can be gigabytes
        for number, line in enumerate(file, start=1):
            try:
                record = json.loads(line)
            except ValueError:
                record = None
                if not line.endswith(b"\n"):
                    warnings.warn(f"{path}: left out a half-written last line", stacklevel=2)
                    return
            if not isinstance(record, dict):
                raise InputError(f"{path}, line {number}: damaged, expected a JSON object")
            yield line, record


def resolve(text: str | os.PathLike[str], flag: str) -> Path:
    """The path of a flag's value: `~` expanded; a bucket reached.

    Raises:
      InputError: a scheme that cannot be written, a missing package, or a bucket out of reach.
    """
    text = os.fspath(text).removeprefix("file://")
    scheme = text.partition("://")[0]
    if scheme == text:
        return pathlib.Path(text).expanduser()
    if scheme not in BUCKETS:
        raise InputError(f"{flag}={text}: must be a local path, gs://BUCKET/... or s3://BUCKET/...")
    try:
        path = epath.Path(text)
        path.exists()
        if scheme == "gs":
            importlib.import_module("google.cloud.storage")  # which orbax asks there
    except ImportError:
        name = BUCKETS[scheme]
        raise InputError(f"{flag}={text} needs the package {name}: pip install {name}") from None
    except Exception as error:  # of whatever kind the client library has
        raise InputError(f"{flag}={text} cannot be reached ({one_line(error)})") from None
    return path


class Mirror(contextlib.AbstractContextManager):
    """A directory of files: itself where it is local, else a local copy to be pushed to a bucket.

    A context manager, at whose end the copy is pushed and removed.

    Args:
      names: files that are fetched from the bucket at the start.
    """

    def __init__(self, root: Path, names: tuple[str, ...]) -> None:
        self.root, self.is_remote = root, not isinstance(root, pathlib.Path)
        self.local: pathlib.Path = root
        self.error: str | None = None
        self._there: dict[pathlib.Path, tuple[int, int]] = {}  # what the bucket has
        if not self.is_remote:
            return
        self.local = pathlib.Path(tempfile.mkdtemp(prefix="remix_jax-"))
        for name in names:
            if (root / name).exists():
                (root / name).copy(self.local / name)
                self._there[self.local / name] = _version(self.local / name)

    @property
    def name(self) -> str:
        """What people call the directory: its last part."""
        return os.path.basename(os.path.abspath(str(self.root)))

    def push(self) -> None:
        """Uploads what has changed; what cannot be uploaded is said in `error`, and tried again."""
        self.error = None
        for path in sorted(self.local.rglob("*")) if self.is_remote else ():
            version, ours = _version(path), path.name == LOCK or path.suffix == SPARE
            if ours or not path.is_file() or self._there.get(path) == version:
                continue
            target = self.root / str(path.relative_to(self.local))
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                epath.Path(path).copy(target, overwrite=True)
                self._there[path] = version
            except Exception as error:  # of whatever kind the client library has
                self.error = f"{target} could not be uploaded ({one_line(error)})"

    def __exit__(self, *exception: object) -> None:
        self.push()
        if self.is_remote:
            shutil.rmtree(self.local, ignore_errors=True)


def _version(path: pathlib.Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size
