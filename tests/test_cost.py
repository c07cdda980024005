"""FLOPs against what XLA counts, every pass that a switch adds, and shares of a chip's peak."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from remix_jax import cost
from remix_jax.learner.state import make_learner
from remix_jax.models import packing, scoring
from remix_jax.models.decoder import Decoder
from remix_jax.schedule import stages
from remix_jax.types import empty_rows
from tests.learner.tiny import DEEPER, P, T, grouped, make_config

ROWS, PROMPT, RESPONSE = 4, 24, 40
CONFIG = dataclasses.replace(DEEPER.config, width=64, ffn_width=192, vocab_size=128, head_dim=16)


def counted_by_xla(function, *arguments):
    analysis = jax.jit(function).lower(*arguments).compile().cost_analysis()
    return (analysis[0] if isinstance(analysis, list) else analysis)["flops"]


@pytest.mark.parametrize("head", ["token", "value"])
def test_scoring_and_training_cost_what_the_programs_multiply(head):
    """XLA counts additions, norms and softmax as well: some percent more."""
    model = Decoder(CONFIG) if head == "token" else Decoder(CONFIG, head="value")
    tokens = jnp.zeros((1, 2), jnp.int32)
    params = model.init(jax.random.key(0), tokens, tokens, tokens)["params"]
    held = packing.alone(empty_rows(ROWS, PROMPT, RESPONSE))

    def total(params):
        if head == "token":
            return scoring.score_responses(model, params, held, 1.0).logp_BT.sum()
        return scoring.score_values(model, params, held).sum()

    ours = cost.forward_flops(CONFIG, ROWS, PROMPT, RESPONSE, head)
    assert 0.95 * ours < counted_by_xla(total, params) < 1.25 * ours
    assert 0.85 * 3 * ours < counted_by_xla(jax.grad(total), params) < 1.25 * 3 * ours


def test_decoding_costs_a_forward_pass_of_its_tokens():
    """Group members share their prompt's prefill; each token is one slot of every layer."""
    alone = cost.decode_flops(CONFIG, 4, 4, PROMPT, 4 * RESPONSE)
    shared = cost.decode_flops(CONFIG, 1, 4, PROMPT, 4 * RESPONSE)
    prefill = cost.forward_flops(CONFIG, 1, PROMPT - 1, 1, "token")
    assert alone - shared == pytest.approx(3 * prefill)
    scored = cost.forward_flops(CONFIG, 4, PROMPT, RESPONSE, "token")
    assert alone == pytest.approx(scored, rel=0.25)


def spent(config, step=1, new_tokens=0):
    learner = make_learner(config, DEEPER)
    return cost.step_flops(learner, config, stages(config)["mix"], new_tokens, step)


def of_rows(rows, head="token"):
    return cost.forward_flops(DEEPER.config, rows, P, T, head)


def test_switches_cost_what_they_run():
    plain = sum(spent(make_config()))
    critic = of_rows(8, "value") + 3 * of_rows(16, "value")
    without = make_config(objective__advantage="mean_baseline", group_size=1)
    assert plain - sum(spent(without)) == pytest.approx(critic)
    imitating = sum(spent(make_config(imitation__weight=1.0)))
    assert imitating - plain == pytest.approx(3 * of_rows(16))
    start = make_config().kl.start
    assert sum(spent(make_config(), start)) == plain
    assert sum(spent(make_config(), start + 1)) - plain == pytest.approx(of_rows(8))
    passes = sum(spent(make_config(passes=3))) - plain
    assert passes == pytest.approx(3 * of_rows(8) + 3 * of_rows(8, "value"))
    assert sum(spent(grouped())) < plain


def test_decoded_tokens_are_the_sampling_part():
    none, some = spent(make_config()), spent(make_config(), new_tokens=30)
    assert none.learning == some.learning
    assert some.sampling > none.sampling > 0, "the prompts are read in any case"


def test_shares_of_the_peak_where_it_is_known(monkeypatch):
    measure = (30.0, 96.0, cost.StepFlops(sampling=4e12, learning=6e12), 0.5, 2.0)
    plain = {"tokens_per_second": 60.0, "learn_tokens_per_second": 48.0}
    assert cost.speeds(*measure) == plain
    peaks = cost.chip("TPU v5 lite")
    monkeypatch.setattr(cost, "chip", lambda: peaks)
    monkeypatch.setattr(cost.jax, "device_count", lambda: 4)
    assert cost.speeds(*measure) == plain | {
        "mfu/sample": pytest.approx(8e12 / (4 * 197e12)),
        "mfu/learn": pytest.approx(3e12 / (4 * 197e12)),
    }


def test_chips_by_the_names_that_jax_gives_them():
    assert cost.chip("TPU v5 lite").flops < cost.chip("TPU v5p").flops
    assert cost.chip("TPU v5").memory_bytes == cost.chip("TPU v5p").memory_bytes
    assert cost.chip("TPU v6 lite").flops > cost.chip("TPU v5p").flops
    assert cost.chip("cpu") is None
    assert cost.chip() is None, "the tests run on CPUs"
