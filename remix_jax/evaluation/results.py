"""Figures of an evaluation: per set, and the unweighted mean of the sets, as the paper has it.

Shape letters: P problems, N samples a problem.
"""

import json
import math
import pathlib
import re
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np

import math_grader
from remix_jax.data.tasks import ProblemSet
from remix_jax.text import MISSING, count, number, percent

RESAMPLES = 10_000  # of the bootstrap
MAJORITY_DRAWS = 1_000  # subsets a problem over which maj@k is averaged
RATES = ("truncated", "format", "reflection")
# Figure -> the field of a generation whose mean it is.
MEANS = {"reward": "reward", "response_length": "length"} | {f"{rate}_rate": rate for rate in RATES}
NOTES = (
    "Pass@1: mean over the samples of a problem, then over the problems. 95 %: Wilson's interval "
    "with one sample a problem, else a bootstrap over problems; of the mean, from those of the "
    "sets. n: the samples a problem."
)
# What reasoning models say when they turn back to what they wrote. The paper reports the share of
# responses with self-reflection and does not list its words; these are ours, so that shares compare
# between models measured here, not with the paper's figure.
REFLECTION = re.compile(
    r"\b(wait|hold on|(re|double)[- ]?check|check again|let me check|let's check|let me verify|"
    r"let's verify|verify again|re-?think|think again|reconsider|re-?evaluate|re-?examine|"
    r"try again)\b",
    re.IGNORECASE,
)

Interval = tuple[float, float]
Rows = Sequence[Mapping[str, Any]]


def summarise(
    generations: Rows, sets: Sequence[ProblemSet], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """{"settings", "sets": {name: figures}, "mean": figures}; shares in [0, 1], lengths in tokens.

    A problem whose prompt was dropped has no response and counts as wrong: Pass@1 is over the whole
    set. Length, reward and rates are over the responses. Where no function of the reward says what
    correct is, there is no Pass@1.
    """
    found = {s.name: _figures([r for r in generations if r["set"] == s.name], s) for s in sets}
    mean: dict[str, Any] = {k: float(np.mean([f[k] for f in found.values()])) for k in MEANS}
    if all("pass@1" in figures for figures in found.values()):
        shares = [figures["pass@1"] for figures in found.values()]
        intervals = [figures["interval"] for figures in found.values()]
        mean["pass@1"] = float(np.mean(shares))
        mean["interval"] = mean_interval(shares, intervals)
    return {"settings": dict(settings), "sets": found, "mean": mean}


def _figures(rows: Rows, asked: ProblemSet) -> dict[str, Any]:
    figures: dict[str, Any] = {
        "problems": asked.size,
        "dropped": asked.dropped,
        "samples": asked.samples,
    }
    figures |= {k: float(np.mean([row[field] for row in rows])) for k, field in MEANS.items()}
    if all(row["correct"] is None for row in rows):
        return figures
    by_place: dict[int, list[Mapping[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: row["sample"]):
        by_place.setdefault(row["place"], []).append(row)
    n = asked.samples
    right_PN = np.zeros((asked.size, n))  # dropped problems last, and wrong
    majority = dict.fromkeys((*(2**i for i in range(11) if 2**i < n), n), 0.0)

    def same(answer: str, other: str) -> bool:  # of two texts that differ
        return asked.form == "boxed" and math_grader.grade(f"\\boxed{{{answer}}}", other).correct

    for place, of_problem in enumerate(by_place.values()):
        right = [bool(row["correct"]) for row in of_problem]
        right_PN[place, : len(right)] = right
        votes = classes([row["answer"] for row in of_problem], same)
        for k in majority:
            majority[k] += majority_at_k(votes, right, k) / asked.size
    figures["pass@1"] = float(right_PN.mean())
    figures["interval"], figures["interval_method"] = interval(right_PN)
    found_P = right_PN.sum(axis=1).astype(int).tolist()
    passed = {k: float(np.mean([pass_at_k(n, c, k) for c in found_P])) for k in majority}
    for name, by_k in (("pass@k", passed), ("maj@k", majority)):
        figures[name] = {str(k): share for k, share in by_k.items()}
    return figures


def tables(found: Mapping[str, Any]) -> str:
    """What was right and what the responses are like, last the mean of the sets; in Markdown."""
    right = [["set", "problems", "samples", "Pass@1", "95 %", "pass@n", "maj@n"]]
    like = [["set", "reward", "tokens", *RATES]]
    sets = found["sets"]
    for name, f in [*sets.items(), (f"mean of {len(sets)}", found["mean"])]:
        n, passed, interval, several = f.get("samples"), MISSING, MISSING, [MISSING] * 2
        if "pass@1" in f:
            passed = f"{100 * f['pass@1']:.2f} %"
            interval = " to ".join(f"{100 * bound:.1f}" for bound in f["interval"])
            if n is not None and n > 1:
                several = [percent(f[kind][str(n)]) for kind in ("pass@k", "maj@k")]
        right.append([name, count(f.get("problems")), count(n), passed, interval, *several])
        rates = [percent(f[f"{rate}_rate"]) for rate in RATES]
        like.append([name, number(f["reward"]), count(f["response_length"]), *rates])
    for table in (right, like):
        table.insert(1, ["---", *["---:"] * (len(table[0]) - 1)])
    return "\n\n".join(
        "\n".join(f"| {' | '.join(line)} |" for line in table) for table in (right, like)
    )


def write(found: Mapping[str, Any], out: pathlib.Path) -> None:
    """results.json, and results.md with the settings below the tables."""
    (out / "results.json").write_text(json.dumps(found, indent=2) + "\n")
    settings = "\n".join(f"* {name}: {json.dumps(x)}" for name, x in found["settings"].items())
    parts = ["# Evaluation", tables(found), NOTES, settings]
    (out / "results.md").write_text("\n\n".join(parts) + "\n")


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Chance that k of n samples, drawn without replacement, hold one of the c right; unbiased.

    1 - C(n - c, k) / C(n, k)     (Chen et al. 2021)
    """
    if not 1 <= k <= samples or not 0 <= correct <= samples:
        raise ValueError(f"pass@{k} of {correct} right in {samples} is not defined")
    return 1 - math.comb(samples - correct, k) / math.comb(samples, k)


def majority_at_k(votes: Sequence[Hashable | None], right: Sequence[bool], k: int) -> float:
    """Chance that the commonest answer of k samples is right; ties go to the one met first.

    For k = n all samples vote, in their order. Below, the mean over `MAJORITY_DRAWS` random
    ordered subsets.

    Args:
      votes: the class of each sample's answer; None casts no vote. No vote at all is wrong.
    """
    n = len(votes)
    if not 1 <= k <= n:
        raise ValueError(f"maj@{k} of {n} samples is not defined")
    rng, won = np.random.default_rng(0), []
    for _ in range(1 if k == n else MAJORITY_DRAWS):
        order = range(n) if k == n else rng.permutation(n)[:k].tolist()
        cast = Counter(votes[i] for i in order if votes[i] is not None)
        ((winner, _),) = cast.most_common(1) or [(None, 0)]  # of equals the one met first
        won.append(winner is not None and next(right[i] for i in order if votes[i] == winner))
    return float(np.mean(won))


def classes(answers: Sequence[str | None], same: Callable[[str, str], bool]) -> list[str | None]:
    """The class of each answer, by its first answer: the first class of which that is the same.

    Args:
      answers: of the samples of a problem; None and empty ones belong to no class.
      same: equivalence of two answers; asked of texts that differ.
    """
    firsts: dict[str, str] = {}
    for answer in filter(None, answers):
        if answer not in firsts:
            known = dict.fromkeys(firsts.values())
            firsts[answer] = next((first for first in known if same(answer, first)), answer)
    return [firsts[answer] if answer else None for answer in answers]


def interval(correct_PN: np.ndarray) -> tuple[Interval, str]:
    """95 % interval of a set's Pass@1, and the name of its method.

    With one sample a problem, Wilson's; with several, whose verdicts depend on each other, the
    percentiles of a bootstrap over problems. Where all is right or all wrong a bootstrap would
    have no width: there Wilson's too, of the problems.
    """
    from scipy import stats  # half a second to import

    problems, samples = correct_PN.shape
    mean_P = correct_PN.mean(axis=1)
    if samples == 1 or np.ptp(mean_P) == 0:
        counted = stats.binomtest(round(float(mean_P.mean()) * problems), problems)
        found, method = counted.proportion_ci(method="wilson"), "Wilson"
    else:
        boot = stats.bootstrap(
            (mean_P,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=0
        )
        found, method = boot.confidence_interval, "bootstrap over problems"
    return (float(found.low), float(found.high)), method


def mean_interval(shares: Sequence[float], intervals: Sequence[Interval]) -> Interval:
    """95 % interval of the unweighted mean of independent shares, from the interval of each.

    The distances of the shares to their bounds add up in squares, each side for itself (the method
    of variance estimates recovery, Zou and Donner 2008).
    """
    mean, sets = sum(shares) / len(shares), list(zip(shares, intervals, strict=True))
    below = math.sqrt(sum((share - low) ** 2 for share, (low, _) in sets))
    above = math.sqrt(sum((high - share) ** 2 for share, (_, high) in sets))
    return mean - below / len(sets), mean + above / len(sets)
