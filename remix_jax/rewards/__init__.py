"""Rewards of responses: builtin functions, the user's own, and what comes of several.

    scorer = Scorer(("gsm8k", "my_reward.py:style"), weights=(1.0, 0.1))
    scores = scorer([Item(problem, prompt, completion, ids, ended, "hash")])

docs/rewards.md says which functions there are and how one's own are called. Nothing here imports
JAX: the workers that call a user's function load this package too.
"""

from remix_jax.rewards.scorer import FORMS, Item, Score, Scorer, metrics

__all__ = ["FORMS", "Item", "Score", "Scorer", "metrics"]
