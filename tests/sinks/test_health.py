"""What a run says is wrong with it: each rule on a record that breaks it, none on a healthy one."""

import contextlib
import dataclasses
import math
import pathlib

import pytest

from remix_jax.data.problems import Problem
from remix_jax.data.tasks import ProblemSet
from remix_jax.sinks import health
from remix_jax.sinks.metrics import FILES, Record, cut, read_metrics
from tests.sinks.step_figures import step

DOCS = pathlib.Path(__file__).resolve().parent.parent.parent / "docs"
HEALTHY = {"zero_variance": 0.3, "token_mult_prob_error": 1.001, "n_fresh": 77, "n_replayed": 51}
SAMPLES = [
    {"problem": "1 + 1 =", "response": "so \\boxed{2}", "answer": "2", "verdict": "match"},
    {"problem": "2 + 2 =", "response": "well, let me", "answer": None, "verdict": "no-box",
     "truncated": True},
    {"problem": "held", "response": "out", "held_out": "chain3", "truncated": True},
]  # fmt: skip
BROKEN = {  # what is broken, in every step or in one -> a part of the line
    "no signal": ({"zero_variance": 1.0}, "zero_variance 1 (red above 0.9)"),
    "no answer found": ({"format_rate": 0.0}, "'2 + 2 =': ...'well, let me' (no-box)"),
    "truncated": ({"truncated_rate": 0.25}, "Change data.response_tokens"),
    "few tokens count": ({"ess": 0.41}, "ess 0.41"),
    "ratio drifts": ({"ratio_mean": 1.2}, "red below 0.9 or above 1.1"),
    "ratio explodes": ({"ratio_max": 140.0}, "ratio_max 140"),
    "clipped": ({"clip_share": 0.21}, "clip_share 0.21"),
    "entropy collapse": ({"entropy": 0.01}, "0.032 of the first step's"),
    "sampler and trainer differ": ({"token_mult_prob_error": 1.2}, "model.compute_dtype"),
}


def told(records, last=40, history=()):
    """(step, rule, whether it is new, text) of all that a run says."""
    found = []
    watch = health.Health(history, last, lambda at, f, new: found.append((at, *f, new)))
    for record in records:
        figures = dict(record)
        watch.samples(figures["step"], SAMPLES)
        watch.write(figures.pop("step"), figures)
    return [(at, rule, new, text) for at, rule, text, new in found]


def test_a_run_that_learns_says_nothing():
    assert told([{"step": 0, "eval/mean": 0.1}, *(step(k, **HEALTHY) for k in range(1, 41))]) == []


@pytest.mark.parametrize("rule", health.RULES)
def test_each_rule_holds_where_its_line_is_crossed(rule):
    figures, part = BROKEN[rule]
    worst = health.RULES[rule].worst
    run = [step(k, **HEALTHY) for k in range(1, 21)]
    for record in run[4:5] if worst else run[1:10]:
        record |= figures
    ((at, name, new, text),) = told(run)
    assert (at, name, new) == (10, rule, True)
    assert part in text
    when = "step 5: " if worst else "step 2 to 10: "
    assert text.startswith(when), text
    assert ("red in 1 of the last 9 steps" in text) == worst


def test_a_short_spell_of_what_counts_by_its_mean_is_no_finding():
    run = [step(k, **HEALTHY) for k in range(1, 11)]
    run[4]["truncated_rate"] = run[5]["zero_variance"] = 1.0
    assert told(run) == []


def test_step_1_and_the_last_step_are_checked_and_what_lasts_is_new_once():
    run = [step(k, **HEALTHY | {"truncated_rate": 0.6}) for k in range(1, 13)]
    found = told(run, last=12)
    assert [(at, rule, new) for at, rule, new, _ in found] == [
        (1, "truncated", True), (10, "truncated", False), (12, "truncated", False),
    ]  # fmt: skip
    again = told(run[6:], last=12, history=run[:6])
    assert [each[::3] for each in again] == [each[::3] for each in found[1:]]


def test_a_run_that_continues_writes_what_an_unbroken_one_writes(tmp_path):
    """Killed in step 19, it goes on from the checkpoint of step 14: within a window."""
    run = [
        step(k, **HEALTHY | {"truncated_rate": 0.6, "ess": 0.3 + 0.05 * k}) for k in range(1, 31)
    ]

    def write(directory, records):
        with contextlib.closing(Record(directory)) as record:
            watch = health.Health(
                read_metrics(directory), 30, lambda at, f, _: record.warning(at, *f)
            )
            for figures in map(dict, records):
                at = figures.pop("step")
                for sink in (record, watch):
                    sink.samples(at, SAMPLES)
                    sink.write(at, figures)

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    write(whole, run)
    write(broken, run[:19])
    assert cut(broken, 14) is None
    write(broken, run[14:])
    for name in FILES:
        assert (broken / name).read_bytes() == (whole / name).read_bytes()
    assert len((whole / "warnings.jsonl").read_text().splitlines()) == 6


def test_entropy_may_fall_where_the_policy_is_right():
    run = [step(k, **HEALTHY, entropy=0.5 / k**2, accuracy=0.9) for k in range(1, 11)]
    assert told(run) == []
    for record in run:
        del record["accuracy"]
    assert [rule for _, rule, *_ in told(run)] == ["entropy collapse"]


def test_a_figure_that_is_not_finite_is_red():
    assert health.is_red("ess", math.nan)
    assert not health.is_red("ess", 0.9)
    assert not health.is_red("entropy", 0.0), "red by the first step's alone"
    run = [step(1, **HEALTHY, ess=math.nan)]
    assert [rule for _, rule, *_ in told(run)] == ["few tokens count"]


def test_figures_of_an_experts_rows_alone_are_not_the_policys():
    figures = {"ess": 0.0, "ratio_mean": 0.0, "entropy": 0.0, "n_fresh": 0, "n_replayed": 0}
    assert told([{"step": 1} | figures]) == []


def problem_set(*answers, name="train", form="boxed", text="p"):
    problems = [Problem(f"{text}{i}", (answer,), f"{name}-{i}") for i, answer in enumerate(answers)]
    return ProblemSet(name, problems, [[1]] * len(problems), 0, form=form)


@pytest.mark.parametrize(
    "answer",
    [
        "['42', '41']",
        "{'value': 3}",
        "('a', 'b')",
        "\\frac{1}{2",
        "Half of 48 is 24.\n#### 24",
        "So it is seven. " * 20,
    ],
)
def test_answers_that_no_response_can_equal(answer):
    train = problem_set("1/2", answer)
    (finding,) = health.of_problems(train, [], compared=True)
    assert finding.rule == "answers cannot match"
    assert finding.text.startswith("1 of 2 answers of train cannot equal any response: train-1")
    assert health.of_problems(train, [], compared=False) == [], "a reward of one's own may"
    either = dataclasses.replace(train.problems[1], answers=(answer, "42"))
    assert health.of_problems(train._replace(problems=[either]), [], compared=True) == []


def test_answers_that_can_be_matched():
    good = ("1/2", 3.5, "[1, 2]", "(0, \\infty)", "\\{1, 2\\}", "(1, 2, 3)", "[0, 1)", "x^{2}")
    assert health.of_problems(problem_set(*good), [], compared=True) == []
    assert health.of_problems(problem_set("1,200", "-3", form="hash"), [], compared=True) == []
    (finding,) = health.of_problems(problem_set("1/2", form="hash"), [], compared=True)
    assert "a number after ####" in finding.text
    gym = problem_set("['a']", form="reasoning_gym")
    assert health.of_problems(gym, [], compared=True) == []


def test_held_out_problems_that_are_trained_on():
    train = problem_set(1, 2, 3, text="p ")
    own, other = problem_set(1, 2, name="own", text="p  "), problem_set(1, name="other", text="q")
    (finding,) = health.of_problems(train, [own, other], compared=True)
    assert finding.rule == "held-out is trained on"
    assert "training problems too: 2 of 2 of own. " in finding.text
    assert health.of_problems(train, [other], compared=True) == []


def test_the_page_lists_the_rules():
    page = (DOCS / "metrics.md").read_text()
    for name, rule in health.RULES.items():
        over = "worst" if rule.worst else "mean"
        assert f"| {name} | `{rule.metric}` | {over} | {health.limits(rule)} |\n" in page
        assert f"`{rule.metric}`" in page.partition("## Is it learning?")[2], "explained"
