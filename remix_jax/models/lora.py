"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685): y = x W + (alpha / r) (x A) B.

A [D, r] and B [r, F] are leaves `lora_a` and `lora_b` beside a `kernel` W [D, F]. A model's tree is
in two parts then: what is trained, which is all that changes, is saved and is copied into anchors;
and the weights that it adapts, frozen, which policy, critic and both anchors share. `joined`, the
two are an ordinary tree of parameters.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
from jax import lax

from remix_jax.errors import InputError

ALL_LINEAR = "all-linear"
LEAVES = ("lora_a", "lora_b")
INT8 = "int8"
_GPU_TILE = 128
_READ_TOGETHER = ("q", "k", "v"), ("o",), ("gate", "up"), ("down",)

Path = tuple[str, ...]  # ("layers_0", "q", "kernel")


@dataclasses.dataclass(frozen=True)
class Lora:
    """Which matrices of the layers have adapters, and of which kind."""

    rank: int
    alpha: float
    targets: str = ALL_LINEAR  # or a regular expression, searched in "layers_0/q", "layers_0/up"

    @property
    def scale(self) -> float:
        """alpha / r."""
        return self.alpha / self.rank

    def adapts(self, module: Sequence[str]) -> bool:
        """Whether the matrix of a module, ("layers_0", "q"), has an adapter."""
        return self.targets == ALL_LINEAR or bool(re.search(self.targets, "/".join(module)))

    def check(self, params: dict, scanned: bool = False) -> None:
        """Whether a model of such parameters, or of such shapes, can have these adapters.

        Raises:
          InputError: `targets` match no matrix of it, or other ones in some layers though they are
            scanned; or the rank is above a dimension of one.
        """
        shapes = {path[:-1]: x.shape for path, x in _flat(params).items() if _of_layer(path)}
        found = {module: shape for module, shape in shapes.items() if self.adapts(module)}
        if not found:
            some = ", ".join("/".join(module) for module in [*shapes][:7])
            raise InputError(
                f"config.lora.targets = {self.targets!r}: matches no matrix of the model; there "
                f"are {some}, .. ({ALL_LINEAR}: all of them)"
            )
        layers = [
            {name for layer, name in found if layer == this} for this in {m[0] for m in shapes}
        ]
        if scanned and any(names != layers[0] for names in layers):
            raise InputError(
                f"config.lora.targets = {self.targets!r}: matches other matrices in some layers; "
                "with config.memory.scan_layers all must be alike"
            )
        module, shape = min(found.items(), key=lambda each: min(each[1]))
        if self.rank > min(shape):
            raise InputError(
                f"config.lora.rank = {self.rank}: {'/'.join(module)} is a matrix of "
                f"{shape[0]} x {shape[1]}: must be {min(shape)} or less"
            )


def _flat(tree: dict) -> dict[Path, Any]:
    return flax.traverse_util.flatten_dict(tree)


def _of_layer(path: Path) -> bool:
    return path[0].startswith("layers_") and path[-1] == "kernel"


def _trained(path: Path) -> bool:
    return path[-1] in LEAVES or path[0] == "value_head"


def split(params: dict) -> tuple[dict, dict]:
    """Of a tree with adapters: what is frozen, and what is trained (a value head is, too)."""
    flat = _flat(params)
    parts = ({p: x for p, x in flat.items() if _trained(p) is of} for of in (False, True))
    frozen, trained = map(flax.traverse_util.unflatten_dict, parts)
    return frozen, trained


def joined(frozen: dict | None, trained: dict) -> dict:
    """The inverse of `split`; parameters that are trained whole have nothing frozen."""
    if frozen is None or "embed" in trained:
        return trained
    return flax.traverse_util.unflatten_dict(_flat(frozen) | _flat(trained))


def held(config: Any, params: dict) -> dict:
    """A tree as programs of a `DecoderConfig` take it; consumes it.

    Under adapters, with layers that are scanned, the layers' frozen arrays lie in one along a first
    axis, under "layers": once in memory, where stacking them in every program would double them.
    """
    if config.lora is None or not config.execution.scan_layers:
        return params
    flat = dict(_flat(params))
    params.clear()  # so that each array is freed once it is in its stack
    names = sorted({path[0] for path in flat if path[0].startswith("layers_")}, key=_number)
    for rest in [path[1:] for path in flat if path[0] == names[0] and not _trained(path)]:
        flat["layers", *rest] = jnp.stack([flat.pop((name, *rest)) for name in names])
    return flax.traverse_util.unflatten_dict(flat)


def by_layer(params: dict) -> dict:
    """The inverse of `held`; other trees as they are."""
    flat = {}
    for path, x in _flat(params).items():
        if path[0] != "layers":
            flat[path] = x
            continue
        for i in range(x.shape[0]):
            flat[f"layers_{i}", *path[1:]] = lax.index_in_dim(x, i, keepdims=False)
    return flax.traverse_util.unflatten_dict(flat)


def _number(name: str) -> int:
    return int(name.removeprefix("layers_"))


def init(shapes: dict, key: jax.Array) -> dict:
    """Adapters that change nothing: A uniform in +-1 / sqrt(D), as torch's Linear begins; B zero.

    Args:
      shapes: of a model with adapters.
    """

    def made(number: int, path: Path, shape: tuple[int, ...]) -> jax.Array:
        if path[-1] == "lora_b":
            return jnp.zeros(shape)
        bound = shape[0] ** -0.5
        return jax.random.uniform(jax.random.fold_in(key, number), shape, minval=-1) * bound

    adapters = sorted((path, x.shape) for path, x in _flat(shapes).items() if path[-1] in LEAVES)
    leaves = {path: made(i, path, shape) for i, (path, shape) in enumerate(adapters)}
    return flax.traverse_util.unflatten_dict(leaves)


def merged(lora: Lora | None, params: dict, dtype: str = "") -> dict:
    """The tree of the plain model that computes the same: W + (alpha / r) A B in place of W.

    Sums are float32. Rounded to bfloat16, as its weights are without `dtype`, it is not the same:
    a change of less than half a step of W's is lost.
    """
    flat = _flat(by_layer(params))
    plain = {path: x for path, x in flat.items() if path[-1] not in (*LEAVES, "kernel_scale")}
    for path, x in plain.items():
        a, b, scale = (flat.get((*path[:-1], name)) for name in (*LEAVES, "kernel_scale"))
        out = dtype or (x.dtype if scale is None else jnp.float32)
        if path[-1] == "kernel" and scale is not None:
            x = x.astype(jnp.float32) * scale[None]
        if path[-1] == "kernel" and a is not None and b is not None:
            assert lora is not None, "the tree has adapters"
            change = jnp.dot(a, b, precision=jax.lax.Precision.HIGHEST)
            x = x.astype(jnp.float32) + lora.scale * change
        plain[path] = x.astype(out)
    return flax.traverse_util.unflatten_dict(plain)


def under(lora: Lora, params: dict) -> dict:
    """The tree of the plain model whose matrices have B under W: y = [x, x A] [W; (alpha / r) B].

    Modules that read the same x get the A of all of them, side by side, and rows of zeros under
    the others' B: two products for all, as XLA joins those of one operand.
    """
    layers = {}
    for name, layer in params.items():
        layers[name] = layer
        for group in _READ_TOGETHER if name.startswith("layers_") else ():
            found = [module for module in group if LEAVES[0] in layer[module]]
            wide = [layer[module][LEAVES[0]] for module in found]
            if wide:  # to a length that a GPU's products need not pad at every token
                length = sum(a.shape[1] for a in wide) + wide[0].shape[0]
                wide.append(jnp.zeros((wide[0].shape[0], -length % _GPU_TILE)))
            for module in found:
                own = layer[module]
                rows = [
                    lora.scale * own[LEAVES[1]]
                    if other == module
                    else jnp.zeros((a.shape[1], own["kernel"].shape[1]))
                    for other, a in zip([*found, None], wide, strict=True)
                ]
                low = jnp.concatenate(rows).astype(own["kernel"].dtype)
                kernel = jnp.concatenate([own["kernel"], low])
                held = {LEAVES[0]: jnp.concatenate(wide, axis=1), "kernel": kernel}
                kept = {k: x for k, x in own.items() if k not in LEAVES}
                layers[name] = layers[name] | {module: kept | held}
    return layers


def quantized(params: dict) -> dict:
    """The layers' matrices in int8, W = kernel * kernel_scale by columns; consumes the tree.

    scale_F = max_D |W_DF| / 127,   kernel_DF = round(W_DF / scale_F)
    """
    flat = dict(_flat(params))
    params.clear()  # as above
    for path in [path for path in flat if _of_layer(path)]:
        kernel, scale = _int8(flat.pop(path))
        flat |= {path: kernel, (*path[:-1], "kernel_scale"): scale}
    return flax.traverse_util.unflatten_dict(flat)


@jax.jit
def _int8(w_DF: jax.Array) -> tuple[jax.Array, jax.Array]:
    w_DF = w_DF.astype(jnp.float32)
    scale_F = jnp.maximum(jnp.abs(w_DF).max(axis=0), 1e-12) / 127
    return jnp.round(w_DF / scale_F[None]).astype(jnp.int8), scale_F
