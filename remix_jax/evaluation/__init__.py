"""Accuracy and reward on held-out problems: during a run, and of any model on any set.

    held_out(sampler, params, suites, validation, vocabulary, config, scorer) -> metrics
    evaluate(config, out) -> figures, as in results.json

Both ask and score through `responses.py`; `results.py` makes the figures.
"""

from remix_jax.evaluation.responses import held_out
from remix_jax.evaluation.run import BENCHMARKS, evaluate

__all__ = ["BENCHMARKS", "evaluate", "held_out"]
