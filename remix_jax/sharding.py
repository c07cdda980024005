"""Where every array lies: a mesh of devices, and rules from tree paths to axes of it.

`data` divides rows; `fsdp` divides rows and every large parameter, which is gathered for the moment
of its use; `tensor` divides heads, the MLP's width and the vocabulary within a layer. Programs are
traced `over` a mesh; inside them `constrain`, `by_rows` and `by_rules` pin what a partitioner would
have to guess. Without a mesh they do nothing.
"""

import contextlib
import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from remix_jax.errors import InputError

AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")  # the axes that rows are divided over
STREAM = (ROWS, "tensor")  # [B, S, D] between layers, which is what a backward pass keeps
REST = -1  # as an axis' size: what the other axes leave of the devices

# (expression, axes of the last dimensions). The first one found in an array's path decides: so a
# parameter, its gradient, its Adam moments and its copies in both anchors all lie alike. Dimensions
# before those of the rule (layers stacked for a scan) are not divided.
rules: tuple[tuple[str, P], ...] = (
    (r"/in_flight/", P()),  # the host reads all of it
    (r"/v_(row|col)/", P()),  # of Adafactor: sums over the rows or columns of a matrix
    (r"embed/embedding$", P("tensor", "fsdp")),
    (r"lm_head/kernel$", P("fsdp", "tensor")),
    (r"/(q|k|v|gate|up)/kernel$", P("fsdp", "tensor")),
    (r"/(o|down)/kernel$", P("tensor", "fsdp")),
    (r"/(q|k|v|gate|up)/lora_a$", P("fsdp", None)),
    (r"/(q|k|v|gate|up)/lora_b$", P(None, "tensor")),
    (r"/(q|k|v|gate|up)/kernel_scale$", P("tensor")),
    (r"/(o|down)/lora_a$", P("tensor", None)),
    (r"/(o|down)/lora_b$", P(None, "fsdp")),
    (r"/(o|down)/kernel_scale$", P()),
    (r"/(q|k|v)/bias$", P("tensor")),
    (r"value_head/(kernel|bias)$", P()),  # one column: nothing to divide
    (r"norm/scale$", P()),
    (r"\w_B$", P(ROWS)),  # rows of the ring
    (r"\w_B[ST]$", P(ROWS, None)),
    (r"/(fates_U|fault_F|ns_coeffs)$", P()),
)


def mesh_shape(wanted: Sequence[int], devices: int) -> tuple[int, ...]:
    """Sizes of the axes data, fsdp, tensor, with REST filled in; InputError if they do not fit."""
    known = math.prod(size for size in wanted if size != REST)
    asked = "a mesh of data {} x fsdp {} x tensor {}".format(*wanted)
    if REST in wanted and devices % known:
        raise InputError(f"{asked}: {known} does not divide {devices}, the number of devices")
    if known > devices:
        raise InputError(f"{asked} needs {known} devices, there are {devices}; {REST}: the rest")
    return tuple(devices // known if size == REST else size for size in wanted)


def make_mesh(wanted: Sequence[int]) -> Mesh | None:
    """A mesh of those sizes over the devices of all processes; None where it is one device.

    Neighbours on `tensor`, then on `fsdp`, are neighbours in the machine's own network as far as
    JAX knows it. Raises InputError as `mesh_shape`, or if devices of some process would be left
    out; a single process may leave some unused.
    """
    devices = jax.devices()
    shape = mesh_shape(wanted, len(devices))
    size, processes = math.prod(shape), jax.process_count()
    if processes > 1 and size < len(devices):
        raise InputError(
            f"a mesh of {size} devices, but the {processes} processes have {len(devices)}: all of "
            "them must take part"
        )
    if size == 1:
        return None
    # Auto: the partitioner fills in what is not pinned. Explicit axes, the default, would ask for
    # the sharding of every intermediate.
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices[:size])


def row_shards(mesh: Mesh | AbstractMesh | None) -> int:
    """Into how many parts rows are divided."""
    return 1 if mesh is None else math.prod(mesh.shape[axis] for axis in ROWS)


def over(mesh: Mesh | None) -> contextlib.AbstractContextManager:
    """Traces what is inside for this mesh."""
    return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)


class Program(NamedTuple):
    """A compiled program, and what it takes of each device beside its arguments."""

    call: jax.stages.Compiled
    temporary_bytes: int  # 0 where the backend does not tell


def compiled(traced: jax.stages.Traced, mesh: Mesh | None) -> Program:
    """Compiles what was traced over a mesh."""
    with over(mesh):
        call = traced.lower().compile()
    memory = call.memory_analysis()
    return Program(call, memory.temp_size_in_bytes if memory else 0)


def spec_of(path: str, shape: Sequence[int], mesh: Mesh | AbstractMesh) -> P:
    """The axes of an array's dimensions; ValueError for an array whose path no rule knows.

    An axis that does not divide its dimension evenly is left out, and the array is whole along it:
    shapes never depend on the mesh, so that a checkpoint of one continues on another.
    """
    if not shape:
        return P()
    spec = next((spec for expression, spec in rules if re.search(expression, f"/{path}")), None)
    if spec is None:
        raise ValueError(f"no sharding rule knows {path} of shape {tuple(shape)}")
    if len(shape) < len(spec) or not spec:  # fewer: Adafactor's (1,) where sums are kept instead
        return P()
    kept: list[tuple[str, ...]] = [()] * len(shape)
    for i, axes in enumerate(spec, start=len(shape) - len(spec)):
        for axis in (axes,) if isinstance(axes, str) else axes or ():
            if shape[i] % math.prod(mesh.shape.get(a, 1) for a in (*kept[i], axis)):
                break
            if mesh.shape.get(axis, 1) > 1:
                kept[i] += (axis,)
    return P(*kept)


def shardings(tree: Any, mesh: Mesh | AbstractMesh) -> Any:
    """A tree of NamedSharding for a tree of arrays or of their shapes, by `rules`."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: NamedSharding(mesh, spec_of(path_text(path), x.shape, mesh)), tree
    )


def abstract(tree: Any, mesh: Mesh | None, *, by_rule: bool = True) -> Any:
    """A tree of shapes and dtypes; on a mesh with their shardings, by `rules` or whole."""
    if mesh is None:
        return tree
    where = shardings(tree, mesh) if by_rule else jax.tree.map(lambda _: whole(mesh), tree)
    return jax.tree.map(lambda x, there: x.update(sharding=there), tree, where)


def whole(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, P())


def path_text(path: Sequence[Any]) -> str:
    """A tree path with slashes: "opt_state/1/0/mu/layers_0/q/kernel"."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def in_use() -> AbstractMesh | None:
    """The mesh that is traced over, None without one."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty else mesh


class Places(NamedTuple):
    """Where a matrix lies between its uses, and during one."""

    kept: P
    used: P  # gathered over fsdp


def places(path: Sequence[str], shape: Sequence[int]) -> Places | None:
    """Of a parameter, by `rules`; None without a mesh."""
    mesh = in_use()
    if mesh is None:
        return None
    kept = spec_of("/".join(path), shape, mesh)
    return Places(kept, P(*(None if axes == "fsdp" else axes for axes in kept)))


def constrain(x: jax.Array, *axes: Any) -> jax.Array:
    """Pins the first dimensions of x to axes of the mesh that is traced over; the others whole.

    A dimension that its axes do not divide is divided all the same, the last part being shorter.
    """
    return x if in_use() is None else lax.with_sharding_constraint(x, P(*axes))


def by_rows(tree: Any) -> Any:
    """Divides the first dimension of every array of a tree: rows."""
    return jax.tree.map(lambda x: constrain(x, ROWS), tree)


def by_rules(tree: Any) -> Any:
    """Places a tree of parameters, or of their gradients, as `rules` say."""
    mesh = in_use()
    return tree if mesh is None else lax.with_sharding_constraint(tree, shardings(tree, mesh))


def put(x: np.ndarray | jax.Array, mesh: Mesh | None) -> jax.Array:
    """A host array or a key that every process has, whole on every device."""
    if mesh is None:
        return jax.numpy.asarray(x)
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(put(np.asarray(jax.random.key_data(x)), mesh))
    value = np.asarray(x)
    return jax.make_array_from_callback(x.shape, whole(mesh), lambda index: value[index])


def devices_text(mesh: Mesh | None) -> str:
    """The devices of a run, their kind and the mesh that they form."""
    if mesh is None:
        return f"1 x {jax.devices()[0].device_kind}"
    processes = f", {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return f"{mesh.size} x {mesh.devices.flat[0].device_kind} ({axes_text(mesh)}{processes})"


def axes_text(mesh: Mesh | AbstractMesh) -> str:
    """The axes of a mesh and their sizes."""
    return " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())


def tree_bytes(tree: Any, mesh: Mesh | AbstractMesh | None = None) -> int:
    """Of the arrays of a tree, or of their shapes; with a mesh what one device holds of them."""
    total = 0
    for path, x in jax.tree_util.tree_leaves_with_path(tree):
        shape, is_key = x.shape, jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
        if mesh is not None:
            shape = NamedSharding(mesh, spec_of(path_text(path), shape, mesh)).shard_shape(shape)
        total += 0 if is_key else math.prod(shape) * x.dtype.itemsize
    return total
