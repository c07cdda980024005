"""Floating-point operations of a traced program: shapes of its products times how often they run.

Products only, a multiplication and an addition as two. The attention kernel counts the pairs of
query and key that are visible, as it skips the others.
"""

import math
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
from jax.extend import core

# Products of [queries, keys, head width] that each kernel of splash attention makes.
_KERNEL_PRODUCTS = {"dkv": 4, "dq": 3, "fwd": 2}


def count(jaxpr: Any, unknown_trips: float) -> float:
    """FLOPs of all devices together.

    Args:
      jaxpr: of the whole program, forward, backward and recomputation.
      unknown_trips: how often a loop runs whose count depends on data.
    """
    return sum(_of(equation, unknown_trips) for equation in _open(jaxpr).eqns)


def _of(equation: Any, unknown: float) -> float:
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
        return params["length"] * count(params["jaxpr"], unknown)
    if name == "while":
        return unknown * count(params["body_jaxpr"], unknown)
    if name == "cond":
        return max(count(branch, unknown) for branch in params["branches"])
    inner = sum(count(jaxpr, unknown) for jaxpr in _jaxprs(params))
    return inner * params["mesh"].size if name == "shard_map" else inner


def _kernel(equation: Any) -> float:
    label = str(equation.params.get("name") or equation.params.get("name_and_src_info"))
    products = next((n for key, n in _KERNEL_PRODUCTS.items() if key in label), None)
    if products is None:
        raise ValueError(f"no count for the kernel {label}")
    # Behind integers that describe the mask come queries, then keys.
    shapes = [v.aval.shape for v in equation.invars if jnp.issubdtype(v.aval.dtype, jnp.floating)]
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
