"""Functions of a config: called as their own libraries call them, weighted, isolated, counted."""

import json
import re
import subprocess
import sys

import pytest

from remix_jax import rewards
from remix_jax.config import Config, Reward
from remix_jax.data.problems import Problem
from remix_jax.errors import InputError
from remix_jax.rewards import Item, Score, Scorer

OWN = "tests/rewards/own.py"
PROBLEM = Problem("q", ("5",), "p", {"target": 4, "answer": "5"})


@pytest.fixture(autouse=True)
def root(monkeypatch, pytestconfig):
    monkeypatch.chdir(pytestconfig.rootpath)


def item(completion, problem=PROBLEM, form="boxed", ids=(1, 2, 3)):
    return Item(problem, "prompt", completion, ids, True, form)


def test_trl_functions_get_lists_by_keyword():
    """Several batches; columns; options; coroutines; a module in place of a file."""
    specs = ("length", "near", "scaled?factor=0.5", "later")
    scorer = Scorer((*(f"{OWN}:{spec}" for spec in specs), "tests.rewards.own:length"))
    for n, score in enumerate(scorer([item("x" * n) for n in range(40)])):
        assert list(score.parts.values()) == [n, -abs(n - 4), 0.5 * n, 0.5, n]
    assert list(score.parts) == ["length", "near", "scaled", "later", "length_2"]


def test_prompts_of_chat_messages_get_completions_of_messages():
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    chat = Problem("q", ("5",), "p", {"prompt": messages})
    assert Scorer((f"{OWN}:chat",))([item("xxx", chat)])[0].reward == 3.0


def test_verls_functions_get_one_response():
    row = {
        "data_source": "openai/gsm8k",
        "reward_model": {"ground_truth": "18", "style": "rule"},
        "extra_info": {"index": 3},
    }
    problem = Problem("q", ("18",), "p", row)
    scorer = Scorer((f"{OWN}:compute_score", f"{OWN}:compute_score_dict"))
    right, wrong = scorer([item("it is 18", problem), item("it is 17", problem)])
    assert right == Score(
        0.0, True, {"compute_score": 1.0, "compute_score_dict": -1.0}, None, "match", {}
    )
    assert (wrong.reward, wrong.correct, wrong.reason) == (0.1 - 1.0, False, "wrong")
    only = Scorer((f"{OWN}:compute_score_dict",))([item("it is 18", problem)])[0]
    assert (only.correct, only.answer) == (True, "8")


def test_reasoning_gyms_functions_get_the_tagged_answer_and_the_row():
    scorer = Scorer((f"{OWN}:score_answer",))
    texts = ("<answer>4</answer> <answer> 5 </answer>", "<answer>6</answer>", "5")
    found = scorer([item(text) for text in texts])
    assert [(s.reward, s.correct, s.answer) for s in found] == [
        (1.0, True, "5"), (0.01, False, "6"), (0.01, False, None)
    ]  # fmt: skip
    assert rewards.metrics(found)["format_rate"] == 2 / 3


def test_reasoning_gyms_tasks_are_scored_by_their_own_function():
    gym = pytest.importorskip("reasoning_gym")
    entry = gym.create_dataset("chain_sum", size=1, seed=1)[0]
    problem = Problem(entry["question"], (entry["answer"],), "p", json.loads(json.dumps(entry)))
    texts = (f"<answer>{entry['answer']}</answer>", f"<answer>{entry['answer']}0</answer>", "?")
    found = Scorer()([item(text, problem, "reasoning_gym") for text in texts])
    own = gym.get_score_answer_fn("chain_sum")
    answers = (entry["answer"], entry["answer"] + "0", None)
    assert [s.reward for s in found] == [own(answer, entry) for answer in answers]
    assert [s.correct for s in found] == [True, False, False]


BAD = ["hang", "sleep", "raise", "die", "exit", "grow", "nan", "inf", "huge", "text", "short"]


def test_a_bad_item_costs_itself_alone():
    """Between good ones, in one batch and over several; the run goes on."""
    scorer = Scorer((f"{OWN}:bad", f"{OWN}:length"), (1.0, 10.0), seconds=0.3)
    texts = [text for evil in BAD for text in ("fine", evil, "print")] + ["fine"] * 30
    found = scorer([item(text) for text in texts])
    for text, score in zip(texts, found, strict=True):
        failed = text in BAD
        assert (score.parts["bad"], "bad" in score.errors) == (0.0 if failed else 1.0, failed), text
        assert score.reward == pytest.approx((0 if failed else 1) + 10 * len(text))
        assert score.correct is None
    said = {text: score.errors.get("bad", "") for text, score in zip(texts, found, strict=True)}
    assert (
        said["hang"]
        == said["sleep"]
        == "TimeoutError: took more than 0.3 s (config.reward.seconds)"
    )
    assert re.search(r"own\.py:\d+: ValueError: a bad one and more$", said["raise"])
    assert re.search(r"own\.py:\d+: SystemExit: 3$", said["exit"])
    assert said["die"] == "its process died"
    assert said["grow"] == "MemoryError"
    assert said["nan"] == "returned nan; expected a finite float or None"
    assert said["short"].endswith("returned 0 rewards for 1 completions")
    assert rewards.metrics(found)["reward_errors/bad"] == len(BAD)
    assert rewards.metrics(scorer([item("fine")])).keys() == {
        "reward",
        "reward/bad",
        "reward/length",
    }


def test_slow_batches_get_smaller_instead_of_failing():
    scorer = Scorer((f"{OWN}:sleeps",), seconds=0.5)
    found = scorer([item("x")] * 16)
    assert [s.reward for s in found] == [1.0] * 16
    assert not any(s.errors for s in found)
    assert scorer._functions[0].call._size == 8


def test_weights_and_what_does_not_apply():
    scorer = Scorer(("math", f"{OWN}:half", "overlong?max=4&buffer=2"), (1.0, 0.5, 2.0))
    found = scorer([item("a \\boxed{5}"), item("\\boxed{5}"), item("\\boxed{4}")])
    assert [s.reward for s in found] == [1 + 0.5 - 1, 1 - 1, -1.0]
    assert found[1].parts == {"math": 1.0, "half": None, "overlong": -0.5}
    figures = rewards.metrics(found)
    assert figures["reward/half"] == 1.0  # over the row where it applied
    assert figures["reward/math"] == figures["accuracy"] == 2 / 3
    assert figures["reward"] == pytest.approx((0.5 + 0 - 1) / 3)
    nothing = Scorer((f"{OWN}:half",))([item("x")])[0]
    assert (nothing.reward, nothing.errors) == (
        0.0,
        {"none": "no function applies: its reward is 0"},
    )


def test_accuracy_is_of_the_first_function_that_says_what_is_correct():
    texts = ["right", "\\boxed{5}", "right \\boxed{5}"]
    for specs, expected in (
        ((f"{OWN}:length", f"{OWN}:says", "math"), [True, False, True]),
        ((f"{OWN}:length", "math", f"{OWN}:says"), [False, True, True]),
        ((f"{OWN}:length", "think_format"), [None] * 3),
    ):
        found = Scorer(specs)([item(text) for text in texts])
        assert [s.correct for s in found] == expected
    assert "accuracy" not in rewards.metrics(found)
    assert "format_rate" not in rewards.metrics(found)


def test_a_set_is_scored_by_the_form_of_its_answers():
    """Sets of several forms in one batch."""
    found = Scorer()([item("\\boxed{5}"), item("#### 5", form="hash"), item("5")])
    assert [s.parts for s in found] == [{"math": 1.0}, {"gsm8k": 1.0}, {"math": 0.0}]
    assert [s.reason for s in found] == ["match", "match", "no-box"]


def test_scores_go_through_json():
    for score in Scorer(("math", f"{OWN}:half"))([item("a"), item("\\boxed{5}")]):
        assert Score(*json.loads(json.dumps(score))) == score


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("maths", "expected path/to/file.py:function or package.module:function"),
        ("overlong?length=3", "its options are max, buffer"),
        ("overlong?max=3&buffer=4", "expected 0 < buffer <= max"),
        ("repetition?n=0", "expected n of 1 or more"),
        ("gsm8k?method=lenient", "strict or flexible"),
        ("repetition?n=many", "expected n of 1 or more"),
        ("math?x=1", "its options are none"),
        (f"{OWN}:none", "has no none; its functions: length"),
        (f"{OWN}:scaled?fact=1", "takes no option fact; it has factor"),
    ],
)
def test_what_is_no_function_is_refused_at_once(spec, said):
    with pytest.raises(InputError, match=said.replace("?", r"\?")) as error:
        Scorer((spec,))
    assert "\n" not in str(error.value)


def test_columns_that_are_not_there_are_refused_at_once():
    Scorer((f"{OWN}:near", f"{OWN}:compute_score", "math")).check([PROBLEM])
    with pytest.raises(InputError, match=r"takes 'target', which is no column .* there are answer"):
        Scorer((f"{OWN}:near",)).check([Problem("q", ("5",), "p", {"answer": "5"})])


def test_the_identity_changes_with_the_code_and_the_config(tmp_path):
    file = tmp_path / "mine.py"
    seen = []
    for code, weight in (("1.0", 1.0), ("1.0", 2.0), ("2.0", 1.0)):
        file.write_text(f"def f(completions): return [{code} for _ in completions]\n")
        sys.modules.pop(next((m for m in sys.modules if m.startswith("mine_")), ""), None)
        config = Config(reward=Reward((f"{file}:f", "math"), (weight, 1.0)))
        seen.append(json.dumps(Scorer.of(config).identity()))
    assert len(set(seen)) == 3
    assert Scorer().identity() == []


def test_workers_import_no_jax():
    code = "import sys; from remix_jax.rewards import functions; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
