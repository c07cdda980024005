"""Streams of random numbers: every root key comes from here."""

import jax

PURPOSES = ("learning", "sampling", "evaluation", "collection", "adapters")


def key(seed: int, purpose: str) -> jax.Array:
    """The root key of a run's seed and one of PURPOSES: no others have it."""
    return jax.random.fold_in(jax.random.key(seed), PURPOSES.index(purpose))
