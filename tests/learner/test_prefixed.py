"""PrefixRL in the learner: what the prefix may touch, what is drawn, what is graded."""

import dataclasses
import json
import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.arithmetic import task
from experiments.configs import arithmetic_prefix_reinforce
from remix_jax import config_rules
from remix_jax.data import traces
from remix_jax.data.problems import Problem
from remix_jax.data.tasks import ProblemSet
from remix_jax.data.traces import Bank, Trace
from remix_jax.errors import InputError
from remix_jax.learner import losses
from remix_jax.models import packing
from remix_jax.models.hf_tokenizer import load_vocabulary
from remix_jax.models.sampling import Sampled
from remix_jax.rewards import Scorer
from remix_jax.rollout import draws
from remix_jax.rollout.draws import Draw, Prefix
from remix_jax.rollout.rollouts import grade_rollouts, prefix_metrics, prompt_batch
from remix_jax.types import batch_of, kept_rows, positions, token_mask
from tests.learner.tiny import POLICY, P, T, fresh_rows, grouped, score, start

BASE = str(pathlib.Path(task.__file__).parent / "base")


@pytest.fixture(scope="module")
def vocabulary():
    return load_vocabulary(BASE)


def ids_of(text: str) -> list[int]:
    return [task.ID[word] for word in text.split()]


# Masking


def whole_row_loss(params, shift_BSV, config, rows, prefix_len_B, adv_BT):
    """The loss of prompt | prefix | suffix from logits of every slot, by an explicit mask.

    Token s of a row counts iff it lies behind prompt and prefix and before the end.
    """
    mask_BS = token_mask(rows)
    logits = POLICY.apply({"params": params}, rows.tokens_BS, positions(mask_BS), mask_BS)
    logp_BSV = jax.nn.log_softmax(logits + shift_BSV)
    # What slot s - 1 says of the token in slot s.
    tokens = rows.tokens_BS[:, 1:, None]
    logp_BS = jnp.take_along_axis(logp_BSV[:, :-1], tokens, axis=2)[..., 0]
    entropy_BS = -(jnp.exp(logp_BSV) * logp_BSV).sum(-1)[:, :-1]
    slot_S = np.arange(1, P + T)[None]
    end_B1 = P + np.asarray(rows.response_len_B)[:, None]
    begin_B1 = P - np.asarray(rows.prompt_len_B)[:, None]  # of the prompt
    prompt_end_B1 = begin_B1 + (np.asarray(rows.prompt_len_B) - prefix_len_B)[:, None]
    suffix_BS = (slot_S >= prompt_end_B1 + prefix_len_B[:, None]) & (slot_S < end_B1)

    def of_suffix(x_BS):
        return jnp.where(suffix_BS, x_BS, 0.0).sum()

    behav_BS, base_BS, adv_BS = (
        jnp.pad(x, ((0, 0), (P - 1, 0))) for x in (rows.behav_logp_BT, rows.base_logp_BT, adv_BT)
    )
    ratio_BS = jnp.exp(logp_BS - behav_BS)
    eps = config.objective.clip
    surrogate = -jnp.minimum(ratio_BS * adv_BS, jnp.clip(ratio_BS, 1 - eps, 1 + eps) * adv_BS)
    k3 = jnp.exp(base_BS - logp_BS) - (base_BS - logp_BS) - 1
    total = surrogate - config.objective.entropy_coef * entropy_BS + config.kl.coef * k3
    return of_suffix(total) / suffix_BS.sum()


def test_a_prefix_enters_loss_and_gradient_as_context_alone():
    config = grouped(kl__convex=False, mini_batch_size=8, micro_batch_size=8)
    learner, state = start(config)
    rows = kept_rows(fresh_rows(config, state, 1))
    rng = np.random.default_rng(0)
    rows = jax.tree.map(lambda x: x[:4], rows)
    rows = rows.replace(prompt_len_B=jnp.full_like(rows.prompt_len_B, P))
    now_BT = score(POLICY, state.params, rows, 1.0)
    noisy = [now_BT + jnp.asarray(rng.normal(0, 0.1, now_BT.shape)) for _ in range(2)]
    rows = rows.replace(behav_logp_BT=noisy[0], base_logp_BT=noisy[1])
    n = rows.valid_B.shape[0]
    prefix_len_B = rng.integers(1, P, n)
    adv_BT = jnp.asarray(rng.normal(size=(n, T)), jnp.float32)
    batch = batch_of(rows, adv_BT=adv_BT)
    terms, _ = losses.minibatch_terms(learner, state.params, batch, {})
    count = rows.response_len_B.sum().astype(jnp.float32)
    ours = jax.value_and_grad(
        lambda params: losses.policy_loss(
            params, learner, packing.alone(batch), batch, terms, 1.0, count, 1
        ),
        has_aux=True,
    )
    (loss, sums), grads = jax.jit(ours)(state.params)
    shift = jnp.zeros((n, P + T, POLICY.config.vocab_size))
    whole = jax.value_and_grad(
        lambda params, shift: whole_row_loss(params, shift, config, rows, prefix_len_B, adv_BT),
        argnums=(0, 1),
    )
    expected, (expected_grads, by_logit) = jax.jit(whole)(state.params, shift)
    assert float(loss) == pytest.approx(float(expected), rel=1e-4)
    chex.assert_trees_all_close(grads, expected_grads, atol=1e-4)
    assert float(sums["tokens_A"].sum()) == int(rows.response_len_B.sum())
    # Slot P - 1, the prefix's last token, speaks of the first token of the suffix.
    assert np.abs(by_logit[:, : P - 1]).max() == 0
    assert np.abs(by_logit[:, P - 1]).min(axis=1).max() > 0


# What is drawn

TRACE = "<think> 0 15 4 8 </think> \\boxed{ 8 } <|end|>"


def bank_of(problems, vocabulary, directory):
    """A bank with TRACE for every problem but the last."""
    made = [
        Trace(p.problem, p.answers, (1, 2), tuple(ids_of(TRACE)) if i < len(problems) - 1 else (),
              5, 10.0)
        for i, p in enumerate(problems)
    ]  # fmt: skip
    traces.save(Bank("m", "w", traces.fingerprint(vocabulary.tokenizer), {}, made), directory)


def make_config(directory, **changes):
    config = arithmetic_prefix_reinforce.get_config()
    config.batch_size = config.mini_batch_size = config.micro_batch_size = 28
    config.group_size, config.prefix.bank = 4, str(directory)
    config.prefix = dataclasses.replace(config.prefix, **changes)
    config_rules.validate(config)
    return config


@pytest.fixture
def train():
    problems = [Problem(f"{i} +1 =", (str(i + 1),), str(i)) for i in range(5)]
    return ProblemSet("train", problems, [[i] for i in range(5)], 0, ())


def test_prefixes_are_those_of_the_bank(train, vocabulary, tmp_path):
    bank_of(train.problems, vocabulary, tmp_path)
    config = make_config(tmp_path, low=0.2, high=0.9, tokens=4)
    made = draws.load_prefixes(config, train, vocabulary)
    assert (made.traces, made.attempts, made.flops) == (4, 25, 50.0)
    assert {prefix.problem for prefix in made.items} == {0, 1, 2, 3}
    trace = ids_of(TRACE)
    for prefix in made.items:
        assert list(prefix.ids) == trace[: len(prefix.ids)]
        assert prefix.share == len(prefix.ids) / 10
        assert task.ID[task.BOX] not in prefix.ids, "a box shows the answer, open or closed"
        assert 2 <= len(prefix.ids) <= 4
    assert made.moved > 0
    assert made.too_long > 0
    assert len(made.items) + made.too_long + made.dropped == 3 * 4
    assert draws.load_prefixes(config, train, vocabulary) == made, "drawn once and kept"
    config.seed = 1
    assert draws.load_prefixes(config, train, vocabulary).items != made.items
    lines = draws.prefix_plan(config, made, len(train.problems))
    assert "cut earlier: they showed the answer" in lines["prefixes"]
    assert f"{made.too_long} over 4 tokens" in lines["prefixes"]


def test_steps_mix_three_to_one_exactly_and_every_prefix_comes_round(train, vocabulary, tmp_path):
    bank_of(train.problems, vocabulary, tmp_path)
    config = make_config(tmp_path)
    made = draws.load_prefixes(config, train, vocabulary)
    saved = draws.first_cursors(config, made) | {"totals": "kept"}
    drawn, counts = [], []
    for step in range(1, 9):  # seven groups a step
        draw, saved = draws.draw_problems(config, train, made, saved, step)
        drawn += [p for p in draw.prefixes if p is not None]
        counts.append(sum(p is not None for p in draw.prefixes))
        for problem, prompt, prefix in zip(*draw[:3], strict=True):
            place = train.problems.index(problem)
            assert prompt == [place, *(prefix.ids if prefix else ())]
            assert prefix is None or prefix.problem == place
    assert counts == [5, 5, 5, 6, 5, 5, 5, 6]
    whole = len(drawn) // len(made.items) * len(made.items)
    assert sorted(drawn[:whole]) == sorted(made.items * (whole // len(made.items)))
    assert saved["totals"] == "kept"
    json.dumps(saved)


def test_all_or_no_groups_may_be_prefixed(train, vocabulary, tmp_path):
    bank_of(train.problems, vocabulary, tmp_path)
    config = make_config(tmp_path, share=1.0)
    made = draws.load_prefixes(config, train, vocabulary)
    draw, _ = draws.draw_problems(config, train, made, draws.first_cursors(config, made), step=1)
    assert all(draw.prefixes)
    start = draws.first_cursors(config, None)
    draw, after = draws.draw_problems(config, train, None, start, step=1)
    assert not any(draw.prefixes)
    assert after["cursor"] == {"seed": 0, "epoch": 1, "position": 2}


def test_what_gives_no_prefix_is_one_line(train, vocabulary, tmp_path):
    bank_of(train.problems, vocabulary, tmp_path)
    with pytest.raises(InputError, match="gives no prefix of up to 3 tokens"):
        draws.load_prefixes(make_config(tmp_path, tokens=3), train, vocabulary)
    config = make_config(tmp_path)
    made = draws.load_prefixes(config, train, vocabulary)
    saved = draws.first_cursors(config, made)
    draws.check_continued(config, made, saved)
    with pytest.raises(InputError, match="gives other prefixes than the run to be continued"):
        draws.check_continued(config, made._replace(items=made.items[1:]), saved)


# What is graded


def test_grading_sees_prefix_and_response_and_two_cuts_are_two_groups(vocabulary):
    """One problem three times: with two cuts, and without a prefix. Two responses each."""
    problem = Problem("17 +3 -5 -11 +4 =", ("8",), "p")
    trace = ids_of(TRACE)
    cuts = [Prefix(0, tuple(trace[:n]), n / 10) for n in (3, 6)]
    endings = [trace[3:], ids_of("4 7 </think> \\boxed{ 7 } <|end|>"), trace[6:], trace[6:]]
    responses = [*endings, trace, trace[6:]]
    prompt = [task.ID[task.USER], 17, task.ID[task.ASSISTANT]]
    draw = Draw([problem] * 3, [prompt + list(c.ids) for c in cuts] + [prompt], [*cuts, None], 40)
    tokens, lengths = prompt_batch(draw.prompts, 3, 10, vocabulary.pad_id)
    tokens_BS = np.full((6, 20), vocabulary.pad_id, np.int32)
    tokens_BS[:, :10] = np.repeat(tokens, 2, axis=0)
    for row, response in zip(tokens_BS, responses, strict=True):
        row[10 : 10 + len(response)] = response
    zeros_BT = jnp.zeros((6, 10))
    sampled = Sampled(
        jnp.asarray(tokens_BS), jnp.asarray(np.repeat(lengths, 2)),
        jnp.asarray([len(r) for r in responses]), zeros_BT, zeros_BT, zeros_BT, jnp.ones(6, bool),
        10,
    )  # fmt: skip
    graded = grade_rollouts(sampled, draw, vocabulary, 2, Scorer())
    assert graded.rows.reward_B.tolist() == [1, 0, 1, 1, 1, 1]
    assert graded.rows.group_B.tolist() == [40, 40, 41, 41, 42, 42]
    assert graded.rows.prompt_len_B.tolist() == [6, 6, 9, 9, 3, 3]
    assert graded.metrics["format_rate"] == 1.0
    assert graded.metrics["zero_variance"] == pytest.approx(2 / 3)
    assert graded.metrics["reward/math"] == graded.metrics["accuracy"] == pytest.approx(5 / 6)
    assert graded.metrics["reward/prefixed"] == 0.75
    assert graded.metrics["reward/unprefixed"] == 1.0
    assert graded.metrics["reward/prefix_0.3"] == 0.5
    assert graded.metrics["reward/prefix_0.6"] == 1.0
    assert graded.samples[0]["prefix"] == " <think> 0 15"
    assert graded.samples[0]["response"].startswith(" 4 8 </think>")
    assert "prefix" not in graded.samples[4]
    assert {s["prompt"] for s in graded.samples} == {"<|user|> 17<|assistant|>"}
    cut = sampled._replace(ended_B=jnp.arange(6) != 1, loss_mask_BT=jnp.ones((6, 10)))
    masked = grade_rollouts(cut, draw, vocabulary, 2, Scorer(), mask_truncated=True)
    assert masked.rows.loss_mask_BT.sum(axis=1).tolist() == [10, 0, 10, 10, 10, 10]
    assert masked.rows.reward_B.tolist() == graded.rows.reward_B.tolist()
    assert masked.metrics["truncated_rate"] == pytest.approx(1 / 6)


def test_rows_without_a_prefix_have_no_figures_of_prefixes():
    assert prefix_metrics(np.ones(3), [None] * 3) == {}
