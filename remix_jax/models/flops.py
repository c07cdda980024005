"""Floating-point operations of the decoder's programs, counted from shapes.

Matrix products only, a multiplication and an addition as two; what a program computes on padding
counts, because the device computes it. A backward pass costs twice its forward pass.
"""

from remix_jax.models.decoder import DecoderConfig


def scored(config: DecoderConfig, rows: int, prompt: int, response: int, head: str) -> float:
    """One forward pass over whole rows that keeps the response: log-probs or values.

    All layers but the last see prompt + response slots; the last one, and the head, only answer
    for the response (it still makes keys and values of all slots).

    Args:
      rows, prompt, response: slots, B, P and T.
      head: "token" for logits over the vocabulary, "value" for one number.
    """
    slots = prompt + response
    outputs = config.vocab_size if head == "token" else 1
    full = _keys_and_values(config) * slots + _queries(config, slots) * slots
    last = _keys_and_values(config) * slots + _queries(config, slots) * response
    top = 2.0 * config.width * outputs * response
    return rows * ((config.layers - 1) * full + last + top)


def trained(config: DecoderConfig, rows: int, prompt: int, response: int, head: str) -> float:
    """Forward and backward pass over rows: three times `scored`."""
    return 3.0 * scored(config, rows, prompt, response, head)


def sampled(config: DecoderConfig, prompts: int, rows: int, prompt: int, tokens: float) -> float:
    """Prefill of the prompts, once for all rows of a group, and `tokens` decoded in all.

    Attention of a decoded token is taken at the middle of its response.
    """
    prefill = prompts * scored(config, 1, prompt - 1, 1, "token")
    seen = prompt + tokens / max(rows, 1) / 2
    layer = _keys_and_values(config) + _queries(config, seen)
    return prefill + tokens * (config.layers * layer + 2.0 * config.width * config.vocab_size)


def _keys_and_values(c: DecoderConfig) -> float:
    """Of one layer and one slot."""
    return 2.0 * c.width * 2 * c.kv_heads * c.head_dim


def _queries(c: DecoderConfig, seen: float) -> float:
    """Of one layer and one slot that is asked: query, attention to `seen` slots, output, MLP."""
    heads = c.heads * c.head_dim
    return 2.0 * (2 * c.width * heads + 2 * heads * seen + 3 * c.width * c.ffn_width)
