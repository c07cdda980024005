"""Figures of an evaluation: per set, and the unweighted mean of the sets, as the paper has it."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from remix_jax.data.problems import Problem
from remix_jax.evaluation import statistics
from remix_jax.grading import verdicts as grading
from remix_jax.text import count, percent

RATES = ("truncated", "format", "reflection")
NOTES = (
    "Pass@1: mean over the samples of a problem, then over the problems. 95 %: Wilson's interval "
    "with one sample a problem, else a bootstrap over problems; of the mean, from those of the "
    "sets. n: the samples a problem."
)


def summarise(
    generations: Sequence[Mapping[str, Any]],
    problems: Mapping[str, Sequence[Problem]],
    samples: Mapping[str, int],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """{"settings", "sets": {name: figures}, "mean": figures}; shares in [0, 1], lengths in tokens.

    A problem whose prompt was dropped has no response and counts as wrong: Pass@1 is over the whole
    set. Length and rates are over the responses.
    """
    by_set: dict[str, list[Mapping[str, Any]]] = {name: [] for name in problems}
    for row in generations:
        by_set[row["set"]].append(row)
    correct = {
        name: _correct(by_set[name], len(problems[name]), samples[name]) for name in problems
    }
    sets = {name: _figures(by_set[name], x_PN) for name, x_PN in correct.items()}
    keys = ("pass@1", "response_length", *(f"{rate}_rate" for rate in RATES))
    mean = {key: float(np.mean([figures[key] for figures in sets.values()])) for key in keys}
    shares = [figures["pass@1"] for figures in sets.values()]
    intervals = [figures["interval"] for figures in sets.values()]
    interval = statistics.mean_interval(shares, intervals)
    return {"settings": dict(settings), "sets": sets, "mean": mean | {"interval": interval}}


def _correct(rows: Sequence[Mapping[str, Any]], problems: int, samples: int) -> np.ndarray:
    correct_PN = np.zeros((problems, samples))
    for row in rows:
        correct_PN[row["place"], row["sample"]] = row["correct"]
    return correct_PN


def _figures(rows: Sequence[Mapping[str, Any]], correct_PN: np.ndarray) -> dict[str, Any]:
    problems, samples = correct_PN.shape
    interval, method = statistics.interval(correct_PN)
    ks = [k for k in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024) if k < samples] + [samples]
    right_P = correct_PN.sum(axis=1).astype(int).tolist()
    passes = {
        str(k): float(np.mean([statistics.pass_at_k(samples, c, k) for c in right_P])) for k in ks
    }
    return {
        "problems": problems,
        "dropped": problems - len({row["place"] for row in rows}),
        "samples": samples,
        "pass@1": float(correct_PN.mean()),
        "interval": interval,
        "interval_method": method,
        "pass@k": passes,
        "maj@k": _majorities(rows, problems, ks),
        "response_length": float(np.mean([row["length"] for row in rows])),
        **{f"{rate}_rate": float(np.mean([row[rate] for row in rows])) for rate in RATES},
    }


def _majorities(rows: Sequence[Mapping[str, Any]], problems: int, ks) -> dict[str, float]:
    """maj@k by k: the mean over the set's problems, those that were dropped being wrong."""
    by_place: dict[int, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_place.setdefault(row["place"], []).append(row)
    total = dict.fromkeys(ks, 0.0)
    for of_problem in by_place.values():
        ordered = sorted(of_problem, key=lambda row: row["sample"])
        votes = statistics.classes([row["answer"] for row in ordered], _same)
        right = [row["correct"] for row in ordered]
        for k in ks:
            total[k] += statistics.majority_at_k(votes, right, k)
    return {str(k): total[k] / problems for k in ks}


def _same(answer: str, other: str) -> bool:
    """Whether the grader takes the one answer for the other."""
    return grading.grade(f"\\boxed{{{answer}}}", other).correct


Cells = list[list[str]]


def tables_of(found: Mapping[str, Any]) -> dict[str, Cells]:
    """{title: header and rows} of what was right and of what the responses are like.

    The sets come in their order, and last their mean.
    """
    sets, mean = found["sets"], found["mean"]
    last = f"mean of {len(sets)}"
    right = [["set", "problems", "samples", "Pass@1", "95 %", "pass@n", "maj@n"]]
    for name, f in sets.items():
        n = str(f["samples"])
        several = [percent(f["pass@k"][n]), percent(f["maj@k"][n])] if n != "1" else ["-", "-"]
        right.append([name, count(f["problems"]), n, *_pass_cells(f), *several])
    right.append([last, "", "", *_pass_cells(mean), "", ""])
    like = [["set", "tokens", *RATES]]
    for name, f in [*sets.items(), (last, mean)]:
        rates = [percent(f[f"{rate}_rate"]) for rate in RATES]
        like.append([name, count(f["response_length"]), *rates])
    return {"Accuracy": right, "Responses": like}


def _pass_cells(f: Mapping[str, Any]) -> list[str]:
    low, high = f["interval"]
    return [f"{100 * f['pass@1']:.2f} %", f"{100 * low:.1f} to {100 * high:.1f}"]


def tables(found: Mapping[str, Any]) -> RenderableType:
    """The figures for a console."""
    shown = []
    for title, (header, *sets, mean) in tables_of(found).items():
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
        for i, name in enumerate(header):
            table.add_column(name, justify="right" if i else "left", no_wrap=True)
        for row in sets:
            table.add_row(*map(Text, row))
        table.add_section()
        table.add_row(*map(Text, mean), style="bold")
        shown.append(table)
    return Group(*shown)


def write(found: Mapping[str, Any], out: pathlib.Path) -> None:
    """results.json, and results.md with the settings below the tables."""
    (out / "results.json").write_text(json.dumps(found, indent=2) + "\n")
    parts = ["# Benchmarks"]
    for header, *rows in tables_of(found).values():
        lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    parts.append(NOTES)
    settings = found["settings"].items()
    parts.append("\n".join(f"* {name}: {json.dumps(value)}" for name, value in settings))
    (out / "results.md").write_text("\n\n".join(parts) + "\n")
