"""Accuracy and reward on held-out problems: `held_out` during a run, `evaluate` of any model on any
set. `results` makes the figures.
"""

from remix_jax.evaluation.run import BENCHMARKS, evaluate, held_out

__all__ = ["BENCHMARKS", "evaluate", "held_out"]
