"""Responses of a step for people: which ones, the numbers of their tokens, replayed ones."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.arithmetic import task
from experiments.configs import arithmetic_remix_ppo
from remix_jax.data.problems import Problem
from remix_jax.data.tasks import ProblemSet
from remix_jax.learner.step import SHOWN, SHOWN_REPLAYED
from remix_jax.models.hf_tokenizer import load_vocabulary
from remix_jax.models.sampling import Sampled
from remix_jax.rewards import Scorer
from remix_jax.rollout import rollouts
from remix_jax.rollout.draws import Draw
from tests import bpe_models

P, T = 4, 6
PROMPT = [task.ID[task.USER], 17, task.ID[task.ASSISTANT]]


@pytest.fixture(scope="module")
def vocabulary():
    return load_vocabulary(arithmetic_remix_ppo.get_config().model.path)


def test_the_texts_of_tokens_are_the_response(tmp_path, vocabulary):
    text = "Find $\\frac{1}{2}$ ≤ ü\u2028 🙂 and  12."
    found = load_vocabulary(str(bpe_models.write_model(tmp_path / "model", ["Find $x$ and 12."])))
    ids = found.tokenizer(text)["input_ids"]
    texts = rollouts.token_texts(found, ids)
    assert len(texts) == len(ids)
    assert "".join(texts) == text
    assert "🙂" in texts, "four bytes, four tokens"
    ids = [task.ID[word] for word in ("4", "7", "\\boxed{", "7", "}")]
    texts = rollouts.token_texts(vocabulary, ids)
    assert "".join(texts) == vocabulary.tokenizer.decode(ids)


def test_best_and_worst_come_first_and_then_one_of_each_group(vocabulary):
    endings = ["\\boxed{ 7 } <|end|>", "\\boxed{ 8 } <|end|>", "7"]
    said = [1, 2, 1, 0, 2, 1]  # rewards 0 0 0 1 0 0: groups of 2
    tokens_BS = np.full((6, P + T), vocabulary.pad_id, np.int32)
    lengths = []
    for row, i in zip(tokens_BS, said, strict=True):
        ids = [task.ID[word] for word in endings[i].split()]
        row[1:P], row[P : P + len(ids)] = PROMPT, ids
        lengths.append(len(ids))
    zeros_BT, ended = jnp.zeros((6, T)), jnp.array(said) != 2
    parts = jnp.asarray(tokens_BS), jnp.full(6, 3), jnp.asarray(lengths)
    sampled = Sampled(*parts, zeros_BT, zeros_BT, zeros_BT, ended, T)
    problems = [Problem(f"p{i}", ("7",), f"p{i}") for i in range(3)]
    draw = Draw(problems, [PROMPT] * 3, [None] * 3, 0)
    graded = rollouts.grade_rollouts(sampled, draw, vocabulary, 2, Scorer(), shown=4)
    assert graded.shown == [3, 0, 2, 4]
    assert [line["problem_id"] for line in graded.samples] == ["p1", "p0", "p1", "p2"]
    assert [line["reward"] for line in graded.samples] == [1, 0, 0, 0]
    assert [line["truncated"] for line in graded.samples] == [False, False, False, True]
    whole = rollouts.grade_rollouts(sampled, draw, vocabulary, 2, Scorer())
    assert whole.shown == list(range(6))


def shown_rows(vocabulary):
    """Of the learner: 16 fresh rows; one replayed, two that are none, one of other problems."""
    K = SHOWN + SHOWN_REPLAYED
    rng, end = np.random.default_rng(0), vocabulary.eos_ids[0]
    tokens_KS = np.full((K, P + T), vocabulary.pad_id, np.int32)
    tokens_KS[:, 1:P], tokens_KS[:, P:] = PROMPT, 5
    tokens_KS[:, P + 2], tokens_KS[-1, 2] = end, 18
    age_K = np.zeros(K, np.int32)
    age_K[SHOWN:] = 2, 0, -1, 1
    numbers = {f"{name}_KT": rng.uniform(0.5, 1.5, (K, T)) for name in rollouts._OF_TOKENS}
    return numbers | {
        "tokens_KS": tokens_KS,
        "age_K": age_K,
        "prompt_len_K": np.full(K, 3),
        "response_len_K": np.full(K, 3),
        "reward_K": np.linspace(0, 1, K),
        "success_K": np.arange(K) % 2 == 0,
    }


def test_tokens_have_their_numbers_and_replayed_rows_their_problem(vocabulary):
    shown = shown_rows(vocabulary)
    problem = Problem("17 +3 =", ("20",), "t0")
    train = ProblemSet("train", [problem], [PROMPT], 0)
    given = [{"problem_id": f"s{k}"} for k in range(18)]
    lines = rollouts.with_tokens(given, shown, train, vocabulary)
    assert [line["problem_id"] for line in lines] == [f"s{k}" for k in range(18)] + ["t0"]
    assert given[0] == {"problem_id": "s0"}, "left as it was"
    assert "tokens" not in lines[16], "more than the learner looked at"
    assert lines[1]["age"] == 0
    assert lines[1]["mean_ratio"] == pytest.approx(shown["ratio_KT"][1, :3].mean())
    assert lines[1]["tokens"]["entropy"] == np.round(shown["entropy_KT"][1, :3], 3).tolist()
    assert lines[1]["tokens"]["text"] == rollouts.token_texts(
        vocabulary, [5, 5, vocabulary.eos_ids[0]]
    )
    old = lines[-1]
    assert old["age"] == 2
    assert old["reward"] == pytest.approx(shown["reward_K"][SHOWN])
    assert (old["answers"], old["truncated"], old["response_length"]) == (("20",), False, 3)
    assert old["prompt"] == vocabulary.tokenizer.decode(PROMPT)


def test_tokens_are_written_within_a_budget_first_of_what_matters(vocabulary, monkeypatch):
    monkeypatch.setattr(rollouts, "_SHOWN_TOKENS", 10)
    train = ProblemSet("train", [Problem("17", ("20",), "t0")], [PROMPT], 0)
    given = [{"problem_id": f"s{k}"} for k in range(5)]
    lines = rollouts.with_tokens(given, shown_rows(vocabulary), train, vocabulary)
    assert [line["problem_id"] for line in lines if "tokens" in line] == ["s0", "s1", "t0"]
    monkeypatch.setattr(rollouts, "_SHOWN_TOKENS", 2)
    lines = rollouts.with_tokens(given, shown_rows(vocabulary), train, vocabulary)
    assert [line["problem_id"] for line in lines if "tokens" in line] == ["s0"], "one at least"
