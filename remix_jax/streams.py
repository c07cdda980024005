"""Streams of random numbers: every root key comes from here."""

import jax

PURPOSES = ("learning", "sampling", "evaluation", "collection")


def key(seed: int, purpose: str) -> jax.Array:
    """The root key of one of PURPOSES: no other seed and no other purpose has it.

    Args:
      seed: of the run.
    """
    return jax.random.fold_in(jax.random.key(seed), PURPOSES.index(purpose))
