"""What a run's own figures say is wrong with it: one table of red lines, which the console colours
by, the run report draws, docs/metrics.md lists, and the sink `Health` watches.
"""

import ast
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from remix_jax.data.problems import FORMS, Answer, Problem
from remix_jax.data.tasks import ProblemSet
from remix_jax.sinks.sink import Metrics, Rows

EVERY = 10  # steps between checks; the first comes after step 1, one more at the end
_LONGEST_ANSWER = 200  # characters; beyond them a gold answer is a solution, not an answer


class Rule(NamedTuple):
    """A metric and where it is red: below `low` or above `high`."""

    metric: str
    low: float
    high: float
    worst: bool  # of the steps since the check before the worst one counts, else their mean
    cause: str
    change: str  # the fields of the config to change, or what else to do
    shows: Callable[[Mapping[str, Any]], bool] | None = None  # of the samples, one to look at
    relative: bool = False  # as a share of the first step's value
    unless: tuple[str, float] | None = None  # another metric, and the mean from which all is well

    def is_red(self, value: float) -> bool:
        """Whether the value, a share of the first one where the rule is relative, is beyond."""
        return not self.low <= value <= self.high


class Finding(NamedTuple):
    """A rule that holds, in one line: what was seen, its cause, a sample, what to change."""

    rule: str
    text: str


def _red(metric: str, cause: str, change: str, **more: Any) -> Rule:
    settings = {"low": -math.inf, "high": math.inf, "worst": False} | more
    return Rule(metric=metric, cause=cause, change=change, **settings)


_STALE = "replay.window, replay.share, passes or optimizer.learning_rate, lower"
RULES = {
    "no signal": _red(
        "zero_variance",
        "all rewards of a group are equal, so that it has no advantage and no gradient",
        "easier or harder problems (data.train), more responses a group (group_size), another "
        "reward (reward.functions)",
        high=0.9,
        shows=lambda row: True,
    ),
    "no answer found": _red(
        "format_rate",
        "the reward reads no answer from the responses",
        "what asks for one (data.instruction, data.answer), or data.response_tokens",
        low=0.01,
        shows=lambda row: row.get("answer") is None,
    ),
    "truncated": _red(
        "truncated_rate",
        "responses meet the limit before they end: rewards measure their length",
        "data.response_tokens, higher; or reward.functions with overlong",
        high=0.2,
        shows=lambda row: row.get("truncated", False),
    ),
    "few tokens count": _red(
        "ess", "few tokens carry the gradient: rows too old", _STALE, low=0.5, worst=True
    ),
    "ratio drifts": _red(
        "ratio_mean", "the policy has left the one that sampled", _STALE, low=0.9, high=1.1,
        worst=True,
    ),
    "ratio explodes": _red(
        "ratio_max", "single tokens weigh too much: stale rows", _STALE, high=100.0, worst=True
    ),
    "clipped": _red(
        "clip_share", "too many or too large updates for a rollout", _STALE, high=0.2, worst=True
    ),
    "entropy collapse": _red(
        "entropy",
        "the policy hardly explores any more, and is not right",
        "optimizer.learning_rate, lower; objective.entropy_coef, higher; reincarnation_step, lower",
        low=0.1,
        relative=True,
        unless=("accuracy", 0.5),
    ),
    "sampler and trainer differ": _red(
        "token_mult_prob_error",
        "sampler and trainer compute different policies: other kernels, dtypes or weights",
        "model.compute_dtype, sampling.engine; sampling.correction corrects for it",
        high=1.05,
    ),
}  # fmt: skip


class Health:
    """A sink that checks the rules after step 1, every EVERY steps and after the last.

    Args:
      history: the steps written so far, of a run that continues.
      last: the run's last step.
      tell: takes the step, what was found, and whether the check before did not find it.
    """

    def __init__(
        self, history: Iterable[Metrics], last: int, tell: Callable[[int, Finding, bool], None]
    ) -> None:
        self._last, self._tell, self._rows = last, tell, list[Mapping[str, Any]]()
        self._first: dict[str, float] = {}  # values of the first step that has them
        self._window: list[tuple[int, Metrics]] = []
        self._active: set[str] = set()
        for record in history:
            self._add(record["step"], record)
            if self._is_due(record["step"]):
                self._window = []

    def write(self, step: int, metrics: Metrics) -> None:
        """Takes a step's figures; checks, where it is time to."""
        self._add(step, metrics)
        if not self._window or not self._is_due(step):
            return
        window, self._window = self._window, []
        findings = check(window, self._first, self._rows)
        for finding in findings:
            self._tell(step, finding, finding.rule not in self._active)
        self._active = {finding.rule for finding in findings}

    def samples(self, step: int, rows: Rows) -> None:
        """Takes responses to show in a finding."""
        self._rows = [row for row in rows if "held_out" not in row] or self._rows

    def close(self) -> None:
        """Nothing is held."""

    def _is_due(self, step: int) -> bool:
        return step in (1, self._last) or step % EVERY == 0

    def _add(self, step: int, metrics: Metrics) -> None:
        own = metrics.get("n_fresh", 1) + metrics.get("n_replayed", 0)
        if step > 0 and own:  # figures of an expert's rows alone are no figures of the policy
            self._window.append((step, metrics))
            for name in (rule.metric for rule in RULES.values() if rule.relative):
                if name in metrics:
                    self._first.setdefault(name, metrics[name])


def check(
    window: Sequence[tuple[int, Metrics]], first: Mapping[str, float], rows: Rows = ()
) -> list[Finding]:
    """The rules that the figures of these steps break.

    Args:
      window: (step, metrics) of the steps since the check before.
      first: values of the first step, for rules that are relative to it.
      rows: responses of the last step, as in samples.jsonl.
    """
    found = []
    for name, rule in RULES.items():
        values = {step: m[rule.metric] for step, m in window if rule.metric in m}
        if not values or (rule.unless and _mean(m.get(rule.unless[0], -math.inf) for _, m in window)
                          >= rule.unless[1]):  # fmt: skip
            continue
        scale = first.get(rule.metric, 1.0) or 1.0 if rule.relative else 1.0
        beyond = {step: v for step, v in values.items() if rule.is_red(v / scale)}
        if rule.worst and beyond:
            step = max(beyond, key=lambda s: abs(math.log(max(beyond[s], 1e-9))))
            seen = f"step {step}: {rule.metric} {beyond[step]:.3g}"
            if len(values) > 1:
                seen += f", red in {len(beyond)} of the last {len(values)} steps"
        elif not rule.worst and rule.is_red(mean := _mean(v / scale for v in values.values())):
            steps = sorted(values)
            when = f"step {steps[0]}" + f" to {steps[-1]}" * (len(steps) > 1)
            of_first = f", {mean:.2g} of the first step's" if rule.relative else ""
            seen = f"{when}: {rule.metric} {mean * scale:.3g}{of_first}"
        else:
            continue
        shown = next((row for row in rows if rule.shows and rule.shows(row)), None)
        example = f" For example {_told(shown)}." if shown else ""
        found.append(
            Finding(name, f"{seen} ({limits(rule)}): {rule.cause}.{example} Change {rule.change}.")
        )
    return found


def is_red(metric: str, value: float) -> bool:
    """Whether the value of a metric in one step is beyond a rule's red lines."""
    absolute = (rule for rule in RULES.values() if not rule.relative)
    return any(rule.metric == metric and rule.is_red(value) for rule in absolute)


def limits(rule: Rule) -> str:
    """The red lines of a rule, for people: "red below 0.9 or above 1.1"."""
    bounds = {"below": rule.low, "above": rule.high}
    texts = [f"{side} {x:g}" for side, x in bounds.items() if math.isfinite(x)]
    more = " of the first step's" * rule.relative
    more += f" while {rule.unless[0]} is below {rule.unless[1]:g}" if rule.unless else ""
    return f"red {' or '.join(texts)}{more}"


def of_problems(train: ProblemSet, held_out: Sequence[ProblemSet], compared: bool) -> list[Finding]:
    """What is wrong with the problems, before the first step.

    Args:
      compared: whether a builtin reward compares their answers.
    """
    found = []
    known = {_words(problem) for problem in train.problems}
    shared = [(sum(_words(p) in known for p in each.problems), each) for each in held_out]
    if any(n for n, _ in shared):
        sets = ", ".join(f"{n:,} of {len(s.problems):,} of {s.name}" for n, s in shared if n)
        text = (
            f"held-out problems that are training problems too: {sets}. Their accuracy is memory, "
            "not skill. Change data.suites, or take them out of data.train."
        )
        found.append(Finding("held-out is trained on", text))
    for each in (train, *held_out) if compared else ():
        bad = [p for p in each.problems if p.answers and not can_match(p.answers, each.form)]
        if bad:
            text = (
                f"{len(bad):,} of {len(each.problems):,} answers of {each.name} cannot equal any "
                f"response: {bad[0].id} has {_cut(str(bad[0].answers[0]))!r}. Change `answer` in "
                f"the file to what should stand {FORMS[each.form][0]}, or to a list of such texts."
            )
            found.append(Finding("answers cannot match", text))
    return found


def can_match(answers: Sequence[Answer], form: str) -> bool:
    """False where each gold is a list or an object as text, a whole solution, or unbalanced; behind
    "####" where it is no number."""
    return form == "reasoning_gym" or any(_is_answer(answer, form) for answer in answers)


def _is_answer(answer: Answer, form: str) -> bool:
    text = str(answer).strip()
    if form == "hash":
        return re.fullmatch(r"-?[0-9.,]+", text) is not None
    if len(text) > _LONGEST_ANSWER or "####" in text or text.count("{") != text.count("}"):
        return False
    try:
        value = ast.literal_eval(text) if text[:1] in "[{(" else None
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return True
    parts = value if isinstance(value, list | tuple | set) else ()
    return not isinstance(value, dict) and not any(isinstance(part, str) for part in parts)


def _words(problem: Problem) -> str:
    return " ".join(problem.problem.split())


def _mean(values: Iterable[float]) -> float:
    known = list(values)
    return math.fsum(known) / len(known)


def _told(row: Mapping[str, Any]) -> str:
    verdict = row.get("verdict") or f"reward {row.get('reward')}"
    problem, response = str(row.get("problem", "")), str(row.get("response", ""))
    return f"to {_cut(problem)!r}: ...{response[-80:]!r} ({verdict})"


def _cut(text: str, most: int = 60) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."
