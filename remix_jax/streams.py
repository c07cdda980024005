"""Streams of random numbers: every root key of a run comes from here."""

import jax

PURPOSES = ("learning", "sampling", "evaluation")


def key(seed: int, purpose: str) -> jax.Array:
    """The root key of one purpose of a run.

    Args:
      seed: of the run.
      purpose: one of PURPOSES.
    """
    return jax.random.key(seed + PURPOSES.index(purpose))
