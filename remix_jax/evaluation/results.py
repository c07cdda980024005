"""Figures of an evaluation: per set, and the unweighted mean of the sets, as the paper has it."""

import functools
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from remix_jax import grading
from remix_jax.data.tasks import ProblemSet
from remix_jax.evaluation import statistics
from remix_jax.text import MISSING, count, number, percent

RATES = ("truncated", "format", "reflection")
NOTES = (
    "Pass@1: mean over the samples of a problem, then over the problems. 95 %: Wilson's interval "
    "with one sample a problem, else a bootstrap over problems; of the mean, from those of the "
    "sets. n: the samples a problem."
)
# What reasoning models say when they turn back to what they wrote. The paper reports the share of
# responses with self-reflection and does not list its words; these are ours, so that shares compare
# between models measured here, not with the paper's figure.
_REFLECTION = re.compile(
    r"\b(wait|hold on|(re|double)[- ]?check|check again|let me check|let's check|let me verify|"
    r"let's verify|verify again|re-?think|think again|reconsider|re-?evaluate|re-?examine|"
    r"try again)\b",
    re.IGNORECASE,
)

Rows = Sequence[Mapping[str, Any]]


def reflects(text: str) -> bool:
    """Whether a response reflects on itself."""
    return _REFLECTION.search(text) is not None


def summarise(
    generations: Rows, sets: Sequence[ProblemSet], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """{"settings", "sets": {name: figures}, "mean": figures}; shares in [0, 1], lengths in tokens.

    A problem whose prompt was dropped has no response and counts as wrong: Pass@1 is over the whole
    set. Length, reward and rates are over the responses. Where no function of the reward says what
    correct is, there is no Pass@1.
    """
    by_set: dict[str, list[Mapping[str, Any]]] = {s.name: [] for s in sets}
    for row in generations:
        by_set[row["set"]].append(row)
    found = {s.name: _figures(by_set[s.name], s) for s in sets}
    keys = ["reward", "response_length", *(f"{rate}_rate" for rate in RATES)]
    mean: dict[str, Any] = {k: float(np.mean([f[k] for f in found.values()])) for k in keys}
    judged = [figures for figures in found.values() if "pass@1" in figures]
    if len(judged) == len(found):
        shares, intervals = zip(*((f["pass@1"], f["interval"]) for f in judged), strict=True)
        mean["pass@1"] = float(np.mean(shares))
        mean["interval"] = statistics.mean_interval(shares, intervals)
    return {"settings": dict(settings), "sets": found, "mean": mean}


def _figures(rows: Rows, asked: ProblemSet) -> dict[str, Any]:
    figures = {
        "problems": asked.size,
        "dropped": asked.dropped,
        "samples": asked.samples,
        "reward": float(np.mean([row["reward"] for row in rows])),
        "response_length": float(np.mean([row["length"] for row in rows])),
        **{f"{rate}_rate": float(np.mean([row[rate] for row in rows])) for rate in RATES},
    }
    if all(row["correct"] is None for row in rows):
        return figures
    by_place: dict[int, list[Mapping[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: row["sample"]):
        by_place.setdefault(row["place"], []).append(row)
    n = asked.samples
    right_PN = np.zeros((asked.size, n))  # dropped problems last, and wrong
    majority = dict.fromkeys((*(2**i for i in range(11) if 2**i < n), n), 0.0)
    same = _same_box if asked.form == "boxed" else (lambda one, other: one == other)
    for place, of_problem in enumerate(by_place.values()):
        right = [bool(row["correct"]) for row in of_problem]
        right_PN[place, : len(right)] = right
        votes = statistics.classes([row["answer"] for row in of_problem], same)
        for k in majority:
            majority[k] += statistics.majority_at_k(votes, right, k) / asked.size
    passed = functools.partial(statistics.pass_at_k, n)
    counts = right_PN.sum(axis=1).astype(int).tolist()
    interval, method = statistics.interval(right_PN)
    return figures | {
        "pass@1": float(right_PN.mean()),
        "interval": interval,
        "interval_method": method,
        "pass@k": {str(k): float(np.mean([passed(c, k) for c in counts])) for k in majority},
        "maj@k": {str(k): share for k, share in majority.items()},
    }


def _same_box(answer: str, other: str) -> bool:
    """Whether the grader takes the one answer for the other."""
    return grading.grade(f"\\boxed{{{answer}}}", other).correct


def tables(found: Mapping[str, Any]) -> str:
    """What was right and what the responses are like, last the mean of the sets; in Markdown."""
    sets, mean = found["sets"], found["mean"]
    last = f"mean of {len(sets)}"
    right = [["set", "problems", "samples", "Pass@1", "95 %", "pass@n", "maj@n"]]
    for name, f in sets.items():
        n = str(f["samples"])
        several = [percent(f[kind][n]) for kind in ("pass@k", "maj@k") if kind in f and n != "1"]
        cells = [name, count(f["problems"]), n, *_pass_cells(f), *(several or [MISSING] * 2)]
        right.append(cells)
    right.append([last, "", "", *_pass_cells(mean), "", ""])
    like = [["set", "reward", "tokens", *RATES]]
    for name, f in [*sets.items(), (last, mean)]:
        rates = [percent(f[f"{rate}_rate"]) for rate in RATES]
        like.append([name, number(f["reward"]), count(f["response_length"]), *rates])
    return f"{_markdown(*right)}\n\n{_markdown(*like)}"


def _markdown(header: list[str], *rows: list[str]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _pass_cells(f: Mapping[str, Any]) -> list[str]:
    if "pass@1" not in f:
        return [MISSING, MISSING]
    low, high = f["interval"]
    return [f"{100 * f['pass@1']:.2f} %", f"{100 * low:.1f} to {100 * high:.1f}"]


def write(found: Mapping[str, Any], out: pathlib.Path) -> None:
    """results.json, and results.md with the settings below the tables."""
    (out / "results.json").write_text(json.dumps(found, indent=2) + "\n")
    settings = "\n".join(f"* {name}: {json.dumps(x)}" for name, x in found["settings"].items())
    parts = ["# Evaluation", tables(found), NOTES, settings]
    (out / "results.md").write_text("\n\n".join(parts) + "\n")
