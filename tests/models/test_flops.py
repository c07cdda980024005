"""Counted floating-point operations against what XLA counts in the compiled programs."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from remix_jax.models import flops, scoring
from remix_jax.models.decoder import Decoder
from remix_jax.types import empty_rows
from tests.learner.tiny import POLICY

ROWS, PROMPT, RESPONSE = 4, 24, 40
CONFIG = dataclasses.replace(POLICY.config, width=64, ffn_width=192, vocab_size=128, head_dim=16)


def counted_by_xla(function, *arguments):
    analysis = jax.jit(function).lower(*arguments).compile().cost_analysis()
    return (analysis[0] if isinstance(analysis, list) else analysis)["flops"]


@pytest.mark.parametrize("head", ["token", "value"])
def test_scoring_and_training_cost_what_the_programs_multiply(head):
    """XLA counts additions, norms and softmax as well: some percent more."""
    model = Decoder(CONFIG) if head == "token" else Decoder(CONFIG, head="value")
    tokens = jnp.zeros((1, 2), jnp.int32)
    params = model.init(jax.random.key(0), tokens, tokens, tokens)["params"]
    rows = empty_rows(ROWS, PROMPT, RESPONSE)

    def total(params):
        if head == "token":
            return scoring.score_responses(model, params, rows, 1.0).logp_BT.sum()
        return scoring.score_values(model, params, rows).sum()

    ours = flops.scored(CONFIG, ROWS, PROMPT, RESPONSE, head)
    assert 0.95 * ours < counted_by_xla(total, params) < 1.25 * ours
    ours = flops.trained(CONFIG, ROWS, PROMPT, RESPONSE, head)
    assert 0.85 * ours < counted_by_xla(jax.grad(total), params) < 1.25 * ours


def test_decoding_costs_a_forward_pass_of_its_tokens():
    """Group members share their prompt's prefill; each token is one slot of every layer."""
    alone = flops.sampled(CONFIG, 4, 4, PROMPT, 4 * RESPONSE)
    shared = flops.sampled(CONFIG, 1, 4, PROMPT, 4 * RESPONSE)
    prefill = flops.scored(CONFIG, 1, PROMPT - 1, 1, "token")
    assert alone - shared == pytest.approx(3 * prefill)
    scored = flops.scored(CONFIG, 4, PROMPT, RESPONSE, "token")
    assert alone == pytest.approx(scored, rel=0.25)
