"""Floating-point operations of a traced program: shapes of its products times how often they run.

Products only, a multiplication and an addition as two. The attention kernel counts the pairs of
query and key that are visible, as it skips the others.
"""

import math
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
from jax.extend import core

from launch.hlo import Trips, times_of

# Products of [queries, keys, head width] that each kernel of splash attention makes.
_KERNEL_PRODUCTS = {"dkv": 4, "dq": 3, "fwd": 2}


def count(jaxpr: Any, *trips: Trips) -> float:
    """FLOPs of all devices together.

    Args:
      jaxpr: of the whole program, forward, backward and recomputation.
      trips: of the loops whose count depends on data, as of `hlo.Program.traffic`.
    """
    total, depending = 0.0, 0
    for equation in _open(jaxpr).eqns:
        if equation.primitive.name == "while":
            times = times_of(trips, depending)
            total += times * count(equation.params["body_jaxpr"], *trips[1:])
            depending += 1
        else:
            total += _of(equation, trips)
    return total


def _of(equation: Any, trips: tuple[Trips, ...]) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return (
            2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[d] for d in contracted)
        )
    if name == "pallas_call":
        return _kernel(equation)
    if name == "scan":
        return params["length"] * count(params["jaxpr"], *trips)
    if name == "cond":
        return max(count(branch, *trips) for branch in params["branches"])
    inner = sum(count(jaxpr, *trips) for jaxpr in _jaxprs(params))
    return inner * params["mesh"].size if name == "shard_map" else inner


def _kernel(equation: Any) -> float:
    label = str(equation.params.get("name") or equation.params.get("name_and_src_info"))
    # Behind integers, which describe the mask, come queries, keys and values.
    shapes = [v.aval.shape for v in equation.invars if jnp.issubdtype(v.aval.dtype, jnp.floating)]
    if "flash_decoding" in label:  # M queries to all slots of the values [N, K, S, E]
        return 4.0 * math.prod(shapes[-1]) * equation.outvars[-1].aval.shape[-2]
    products = next((n for key, n in _KERNEL_PRODUCTS.items() if key in label), None)
    if products is None:
        raise ValueError(f"no count for the kernel {label}")
    *lead, T, E = shapes[0]
    S = shapes[1][-2]
    visible = T * (S - T) + T * (T + 1) / 2
    return 2.0 * products * math.prod(lead) * visible * E


def _jaxprs(params: dict[str, Any]) -> Iterator[Any]:
    for value in params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            if isinstance(part, core.ClosedJaxpr | core.Jaxpr):
                yield part


def _open(jaxpr: Any) -> Any:
    return jaxpr.jaxpr if hasattr(jaxpr, "jaxpr") else jaxpr
