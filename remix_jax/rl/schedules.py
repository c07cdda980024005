"""Step -> number: the KL-Convex weight, the learning rate, exact counts of rollouts."""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np


def kl_convex_weight(
    step: int | np.ndarray | jax.Array,
    start: int = 50,
    every: int = 10,
    drop: float = 0.1,
    floor: float = 0.5,
) -> jax.Array | np.ndarray:
    """lambda(t), the weight of the base anchor in KL-Convex (ReMix, arXiv 2507.06892).

        lambda(t) = max(1 - 0.1 ceil(max(t - 50, 0) / 10), 0.5)

    1 up to step 50 (`start`), 0.9 for 51..60, ..., 0.5 from 91 on. Steps count from 1 and are not
    restarted by reincarnation.
    """
    # A traced step gives a float32 array, a Python or NumPy one exact float64.
    xp = jnp if isinstance(step, jax.Array) else np
    drops = -(-xp.maximum(step - start, 0) // every)
    return xp.maximum(1.0 - drop * drops, floor)


DECAYS = ("constant", "linear", "cosine")


def learning_rate(
    step: int, steps: int, peak: float, warmup: int = 0, decay: str = "constant"
) -> float:
    """The learning rate of a step (from 1): a linear rise over `warmup` steps, then a decay.

    t <= w:   peak t / w
    t > w:    peak (1 - x) or peak (1 + cos(pi x)) / 2,     x = (t - 1 - w) / (steps - w)
    """
    if step <= warmup:
        return peak * step / warmup
    passed = (step - 1 - warmup) / max(steps - warmup, 1)
    shares = {"linear": 1 - passed, "cosine": (1 + math.cos(math.pi * passed)) / 2}
    return peak * shares.get(decay, 1.0)


def planned_units(steps: int, units: int, share: float, reincarnation_step: int = 0) -> int:
    """Fresh rows (or groups) of a run's first steps: exact on the long run.

        planned(S) = floor(min(S, T) f) + max(S - T, 0) B,      f = (1 - p) B

    Step k generates planned(k) - planned(k - 1). f is no integer in general (0.6 x 256 = 153.6):
    the fraction is carried over, so that the sums are the paper's published totals. B = `units`
    rows or whole groups a step, p = `share` in [0, 1), T = `reincarnation_step`, 0 for never.
    """
    mix_steps = min(steps, reincarnation_step or steps)
    return math.floor(mix_steps * _per_step(units, share)) + (steps - mix_steps) * units


def prefixed_units(before: int, after: int, share: float) -> int:
    """Groups that start from a prefix (PrefixRL), among those between two counts of the run.

        floor(after s) - floor(before s),     s = share, the decimal as written

    Of the first n groups of a run floor(n s) are prefixed.
    """
    exact = Fraction(str(share))
    return int(after * exact) - int(before * exact)


def fresh_unit_range(units: int, share: float) -> tuple[int, int]:
    """floor and ceil of (1 - p) B: the fewest and the most of any step (static shapes)."""
    return math.floor(_per_step(units, share)), math.ceil(_per_step(units, share))


def _per_step(units: int, share: float) -> Fraction:
    return (1 - Fraction(str(share))) * units  # the decimal as written: exact
