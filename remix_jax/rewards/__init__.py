"""Rewards of responses: builtin functions, the user's own, and what comes of several.

Nothing here imports JAX: the workers that call a user's function load this package too.
"""

from remix_jax.rewards.scorer import FORMS, Item, Score, Scorer, metrics

__all__ = ["FORMS", "Item", "Score", "Scorer", "metrics"]
