"""What follows from the trials of prefix.json. Pure functions; nothing derived is stored."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from remix_jax.errors import InputError
from remix_jax.reporting import bootstrap, records
from remix_jax.run import report

KEYS = (
    "about", "budget", "bank", "bar", "learning_rates", "selection_seeds", "arms", "trials",
)  # fmt: skip
HARD, MIDDLE, VALIDATION = "hard", "middle", "validation"
PREFIXED, PLAIN, ONLY = "prefix", "grpo", "prefix-only"  # arms that the claims speak of
Data = Mapping[str, Any]
Trial = Mapping[str, Any]


class Claim(NamedTuple):
    """What the paper reports, whether these runs show it, and the figures."""

    claim: str
    verdict: str
    evidence: str


def check(data: Data) -> None:
    """Raises InputError unless every arm was tuned alike and has what the tables show."""
    records.require_keys(data, KEYS, "prefix")
    names = [arm["name"] for arm in data["arms"]]
    for name in (PREFIXED, PLAIN, ONLY):
        if name not in names:
            raise InputError(f"prefix: no arm {name!r}, of which the claims speak")
    keys = [(t["arm"], t["learning_rate"], t["seed"]) for t in data["trials"]]
    for name in names:
        for rate in data["learning_rates"]:
            for seed in data["selection_seeds"]:
                if (name, rate, seed) not in keys:
                    raise InputError(f"prefix: {name!r} has no trial at {rate:g}, seed {seed}")
    for key in keys:
        if key[0] not in names:
            raise InputError(f"prefix: a trial of {key[0]!r}, which is no arm")
        if keys.count(key) > 1:
            raise InputError(f"prefix: {key[0]} at {key[1]:g}, seed {key[2]} is there twice")


def label(data: Data, name: str) -> str:
    """The arm's name for people."""
    return next(arm["label"] for arm in data["arms"] if arm["name"] == name)


def best_learning_rate(data: Data, name: str) -> float:
    """The rate with the best validation accuracy: mean over the run up to the budget, over seeds.

    Of equal rates the smaller one.
    """

    def score(rate: float) -> float:
        own = [
            _mean(_within(data, trial, VALIDATION)[1])
            for trial in data["trials"]
            if (trial["arm"], trial["learning_rate"]) == (name, rate)
            and trial["seed"] in data["selection_seeds"]
        ]
        return _mean(own)

    return max(sorted(data["learning_rates"]), key=score)


def trials(data: Data, name: str, rate: float | None = None) -> list[Trial]:
    """The arm's trials at a rate, by default its own best, by seed in ascending order."""
    rate = best_learning_rate(data, name) if rate is None else rate
    own = [t for t in data["trials"] if (t["arm"], t["learning_rate"]) == (name, rate)]
    return sorted(own, key=lambda trial: trial["seed"])


def curve(trial: Trial, name: str = HARD, x: str = "flops") -> bootstrap.Curve:
    """(x, accuracy) of a trial; FLOPs include what came before training."""
    return trial["curve"][x], trial["curve"][name]


def at(trial: Trial, flops: float, name: str = HARD) -> float | None:
    """Accuracy after so many FLOPs, linear between evaluations; after the last one that one's.

    None where what comes before training, the rejection phase first of all, has taken more.
    """
    xs, ys = curve(trial, name)
    if flops < xs[0]:
        return None
    value = report.interpolate(xs, ys, flops)
    return ys[-1] if value is None else value


def final(data: Data, trial: Trial, name: str = HARD) -> float:
    """Accuracy at the budget."""
    found = at(trial, data["budget"], name)
    if found is None:
        raise InputError(f"prefix: {trial['arm']} begins beyond the budget")
    return found


def start(trial: Trial, name: str = HARD) -> float:
    """Accuracy of the base."""
    return trial["curve"][name][0]


def flops_to(data: Data, trial: Trial, level: float) -> float | None:
    """FLOPs at which the trial first has the level, within the budget; None if never."""
    xs, ys = curve(trial)
    spent = next(
        (
            x0 + (x1 - x0) * max(level - y0, 0.0) / max(y1 - y0, 1e-12)
            for x0, x1, y0, y1 in zip(xs, xs[1:], ys, ys[1:], strict=False)
            if y1 >= level
        ),
        None,
    )
    return spent if spent is not None and spent <= data["budget"] else None


def strongest_baseline(data: Data) -> str:
    """The arm without prefixes that is best at the budget, by the median over seeds."""
    others = [arm["name"] for arm in data["arms"] if not arm["prefixed"]]

    def middle(name: str) -> float:
        interval = bootstrap.median([final(data, t) for t in trials(data, name)])
        return -math.inf if interval is None else interval.median

    return max(others, key=middle)


def claims(data: Data) -> list[Claim]:
    """The paper's claims on these runs, seed by seed."""
    strongest = strongest_baseline(data)
    made = []
    for name in dict.fromkeys((strongest, PLAIN)):
        who = label(data, name)
        who = f"the strongest baseline, {who}" if name == strongest else f"plain RL, {who}"
        made += [_half(data, name, who), _threefold(data, name, who)]
    return [*made, *_transfer(data)]


def _half(data: Data, name: str, who: str) -> Claim:
    pairs = _pairs(data, name)
    spent = [(flops_to(data, own, final(data, base)), data["budget"]) for own, base in pairs]
    holds = [own is not None and own <= budget / 2 for own, budget in spent]
    shares = ", ".join("never" if own is None else f"{own / budget:.0%}" for own, budget in spent)
    return Claim(
        f"PrefixRL has what {who}, ends with at half the FLOPs, rejection phase included.",
        _verdict(holds),
        f"Share of the budget that it needs, seed by seed: {shares}.",
    )


def _threefold(data: Data, name: str, who: str) -> Claim:
    pairs = [(final(data, own), final(data, base)) for own, base in _pairs(data, name)]
    holds = [own >= 3 * base for own, base in pairs]
    shown = ", ".join(f"{own:.1%} against {base:.1%}" for own, base in pairs)
    return Claim(
        f"PrefixRL ends with three times the accuracy of {who}, at equal FLOPs.",
        _verdict(holds),
        f"{shown}.",
    )


def _transfer(data: Data) -> list[Claim]:
    only = trials(data, ONLY)
    made = []
    for suite, what in (
        (HARD, "the hard problems without a prefix"),
        (MIDDLE, "chains of 7 to 10 operations, never trained on"),
    ):
        ends = [(start(t, suite), final(data, t, suite)) for t in only]
        holds = [last >= 2 * first and last - first >= 0.1 for first, last in ends]
        shown = ", ".join(f"{first:.1%} to {last:.1%}" for first, last in ends)
        made.append(
            Claim(
                f"Training on prefixed problems alone transfers to {what} "
                "(twice the base's accuracy, ten points or more).",
                _verdict(holds),
                f"{shown}.",
            )
        )
    return made


def _pairs(data: Data, name: str) -> list[tuple[Trial, Trial]]:
    """(PrefixRL, the other arm) of each seed that both have."""
    others = {t["seed"]: t for t in trials(data, name)}
    return [(t, others[t["seed"]]) for t in trials(data, PREFIXED) if t["seed"] in others]


def _verdict(holds: Sequence[bool]) -> str:
    if holds and all(holds):
        return "yes"
    return f"in {sum(holds)} of {len(holds)} seeds" if any(holds) else "no"


def _within(data: Data, trial: Trial, name: str) -> bootstrap.Curve:
    points = [(x, y) for x, y in zip(*curve(trial, name), strict=True) if x <= data["budget"]]
    points = points or [(trial["curve"]["flops"][0], trial["curve"][name][0])]
    return [x for x, _ in points], [y for _, y in points]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
