"""Responses as reasoning models have them, and a model of a size to measure them on."""

import numpy as np

from remix_jax.models.decoder import DecoderConfig

CAP = 8192  # tokens


def shares(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Lengths as shares of the cap: exp(N(7.467, .962)) tokens, cut at 8,192; mean .3."""
    return np.minimum(rng.lognormal(7.467, 0.962, shape), CAP) / CAP


def model(tied_embeddings: bool, positions: int) -> DecoderConfig:
    """12.6 million parameters beside the embeddings."""
    return DecoderConfig(
        architecture="qwen2",
        vocab_size=2048,
        width=384,
        layers=8,
        heads=6,
        kv_heads=2,
        head_dim=64,
        ffn_width=1024,
        rope_theta=1e4,
        rope_scaling=None,
        norm_eps=1e-6,
        tied_embeddings=tied_embeddings,
        qkv_bias=True,
        qk_norm=False,
        max_positions=positions,
    )
