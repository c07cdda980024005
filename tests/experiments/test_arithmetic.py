"""The shipped base, its problem files, and the program that makes them."""

import pathlib

import jax
import numpy as np
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from experiments.arithmetic import make_base, task
from math_grader import grade
from remix_jax.data.problems import load_problems
from remix_jax.models import hf_tokenizer, huggingface
from remix_jax.rewards import builtins

SHIPPED = pathlib.Path(make_base.__file__).resolve().parent
BASE, PROBLEMS = SHIPPED / "base", SHIPPED / "problems"
SEED = 0  # of what is shipped
SUITES = [f"chain{n}" for n in task.SUITES]


def chain_of(text: str) -> task.Chain:
    first, *operations, _ = [word for word in text.split() if word != task.UNUSED]
    pairs = ((task.SIGNS.index(word[0]), int(word[1:])) for word in operations)
    return task.Chain(int(first), tuple(pairs))


@pytest.fixture(scope="module")
def chains() -> dict[str, list[task.Chain]]:
    """The shipped chains by file, their answers checked."""
    sets = {}
    for path in PROBLEMS.glob("*.jsonl"):
        rows = load_problems(path)
        sets[path.stem] = [chain_of(row.problem) for row in rows]
        values = [(str(chain.values()[-1]),) for chain in sets[path.stem]]
        assert [row.answers for row in rows] == values
    return sets


def test_running_values_wrap_modulo_20():
    chain = task.Chain(17, ((0, 3), (1, 5), (1, 9), (1, 9)))
    assert chain.values() == [0, 15, 6, 17]
    assert chain_of(chain.text()) == chain


def test_misconceptions_are_dealt_evenly():
    for seed in range(5):
        rules = task.make_rules(seed)
        dealt = sorted(p for row in rules.error_probability for p in row)
        assert dealt == sorted(task.ERROR_PROBABILITIES * 4)
        assert {offset for row in rules.offset for offset in row} == set(task.OFFSETS)
    assert task.make_rules(0) != task.make_rules(1)


def test_problem_files_are_made_again_byte_for_byte(tmp_path):
    task.write_problems(task.make_problems(task.make_rules(SEED), SEED), tmp_path)
    shipped = {path.name: path.read_bytes() for path in PROBLEMS.iterdir()}
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == shipped


def test_sets_are_disjoint_and_of_their_lengths(chains):
    sizes = {name: len(set(rows)) for name, rows in chains.items()}
    suites = dict.fromkeys(SUITES, task.SUITE_ROWS)
    names = ("hard_train", "hard_test", "hard_validation")
    hard = dict.fromkeys(names, task.HARD_ROWS) | {"middle": task.SUITE_ROWS}
    chosen_by = {"validation": task.VALIDATION_ROWS}
    assert sizes == {"train": task.TRAIN_ROWS, **chosen_by, **suites, **hard}
    assert len(set().union(*chains.values())) == sum(sizes.values())
    lengths = {name: {len(c.operations) for c in rows} for name, rows in chains.items()}
    assert lengths["train"] == {3, 4, 5, 6}
    assert [lengths[name] for name in SUITES] == [{3}, {4}, {5}, {6}, {7}]
    assert all(lengths[name] == {12, 13, 14} for name in names)
    assert lengths["middle"] == {7, 8, 9, 10}


def test_hard_chains_are_rarely_worked_out_right(chains):
    rules, (low, high) = task.make_rules(SEED), task.HARD_PROBABILITY
    probability = [
        rules.solution_probability(c)
        for c in chains["hard_train"] + chains["hard_test"] + chains["hard_validation"]
    ]
    assert low <= min(probability)
    assert max(probability) <= high


def test_what_is_shipped_is_small():
    for folder in (BASE, PROBLEMS):
        assert sum(path.stat().st_size for path in folder.iterdir()) < 2_000_000


def test_tokenizer_is_made_again_byte_for_byte(tmp_path):
    task.write_tokenizer(tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (BASE / path.name).read_bytes(), path.name


@pytest.mark.parametrize("kind", [AutoTokenizer, PreTrainedTokenizerFast])
def test_both_ways_to_load_the_tokenizer_agree(kind):
    tokenizer = kind.from_pretrained(BASE)
    ids = list(range(len(task.WORDS)))
    assert tokenizer.encode(tokenizer.decode(ids)) == ids
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (
        task.ID["<|end|>"],
        task.ID["<|pad|>"],
    )
    chain = task.Chain(17, ((0, 3), (1, 5)))
    messages = [
        {"role": "user", "content": chain.text()},
        {"role": "assistant", "content": task.solution_text(chain.values())},
    ]
    words = ["<|user|>", *chain.text().split(), "<|assistant|>"]
    prompt = [task.ID[word] for word in words]
    assert len(prompt) == task.PROMPT_TOKENS
    asked = tokenizer.apply_chat_template(
        messages[:1], add_generation_prompt=True, return_dict=False
    )
    assert asked == prompt
    words = [*task.solution_text(chain.values()).split(), "<|end|>"]
    answered = tokenizer.apply_chat_template(messages, return_dict=False)
    assert answered == prompt + [task.ID[word] for word in words]
    with pytest.raises(Exception, match="roles user and assistant"):
        tokenizer.apply_chat_template([{"role": "system", "content": "1"}])


def test_worked_solutions_follow_the_rules():
    """Teaching rows are what chat template and tokenizer make of chain and solution."""
    rules = task.make_rules(SEED)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(BASE)
    tokens_BS, mask_BS = make_base.worked_solutions(rules, jax.random.key(1), 64, task.LONG)
    errors = np.zeros((2, 10, 2), int)  # [sign, digit]: how often right, how often wrong
    for tokens, mask in zip(np.asarray(tokens_BS), np.asarray(mask_BS), strict=True):
        assert tokens[mask][-1] == task.ID["<|end|>"]
        text = tokenizer.decode(tokens[task.PROMPT_TOKENS :][mask[task.PROMPT_TOKENS :]][:-1])
        prompt = tokenizer.decode(tokens[: task.PROMPT_TOKENS])
        chain = chain_of(prompt.removeprefix("<|user|>").removesuffix("<|assistant|>"))
        assert builtins.think_format(prompt, text.strip()) == 1
        values = [int(word) for word in text.split()[1 : 1 + len(chain.operations)]]
        assert text.strip() == task.solution_text(values)
        for before, after, (sign, digit) in zip(
            [chain.first, *values], values, chain.operations, strict=False
        ):
            change = (after - before - (digit, -digit)[sign]) % task.MODULUS
            assert change in (0, rules.offset[sign][digit])
            errors[sign, digit, int(change > 0)] += 1
    probability = np.array(rules.error_probability)
    assert (errors[probability == 0][:, 1] == 0).all()
    observed = errors[..., 1] / errors.sum(-1)
    # 64 chains of about 10 operations: some 32 draws for each pair, four standard errors.
    np.testing.assert_allclose(observed, probability, atol=0.36)


def test_training_gives_the_same_bytes_again(tmp_path, monkeypatch):
    monkeypatch.setattr(make_base, "ROWS", {task.EASY: 8, task.LONG: 4})
    rules = task.make_rules(1)
    for name in ("a", "b"):
        make_base.save_base(make_base.train_base(rules, seed=1, steps=30), tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_shipped_base_meets_the_gate(chains):
    """pass@1 on easy chains in [.18, .32], two standard errors of 64 chains allowed."""
    easy = [chain for n in (3, 4, 5, 6) for chain in chains[f"chain{n}"][:16]]
    correct = make_base.count_correct(BASE, easy, samples=8, seed=0)
    assert 0.18 - 0.06 <= correct.mean() / 8 <= 0.32 + 0.06
    by_length = correct.reshape(4, -1).mean(axis=1)
    assert by_length[0] > by_length[3]


def test_base_loads_with_its_end_and_padding_tokens():
    model, params = huggingface.load(BASE)
    vocabulary = hf_tokenizer.load_vocabulary(BASE)
    assert model.config.architecture == "qwen2"
    assert model.config.vocab_size >= len(task.WORDS) == len(vocabulary.tokenizer)
    assert vocabulary.eos_ids == (task.ID["<|end|>"],)
    assert 90_000 < sum(np.size(leaf) for leaf in _leaves(params)) < 500_000


def test_right_working_is_more_than_a_right_answer():
    """Two mistakes that cancel: 2 +3 +4 by 6 and 9 instead of 5 and 9."""
    problem = task.Chain(2, ((0, 3), (0, 4))).text()
    assert task.right_working(problem, " <think> 5 9 </think> \\boxed{ 9 }")
    for wrong in ("<think> 6 9 </think> \\boxed{ 9 }", "<think> 9 </think> \\boxed{ 9 }", ""):
        assert not task.right_working(problem, wrong)
    chain = task.Chain(3, ((1, 9), (0, 0), (1, 5)))
    assert task.right_working(chain.text(), task.solution_text(chain.values()))


def test_a_right_solution_is_graded_right():
    chain = task.Chain(3, ((1, 9), (0, 0)))
    assert grade(task.solution_text(chain.values()), "14").correct


def _leaves(tree):
    return [leaf for x in tree.values() for leaf in (_leaves(x) if isinstance(x, dict) else [x])]
