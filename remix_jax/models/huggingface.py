"""A Hugging Face model directory <-> a decoder's parameter tree; the one door to such directories.

Weights travel one tensor at a time, so that host memory never holds a second copy of the model.
A linear map is stored by torch as [outputs, inputs] and by us as [inputs, outputs]; nothing else
differs but the names. What a directory gets wrong is an `InputError` of one line.
"""

import dataclasses
import json
import os
import pathlib
import shutil
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from huggingface_hub import split_state_dict_into_shards_factory
from jax.experimental import multihost_utils

from remix_jax.errors import InputError
from remix_jax.models.decoder import Decoder, DecoderConfig
from remix_jax.models.hf_config import (
    CONFIG,
    existing_directory,
    plain_config,
    read_config,
    read_json,
    what_it_is,
)
from remix_jax.models.hf_tokenizer import (
    TOKENIZER_FILES,
    Vocabulary,
    eos_ids,
    load_tokenizer,
    load_vocabulary,
    pad_id,
)
from remix_jax.sharding import spec_of
from remix_jax.text import one_line

__all__ = [
    "Vocabulary",
    "check_target",
    "eos_ids",
    "load",
    "load_tokenizer",
    "load_vocabulary",
    "pad_id",
    "read_config",
    "save",
]

WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 5 * 10**9
MARK = ("saved_by", "remix_jax")  # in the config.json of every directory that `save` made

_DTYPES = ("float32", "bfloat16")
_STORED_DTYPES = ("F32", "BF16", "F16", "F64")
_MODULES = {
    "attn_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "final_norm": "model.norm",
    "embed": "model.embed_tokens",
    "lm_head": "lm_head",
    **{name: f"self_attn.{name}_proj" for name in "qkvo"},
    **{name: f"self_attn.{name}" for name in ("q_norm", "k_norm")},
    **{name: f"mlp.{name}_proj" for name in ("gate", "up", "down")},
}

ParamPath = tuple[str, ...]  # ("layers_0", "q", "kernel")
Shape = tuple[int, ...]


# --- weights -> parameters -------------------------------------------------------------------


def load(
    directory: str | os.PathLike, dtype: str = "float32", mesh: jax.sharding.Mesh | None = None
) -> tuple[Decoder, dict]:
    """The model of a Hugging Face directory and its parameters.

    Args:
        directory: holds config.json and model.safetensors, or shards with their index.
        dtype: "float32" or "bfloat16", for the parameters and for the operands of matrix products.
        mesh: divide the parameters over this mesh by `sharding.rules`, each device (and each
            process) reading its own slices; without one they go to the default device.

    Returns:
        `model` with `model.apply({"params": params}, tokens_BS, positions_BS, mask_BS)` giving
        logits_BSV in float32, and `params`, a nested dict of arrays.

    Raises:
        InputError: as `read_config`; or a weight file is missing or damaged; or a tensor is
            missing, unknown, not finite, or of another shape than the config asks for.
    """
    if dtype not in _DTYPES:
        raise InputError(f"dtype {dtype!r} is not supported; it can be {' or '.join(_DTYPES)}")
    root = existing_directory(directory)
    model = Decoder(dataclasses.replace(read_config(root), dtype=dtype))

    def where(path: ParamPath, shape: Shape) -> jax.sharding.Sharding | None:
        if mesh is None:
            return None
        return jax.sharding.NamedSharding(mesh, spec_of("/".join(path), shape, mesh))

    shapes = _parameter_shapes(model)
    stored = _stored_tensors(root)
    _check_tensors(root, shapes, stored, model.config.tied_embeddings)
    params = {
        path: _place(stored[_tensor_name(path)], path, shape, dtype, where(path, shape))
        for path, shape in shapes.items()
    }
    return model, flax.traverse_util.unflatten_dict(params)


@dataclasses.dataclass(frozen=True)
class _Stored:
    """A tensor in a file, not read yet."""

    file: pathlib.Path
    name: str
    shape: Shape
    dtype: str  # as the file spells it

    def read(self, index: tuple[slice, ...]) -> np.ndarray:
        # Opened for each read: pages of a file kept mapped count as memory until it is closed.
        try:
            with safetensors.safe_open(self.file, framework="numpy") as handle:
                return handle.get_slice(self.name)[index]
        except (OSError, safetensors.SafetensorError) as error:
            raise InputError(
                f"{self.file}: tensor {self.name} cannot be read ({one_line(error)})"
            ) from None


def _parameter_shapes(model: Decoder) -> dict[ParamPath, Shape]:
    slot = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    tree = jax.eval_shape(model.init, jax.random.key(0), slot, slot, slot)["params"]
    return {path: x.shape for path, x in flax.traverse_util.flatten_dict(tree).items()}


def _tensor_name(path: ParamPath) -> str:
    """Torch's name: ("layers_0", "q", "bias") is model.layers.0.self_attn.q_proj.bias."""
    *layer, module, kind = path
    prefix = f"model.layers.{layer[0].removeprefix('layers_')}." if layer else ""
    return f"{prefix}{_MODULES[module]}.{'bias' if kind == 'bias' else 'weight'}"


def _torch_order(path: ParamPath, axes: tuple) -> tuple:
    """A shape or an index of a parameter in the order of axes in which torch stores it."""
    return axes[::-1] if path[-1] == "kernel" else axes


def _stored_tensors(root: pathlib.Path) -> dict[str, _Stored]:
    """Every stored tensor by name, from the one file or from the shards that the index lists."""
    if (root / WEIGHTS).is_file():
        return {tensor.name: tensor for tensor in _tensors_of(root / WEIGHTS)}
    index = root / WEIGHTS_INDEX
    if not index.is_file():
        raise InputError(f"{root}: has neither {WEIGHTS} nor {WEIGHTS_INDEX}")
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index}: weight_map must be an object from tensor names to file names")
    stored: dict[str, _Stored] = {}
    for file in sorted({str(file) for file in weight_map.values()}):
        if pathlib.PurePath(file).name != file:
            raise InputError(f"{index}: {file!r} must be the name of a file beside it")
        for tensor in _tensors_of(root / file):
            if weight_map.get(tensor.name) != file:
                raise InputError(f"{index}: does not list tensor {tensor.name} of {file}")
            stored[tensor.name] = tensor
    for name in sorted(weight_map.keys() - stored.keys()):
        raise InputError(f"{index}: lists tensor {name}, which {weight_map[name]} does not hold")
    return stored


def _tensors_of(file: pathlib.Path) -> list[_Stored]:
    tensors = []
    try:
        with safetensors.safe_open(file, framework="numpy") as handle:
            for name in handle.keys():  # noqa: SIM118 - a file handle, not a mapping
                entry = handle.get_slice(name)
                tensors.append(_Stored(file, name, tuple(entry.get_shape()), entry.get_dtype()))
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(
            f"{file}: missing or damaged weights ({what_it_is(file, error)})"
        ) from None
    return tensors


def _check_tensors(
    root: pathlib.Path, shapes: dict[ParamPath, Shape], stored: dict[str, _Stored], tied: bool
) -> None:
    """Compares names, shapes and dtypes with what the config asks for, before anything is read."""
    wanted = {_tensor_name(path): _torch_order(path, shape) for path, shape in shapes.items()}
    missing = [name for name in wanted if name not in stored]
    if missing:
        raise InputError(
            f"{root}: tensor {missing[0]} of shape {wanted[missing[0]]}, which {CONFIG} asks for, "
            f"is missing from the weights ({len(missing)} missing in all)"
        )
    for name, tensor in stored.items():
        if name.endswith(".rotary_emb.inv_freq") or (tied and name == "lm_head.weight"):
            continue
        if name not in wanted:
            raise InputError(
                f"{tensor.file}: tensor {name} of shape {tensor.shape} has no place in the model "
                f"that {CONFIG} describes"
            )
        if tensor.shape != wanted[name]:
            raise InputError(
                f"{tensor.file}: tensor {name} has shape {tensor.shape}, "
                f"{CONFIG} asks for {wanted[name]}"
            )
        if tensor.dtype not in _STORED_DTYPES:
            raise InputError(
                f"{tensor.file}: tensor {name} has dtype {tensor.dtype}, which is not supported; "
                f"it can be {', '.join(_STORED_DTYPES)}"
            )
    if tied and "lm_head.weight" in stored:
        _check_same(stored["lm_head.weight"], stored["model.embed_tokens.weight"])


def _check_same(head: _Stored, embedding: _Stored) -> None:
    """A tied checkpoint may store the matrix twice, but then it must be the same matrix."""
    whole = slice(None), slice(None)
    if not np.array_equal(head.read(whole), embedding.read(whole)):
        raise InputError(
            f"{head.file}: tensor {head.name} differs from {embedding.name} though {CONFIG} "
            "has tie_word_embeddings true; it can be false"
        )


def _place(
    tensor: _Stored,
    path: ParamPath,
    shape: Shape,
    dtype: str,
    sharding: jax.sharding.Sharding | None,
) -> jax.Array:
    """Reads a tensor onto its device, or onto each device of a mesh the slice that it holds."""

    def read(index: Any) -> np.ndarray:
        value = tensor.read(_torch_order(path, index))
        with np.errstate(all="ignore"):
            if not np.isfinite(np.sum(value, dtype=np.float64)):
                raise InputError(f"{tensor.file}: tensor {tensor.name} holds NaN or infinity")
        value = value.T if path[-1] == "kernel" else value
        return value.astype(jnp.dtype(dtype), order="C", copy=False)

    if sharding is None:
        return jax.device_put(read((slice(None),) * len(shape)))
    return jax.make_array_from_callback(shape, sharding, read)


# --- parameters -> weights -------------------------------------------------------------------


def save(
    model: Decoder,
    params: dict,
    directory: str | os.PathLike,
    like: str | os.PathLike | None = None,
    dtype: str | None = None,
) -> None:
    """Writes a directory that torch `transformers` loads with the same logits.

    The directory appears whole or not at all: it is written beside
    `directory` and renamed. One that `save` made before is replaced, nothing else ever is.
    Of several processes all must call it: tensors are gathered one by one, the first one writes.

    Args:
        model: a decoder with head "lm".
        params: its parameters.
        directory: what to write.
        like: a model directory whose config.json is kept but for the dtype, and whose tokenizer,
            chat template and generation files are copied. May be `directory` itself.
        dtype: of the stored parameters, "float32" or "bfloat16"; None: their own.

    Raises:
        InputError: `directory` is in use by something else (`check_target`), or `like` describes
            another model.
        ValueError: `params` is not a parameter tree of `model`, or `model` is a critic.
    """
    target = check_target(directory)
    tensors = _named(model, params)
    dtype = dtype or jnp.dtype(params["embed"]["embedding"].dtype).name
    config = _config_json(model.config, dtype, like)
    if jax.process_index() > 0:
        for path, x in tensors.values():  # its part of each gathering
            _fetch(path, x)
        return
    scratch = target.with_name(f".{target.name}.{os.getpid()}.partial")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        scratch.mkdir(parents=True)
        _write_json(scratch / CONFIG, config)
        _write_weights(scratch, tensors, dtype)
        if like is not None:
            sources = (pathlib.Path(like).expanduser() / name for name in TOKENIZER_FILES)
            for source in filter(pathlib.Path.is_file, sources):
                shutil.copyfile(source, scratch / source.name)
        _swap(scratch, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def check_target(directory: str | os.PathLike) -> pathlib.Path:
    """The resolved path if `save` may write there; worth asking before a long run.

    Raises:
        InputError: something exists there that `save` did not make.
    """
    target = pathlib.Path(directory).expanduser().resolve()
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return target
    ours = target.is_dir() and (target / CONFIG).is_file()
    if not ours or read_json(target / CONFIG).get(MARK[0]) != MARK[1]:
        raise InputError(
            f"{target}: exists and is no model saved by {MARK[1]}, so it is not written over; "
            "give a new directory"
        )
    for entry in sorted(target.iterdir()):
        weights = entry.name.startswith("model") and ".safetensors" in entry.name
        if not weights and entry.name not in (CONFIG, *TOKENIZER_FILES):
            raise InputError(
                f"{target}: holds {entry.name}, which would be lost; "
                "move it or give a new directory"
            )
    return target


def _named(model: Decoder, params: dict) -> dict[str, tuple[ParamPath, jax.Array]]:
    """Parameters by torch's names, checked against the model's own tree."""
    if model.head != "lm":
        raise ValueError(f"only a decoder with head 'lm' can be saved, not {model.head!r}")
    shapes = _parameter_shapes(model)
    arrays = flax.traverse_util.flatten_dict(params)
    for path in sorted(shapes.keys() ^ arrays.keys()):
        fault = "is missing" if path in shapes else "is unknown"
        raise ValueError(f"parameter {'/'.join(path)} {fault}")
    for path, shape in shapes.items():
        if arrays[path].shape != shape:
            raise ValueError(
                f"parameter {'/'.join(path)} has shape {arrays[path].shape}, not {shape}"
            )
    return {_tensor_name(path): (path, arrays[path]) for path in shapes}


def _config_json(config: DecoderConfig, dtype: str, like: str | os.PathLike | None) -> dict:
    raw = plain_config(config)
    if like is not None:
        other = read_config(like)
        other = dataclasses.replace(other, dtype=config.dtype, execution=config.execution)
        for field in dataclasses.fields(config):
            ours, theirs = getattr(config, field.name), getattr(other, field.name)
            if ours != theirs:
                raise InputError(
                    f"{like}: {CONFIG} describes another model: "
                    f"{field.name} is {theirs!r}, that of the model to save is {ours!r}"
                )
        names = {key: raw[key] for key in ("architectures", "model_type")}
        raw = read_json(existing_directory(like) / CONFIG) | names
    spellings = [key for key in ("torch_dtype", "dtype") if key in raw] or ["dtype"]
    return {**raw, **dict.fromkeys(spellings, dtype), MARK[0]: MARK[1]}


def _write_weights(
    folder: pathlib.Path, tensors: dict[str, tuple[ParamPath, jax.Array]], dtype: str
) -> None:
    split = split_state_dict_into_shards_factory(
        tensors,
        get_storage_size=lambda tensor: tensor[1].size * jnp.dtype(dtype).itemsize,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=SHARD_BYTES,
    )
    for file, names in split.filename_to_tensors.items():
        values = {name: _fetch(*tensors[name]).astype(dtype, copy=False) for name in names}
        # One key only: the order of several would differ between runs, and so would the bytes.
        safetensors.numpy.save_file(values, folder / file, metadata={"format": "pt"})
        shutil.copymode(folder / CONFIG, folder / file)  # safetensors writes for the owner alone
    if split.is_sharded:
        weight_map = dict(sorted(split.tensor_to_filename.items()))
        _write_json(folder / WEIGHTS_INDEX, {"metadata": split.metadata, "weight_map": weight_map})


def _fetch(path: ParamPath, x: jax.Array) -> np.ndarray:
    # A jax array keeps the host copy made of it; a passing copy on the device takes it away again.
    passing = jnp.transpose(x) if path[-1] == "kernel" else jnp.copy(x)
    if not passing.is_fully_addressable:
        return np.ascontiguousarray(multihost_utils.process_allgather(passing, tiled=True))
    return np.ascontiguousarray(passing)


def _write_json(path: pathlib.Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _swap(scratch: pathlib.Path, target: pathlib.Path) -> None:
    """Renames `scratch` to `target`; what was there goes only once the new one is in its place."""
    if not target.exists():
        scratch.rename(target)
        return
    old = scratch.with_suffix(".old")
    target.rename(old)
    try:
        scratch.rename(target)
    except BaseException:
        old.rename(target)
        raise
    shutil.rmtree(old)
