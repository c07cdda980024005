"""Accuracy and reward on held-out problems: `held_out` in a run, `evaluate` of any model."""

from remix_jax.evaluation.run import BENCHMARKS, evaluate, held_out

__all__ = ["BENCHMARKS", "evaluate", "held_out"]
