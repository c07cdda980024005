"""A Hugging Face model directory <-> a decoder's parameter tree.

Weights travel one tensor at a time, so that host memory never holds a second copy of the model.
"""

import contextlib
import dataclasses
import fnmatch
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterator
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
from remix_jax.models.decoder import Decoder, abstract_params
from remix_jax.models.hf_config import (
    CONFIG,
    MARK,
    config_json,
    existing_directory,
    read_config,
    read_json,
    unreadable,
)
from remix_jax.models.hf_tokenizer import TOKENIZER_FILES
from remix_jax.models.lora import LEAVES
from remix_jax.sharding import spec_of

WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 5 * 10**9
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


def _parameter_shapes(model: Decoder) -> dict[ParamPath, Shape]:
    leaves = flax.traverse_util.flatten_dict(abstract_params(model))
    return {path: x.shape for path, x in leaves.items()}


def tensor_name(path: ParamPath) -> str:
    """Torch's name: ("layers_0", "q", "bias") is model.layers.0.self_attn.q_proj.bias."""
    *layer, module, kind = path
    prefix = f"model.layers.{layer[0].removeprefix('layers_')}." if layer else ""
    return f"{prefix}{_MODULES[module]}.{'bias' if kind == 'bias' else 'weight'}"


def _torch_order(path: ParamPath, axes: tuple) -> tuple:
    """A shape or an index in torch's order of axes: a linear map is [outputs, inputs] there."""
    return axes[::-1] if path[-1] in ("kernel", *LEAVES) else axes


def load(
    directory: str | os.PathLike, dtype: str = "float32", mesh: jax.sharding.Mesh | None = None
) -> tuple[Decoder, dict]:
    """The model of a Hugging Face directory and its parameters.

    Args:
        directory: holds config.json and model.safetensors, or shards with their index.
        dtype: "float32" or "bfloat16", of the parameters and of the operands of matrix products.
        mesh: divide the parameters over it by `sharding.rules`, each device (and each process)
            reading its own slices; without one they go to the default device.

    Returns:
        model, params: `model.apply({"params": params}, tokens_BS, positions_BS, mask_BS)` gives
        logits_BSV in float32.

    Raises:
        InputError: as `read_config`; or a weight file is missing or damaged, or a tensor missing,
            unknown, not finite, or of another shape than the config asks for.
    """
    if dtype not in _DTYPES:
        raise InputError(f"dtype {dtype!r} is not supported; it can be {' or '.join(_DTYPES)}")
    root = existing_directory(directory)
    model = Decoder(dataclasses.replace(read_config(root), dtype=dtype))
    shapes = _parameter_shapes(model)
    wanted = {tensor_name(path): _torch_order(path, shape) for path, shape in shapes.items()}
    tied = model.config.tied_embeddings
    files = _checked_tensors(root, wanted, tied)
    if tied and "lm_head.weight" in files:  # stored twice: it must be the same matrix
        both = ("lm_head.weight", "model.embed_tokens.weight")
        head, embedding = (_read(files[name], name, (slice(None),) * 2) for name in both)
        if not np.array_equal(head, embedding):
            raise InputError(
                f"{files[both[0]]}: tensor {both[0]} differs from {both[1]} though {CONFIG} "
                "has tie_word_embeddings true; it can be false"
            )

    def placed(path: ParamPath, shape: Shape) -> jax.Array:
        """A tensor on its device, or on each device of the mesh the slice that it holds."""

        def read(index: Any) -> np.ndarray:
            name = tensor_name(path)
            value = _read(files[name], name, _torch_order(path, index))
            with np.errstate(all="ignore"):
                if not np.isfinite(np.sum(value, dtype=np.float64)):
                    raise InputError(f"{files[name]}: tensor {name} holds NaN or infinity")
            value = value.T if path[-1] == "kernel" else value
            return value.astype(jnp.dtype(dtype), order="C", copy=False)

        if mesh is None:
            return jax.device_put(read((slice(None),) * len(shape)))
        where = jax.sharding.NamedSharding(mesh, spec_of("/".join(path), shape, mesh))
        return jax.make_array_from_callback(shape, where, read)

    params = {path: placed(path, shape) for path, shape in shapes.items()}
    return model, flax.traverse_util.unflatten_dict(params)


def _index(root: pathlib.Path) -> dict[str, str]:
    """Tensor names -> names of their files; empty where one file holds all."""
    index = root / WEIGHTS_INDEX
    if (root / WEIGHTS).is_file():
        return {}
    if not index.is_file():
        raise InputError(f"{root}: has neither {WEIGHTS} nor {WEIGHTS_INDEX}")
    listed = read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise InputError(f"{index}: weight_map must be an object from tensor names to file names")
    for file in listed.values():
        if pathlib.PurePath(str(file)).name != file:
            raise InputError(f"{index}: {file!r} must be the name of a file beside it")
    return listed


def _checked_tensors(
    root: pathlib.Path, wanted: dict[str, Shape], tied: bool
) -> dict[str, pathlib.Path]:
    """Tensor names -> files. Names, shapes and dtypes are compared before anything is read."""
    listed, held = _index(root), dict[tuple[str, str], tuple[Shape, str]]()
    for file in sorted(set(listed.values()) or {WEIGHTS}):
        try:
            with safetensors.safe_open(root / file, framework="numpy") as handle:
                for name in handle.keys():  # noqa: SIM118 - a file handle, not a mapping
                    entry = handle.get_slice(name)
                    held[name, file] = tuple(entry.get_shape()), entry.get_dtype()
        except (OSError, safetensors.SafetensorError) as error:
            raise unreadable(root / file, "missing or damaged weights", error) from None
    for name, file in sorted(held.keys() ^ listed.items()) if listed else ():
        found = (name, file) in held
        fault = "does not list it" if found else "lists it, the file does not hold it"
        raise InputError(f"{root / file}: tensor {name}: {WEIGHTS_INDEX} {fault}")
    for (name, file), (shape, dtype) in held.items():
        if name.endswith(".rotary_emb.inv_freq") or (tied and name == "lm_head.weight"):
            continue
        if name not in wanted:
            fault = f"has no place in the model that {CONFIG} describes"
        elif shape != wanted[name]:
            fault = f"must have shape {wanted[name]} by {CONFIG}"
        elif dtype not in _STORED_DTYPES:
            fault = f"has dtype {dtype}, not supported: {', '.join(_STORED_DTYPES)} are"
        else:
            continue
        raise InputError(f"{root / file}: tensor {name} of shape {shape} {fault}")
    files = {name: root / file for name, file in held}
    missing = [name for name in wanted if name not in files]
    if missing:
        raise InputError(
            f"{root}: tensor {missing[0]} of shape {wanted[missing[0]]}, which {CONFIG} asks for, "
            f"is missing from the weights ({len(missing)} missing in all)"
        )
    return files


def _read(file: pathlib.Path, name: str, index: tuple[slice, ...]) -> np.ndarray:
    # Opened for each read: pages of a file kept mapped count as memory until it is closed.
    try:
        with safetensors.safe_open(file, framework="numpy") as handle:
            return handle.get_slice(name)[index]
    except (OSError, safetensors.SafetensorError) as error:
        raise unreadable(file, f"tensor {name} cannot be read", error) from None


def save(
    model: Decoder,
    params: dict,
    directory: str | os.PathLike,
    like: str | os.PathLike | None = None,
    dtype: str | None = None,
) -> None:
    """Writes a directory that torch `transformers` loads with the same logits.

    It appears whole or not at all: it is written beside `directory` and renamed. One that `save`
    made before is replaced, nothing else ever is. Of several processes all must call it: tensors
    are gathered one by one, the first one writes.

    Args:
        like: a model directory whose config.json is kept but for the dtype, and whose tokenizer,
            chat template and generation files are copied. May be `directory` itself.
        dtype: of the stored parameters, "float32" or "bfloat16"; None: their own.

    Raises:
        InputError: `directory` is in use by something else (`check_target`), or `like` describes
            another model.
        ValueError: `params` is not a parameter tree of `model`, or `model` is a critic.
    """
    target = check_target(directory)
    if model.head != "lm":
        raise ValueError(f"only a decoder with head 'lm' can be saved, not {model.head!r}")
    shapes, arrays = _parameter_shapes(model), flax.traverse_util.flatten_dict(params)
    for path in sorted(shapes.keys() | arrays.keys()):
        given, own = (jnp.shape(arrays[path]) if path in arrays else None), shapes.get(path)
        if given != own:
            raise ValueError(f"parameter {'/'.join(path)} has shape {given}, the model's has {own}")
    dtype = dtype or jnp.dtype(params["embed"]["embedding"].dtype).name
    config = config_json(model.config, dtype, like)
    if jax.process_index() > 0:
        for path in shapes:  # its part of each gathering
            fetch(path, arrays[path])
        return
    with replacing(target) as scratch:
        write_json(scratch / CONFIG, config)
        _write_weights(scratch, {path: arrays[path] for path in shapes}, dtype)
        if like is not None:
            sources = (existing_directory(like) / name for name in TOKENIZER_FILES)
            for source in filter(pathlib.Path.is_file, sources):
                shutil.copyfile(source, scratch / source.name)


def check_target(directory: str | os.PathLike) -> pathlib.Path:
    """The resolved path if `save` may write there; InputError if it did not make what is there."""
    target = pathlib.Path(directory).expanduser().resolve()
    names = sorted(os.listdir(target)) if target.is_dir() else []
    if not target.exists() or (target.is_dir() and not names):
        return target
    if CONFIG not in names or read_json(target / CONFIG).get(MARK[0]) != MARK[1]:
        raise InputError(
            f"{target}: exists and is no model saved by {MARK[1]}, so it is not written over; "
            "give a new directory"
        )
    for name in names:
        weights = fnmatch.fnmatch(name, "model*.safetensors*")
        if not weights and name not in (CONFIG, *TOKENIZER_FILES):
            raise InputError(
                f"{target}: holds {name}, which would be lost; move it or give a new directory"
            )
    return target


def _write_weights(folder: pathlib.Path, arrays: dict[ParamPath, jax.Array], dtype: str) -> None:
    tensors = {tensor_name(path): (path, x) for path, x in arrays.items()}
    split = split_state_dict_into_shards_factory(
        tensors,
        get_storage_size=lambda tensor: tensor[1].size * jnp.dtype(dtype).itemsize,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=SHARD_BYTES,
    )
    for file, names in split.filename_to_tensors.items():
        values = {name: fetch(*tensors[name]).astype(dtype, copy=False) for name in names}
        # One key only: the order of several would differ between runs, and so would the bytes.
        safetensors.numpy.save_file(values, folder / file, metadata={"format": "pt"})
        shutil.copymode(folder / CONFIG, folder / file)  # safetensors writes for the owner alone
    if split.is_sharded:
        weight_map = dict(sorted(split.tensor_to_filename.items()))
        write_json(folder / WEIGHTS_INDEX, {"metadata": split.metadata, "weight_map": weight_map})


def fetch(path: ParamPath, x: jax.Array) -> np.ndarray:
    """A tensor on the host, as torch has it; of several processes all must call it."""
    # A jax array keeps the host copy made of it; a passing copy on the device takes it away again.
    passing = jnp.transpose(x, _torch_order(path, tuple(range(x.ndim)))).copy()
    if not passing.is_fully_addressable:
        passing = multihost_utils.process_allgather(passing, tiled=True)
    return np.ascontiguousarray(passing)


def write_json(path: pathlib.Path, content: dict) -> None:
    """As transformers does, indented."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


@contextlib.contextmanager
def replacing(target: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder to fill, which then is `target`; what was there goes once the new one is there."""
    scratch = target.with_name(f".{target.name}.{os.getpid()}.partial")
    shutil.rmtree(scratch, ignore_errors=True)
    old = scratch.with_suffix(".old")
    try:
        scratch.mkdir(parents=True)
        yield scratch
        if target.exists():
            target.rename(old)
        try:
            scratch.rename(target)
        except BaseException:
            if old.exists():
                old.rename(target)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def model_digest(directory: str | os.PathLike, weights_only: bool = False) -> str:
    """Sixteen hex digits that tell two models apart, without reading gigabytes.

    Of weight files they take the size and both ends: training moves every tensor.
    """
    root, digest = existing_directory(directory), hashlib.sha256()
    for path in sorted(root.iterdir()):
        if path.name in (CONFIG, *TOKENIZER_FILES) and not weights_only:
            digest.update(path.name.encode() + path.read_bytes())
        elif path.suffix == ".safetensors":
            size = path.stat().st_size
            digest.update(f"{path.name} {size}".encode())
            with path.open("rb") as file:
                digest.update(file.read(2**20))
                file.seek(max(size - 2**20, 0))
                digest.update(file.read(2**20))
    return digest.hexdigest()[:16]
