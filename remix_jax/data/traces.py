"""A bank of traces: for each problem one verified response, as token ids, and what it cost.

A directory with bank.json (what the bank is, one object a problem) and one .npz of plain arrays
(the token ids), which bank.json names with its checksum. Saving writes new arrays first and then
replaces bank.json, so that a kill at any moment leaves the bank before or the bank after.

Ids are kept, never text: text made of ids and split again may come back as other ids, and a prefix
of such a trace is no prefix that the model ever wrote.
"""

import hashlib
import io
import json
import math
import os
import pathlib
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from remix_jax.data.problems import Answer, Problem
from remix_jax.errors import InputError

BANK_FILE = "bank.json"
_FORMAT = 1
_ARRAYS = ("prompt_ids", "prompt_ends", "response_ids", "response_ends")


class Trace(NamedTuple):
    """One problem of a bank."""

    problem: str
    answers: tuple[Answer, ...]
    prompt: tuple[int, ...]  # ids that the response answered, chat template and all
    response: tuple[int, ...]  # ids of a verified response, end token included; empty: none found
    attempts: int  # responses drawn for it, failures included
    flops: float  # spent on all of these


class Bank(NamedTuple):
    """Traces, and what made them."""

    model: str  # name of the model that was sampled
    weights: str  # digest of its files
    tokenizer: str  # fingerprint of the vocabulary that the ids belong to
    sampler: Mapping[str, float]  # settings of the draws
    traces: Sequence[Trace]
    accept: str = ""  # module:function of the check beside the answer's; empty: none

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
    """Of a tokenizer's vocabulary: equal where every id stands for the same token.

    Args:
      tokenizer: anything with `get_vocab() -> dict[str, int]`.
    """
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
    directory = pathlib.Path(directory)
    content = _pack(bank.traces)
    digest = hashlib.sha256(content).hexdigest()
    arrays = f"traces-{digest[:16]}.npz"
    described = {
        "format": _FORMAT,
        "arrays": arrays,
        "sha256": digest,
        "model": bank.model,
        "weights": bank.weights,
        "tokenizer": bank.tokenizer,
        "sampler": dict(bank.sampler),
        "accept": bank.accept,
        "problems": [
            {"problem": t.problem, "answers": t.answers, "attempts": t.attempts, "flops": t.flops}
            for t in bank.traces
        ],
    }
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _write(directory / arrays, content)
        _write(directory / BANK_FILE, json.dumps(described, indent=1).encode() + b"\n")
        for path in directory.glob("traces-*.npz"):
            if path.name != arrays:
                path.unlink()
    except OSError as error:
        raise InputError(f"{directory}: the trace bank cannot be written ({error})") from None


def load(directory: str | pathlib.Path, tokenizer: str | None = None) -> Bank:
    """Reads what `save` wrote.

    Args:
      tokenizer: fingerprint of the vocabulary that the ids must belong to; None: any.

    Raises:
      InputError: no bank, a damaged one, or one of another tokenizer.
    """
    path = pathlib.Path(directory) / BANK_FILE
    if not path.is_file():
        raise InputError(f"{directory}: holds no trace bank ({BANK_FILE})")
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
        if described["format"] != _FORMAT:
            raise ValueError(f"format {described['format']}, expected {_FORMAT}")
        arrays = path.parent / pathlib.PurePath(described["arrays"]).name
        content = arrays.read_bytes()
        if hashlib.sha256(content).hexdigest() != described["sha256"]:
            raise ValueError(f"{arrays.name} is not what was written")
        traces = _unpack(content, described["problems"])
        sampler = {str(name): float(value) for name, value in described["sampler"].items()}
        model, weights, vocabulary = (
            str(described[field]) for field in ("model", "weights", "tokenizer")
        )
        bank = Bank(model, weights, vocabulary, sampler, traces, str(described["accept"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(f"{path}: damaged ({' '.join(reason.split())})") from None
    if tokenizer is not None and bank.tokenizer != tokenizer:
        raise InputError(
            f"{path}: its ids belong to the tokenizer of {bank.model}, not to that of this model"
        )
    return bank


def _pack(traces: Sequence[Trace]) -> bytes:
    """The token ids, laid end to end, with the end of each problem's."""
    arrays = {}
    for name in ("prompt", "response"):
        lists = [getattr(trace, name) for trace in traces]
        arrays[f"{name}_ids"] = np.array([i for ids in lists for i in ids], np.int32)
        arrays[f"{name}_ends"] = np.cumsum([len(ids) for ids in lists], dtype=np.int64)
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def _unpack(content: bytes, problems: Sequence[Mapping[str, Any]]) -> list[Trace]:
    """The traces again. Raises ValueError, KeyError or TypeError where they make no sense."""
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        arrays = {name: file[name] for name in _ARRAYS}
    ids = {name: _split(arrays, name, len(problems)) for name in ("prompt", "response")}
    return [
        Trace(
            problem=str(p["problem"]),
            answers=_answers(p["answers"]),
            prompt=prompt,
            response=response,
            attempts=int(p["attempts"]),
            flops=float(p["flops"]),
        )
        for p, prompt, response in zip(problems, ids["prompt"], ids["response"], strict=True)
    ]


def _answers(given: Any) -> tuple[Answer, ...]:
    if not isinstance(given, list) or not all(isinstance(x, str | int | float) for x in given):
        raise ValueError("answers are no list of texts and numbers")
    return tuple(given)


def _split(arrays: Mapping[str, np.ndarray], name: str, count: int) -> list[tuple[int, ...]]:
    ids, ends = arrays[f"{name}_ids"], arrays[f"{name}_ends"]
    integers = ids.dtype == np.int32 and ends.dtype == np.int64
    if not integers or ids.ndim != 1 or ends.shape != (count,):
        raise ValueError(f"arrays of {name}s do not fit {count} problems")
    begins = np.concatenate([np.zeros(1, np.int64), ends])
    if (np.diff(begins) < 0).any() or begins[-1] != len(ids) or (ids < 0).any():
        raise ValueError(f"arrays of {name}s contradict each other")
    bounds = zip(begins[:-1].tolist(), ends.tolist(), strict=True)
    return [tuple(ids[begin:end].tolist()) for begin, end in bounds]


def _write(path: pathlib.Path, content: bytes) -> None:
    """Under a temporary name, on disk, then renamed."""
    spare = path.with_suffix(".tmp")
    with spare.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    spare.replace(path)
