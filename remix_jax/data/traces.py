"""A bank of traces: for each problem one verified response, as token ids, and what it cost.

A directory with one parquet file, a row a problem, what the bank is in its metadata; replaced as a
whole. Ids are kept, never text: text that is split again may come back as other ids, and a prefix
of those is none that the model ever wrote.
"""

import hashlib
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import pyarrow
import pyarrow.parquet

from remix_jax.data.problems import Answer, Problem
from remix_jax.errors import InputError
from remix_jax.files import write_durably
from remix_jax.text import one_line

BANK_FILE = "bank.parquet"
_FORMAT = 2
_KEY = b"remix_jax"  # of the file's metadata


class Trace(NamedTuple):
    """One problem of a bank."""

    problem: str
    answers: tuple[Answer, ...]
    prompt: tuple[int, ...]  # ids that the response answered, chat template and all
    response: tuple[int, ...]  # ids of a verified response, end token included; empty: none found
    attempts: int  # responses drawn for it, failures included
    flops: float  # spent on all of these


_TEXT, _IDS = pyarrow.string(), pyarrow.list_(pyarrow.int32())
_TYPES = (_TEXT, _TEXT, _IDS, _IDS, pyarrow.int64(), pyarrow.float64())
_SCHEMA = pyarrow.schema(zip(Trace._fields, _TYPES, strict=True))


class Bank(NamedTuple):
    """Traces, and what made them."""

    model: str  # name of the model that was sampled
    weights: str  # digest of its files
    tokenizer: str  # fingerprint of the vocabulary that the ids belong to
    sampler: dict[str, float]  # settings of the draws
    traces: Sequence[Trace]
    accept: str = ""  # file or module and function of the check beside the reward's; empty: none

    @property
    def attempts(self) -> int:
        """Responses drawn for the whole bank."""
        return sum(trace.attempts for trace in self.traces)

    @property
    def flops(self) -> float:
        """Spent on the whole bank."""
        return math.fsum(trace.flops for trace in self.traces)

    @property
    def solved(self) -> int:
        """Problems with a trace."""
        return sum(bool(trace.response) for trace in self.traces)


def fingerprint(tokenizer: Any) -> str:
    """Of a tokenizer's vocabulary (`get_vocab()`): equal where ids stand for the same tokens."""
    pieces = json.dumps(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(pieces.encode()).hexdigest()[:16]


def traces_of(bank: Bank, problems: Sequence[Problem]) -> list[Trace | None]:
    """The trace of each problem, None where the bank has none; the key is text and answers."""
    found = {(t.problem, t.answers): t for t in bank.traces if t.response}
    return [found.get((p.problem, p.answers)) for p in problems]


def save(bank: Bank, directory: str | pathlib.Path) -> None:
    """Writes the bank; returns when it is on disk. What the directory held before is replaced.

    Raises:
      InputError: the directory cannot be written.
    """
    described: dict[str, Any] = {"format": _FORMAT} | bank._asdict()
    traces = described.pop("traces")
    rows = [t._asdict() | {"answers": json.dumps(t.answers)} for t in traces]
    schema = _SCHEMA.with_metadata({_KEY: json.dumps(described)})
    table = pyarrow.Table.from_pylist(rows, schema)
    content = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(table, content, write_page_checksum=True)
    directory = pathlib.Path(directory).expanduser()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_durably(directory / BANK_FILE, content.getvalue().to_pybytes())
    except OSError as error:
        raise InputError(f"{directory}: the trace bank cannot be written ({error})") from None


def load(directory: str | pathlib.Path, tokenizer: str | None = None) -> Bank:
    """Reads what `save` wrote.

    Raises:
      InputError: no bank, a damaged one, or one of another tokenizer than of that fingerprint.
    """
    path = pathlib.Path(directory).expanduser() / BANK_FILE
    if not path.is_file():
        raise InputError(f"{directory}: holds no trace bank ({BANK_FILE})")
    try:
        table = pyarrow.parquet.read_table(path, page_checksum_verification=True)
        if not table.schema.equals(_SCHEMA):
            raise ValueError("other columns than a trace bank has")
        described = json.loads(table.schema.metadata[_KEY])
        if described.pop("format") != _FORMAT:
            raise ValueError(f"another format than {_FORMAT}")
        bank = Bank(traces=[_trace(row) for row in table.to_pylist()], **described)
    except (OSError, ValueError, KeyError, TypeError, pyarrow.ArrowException) as error:
        raise InputError(f"{path}: damaged ({one_line(error)})") from None
    if tokenizer is not None and bank.tokenizer != tokenizer:
        raise InputError(
            f"{path}: its ids belong to the tokenizer of {bank.model}, not to that of this model"
        )
    return bank


def _trace(row: dict[str, Any]) -> Trace:
    """Raises ValueError or TypeError where the row makes no sense."""
    answers, ids = json.loads(row["answers"]), (tuple(row["prompt"]), tuple(row["response"]))
    if not isinstance(answers, list) or not all(isinstance(x, str | int | float) for x in answers):
        raise ValueError("answers are no list of texts and numbers")
    if any(i is None or i < 0 for i in (*ids[0], *ids[1])):
        raise ValueError("token ids below 0")
    numbers = int(row["attempts"]), float(row["flops"])
    return Trace(str(row["problem"]), tuple(answers), *ids, *numbers)
