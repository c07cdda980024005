"""A PEFT adapter directory <-> the adapters of a decoder: `peft`'s LoRA, as torch loads it."""

import os
import pathlib
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from remix_jax.errors import InputError
from remix_jax.models.decoder import Decoder, abstract_params
from remix_jax.models.hf_config import existing_directory, read_json, unreadable
from remix_jax.models.huggingface import fetch, model_digest, replacing, tensor_name, write_json
from remix_jax.models.lora import LEAVES, Lora, Path
from remix_jax.sharding import spec_of

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_OURS = "remix.json"  # what PEFT has no place for
_BASE = "base_weights_digest"
_LETTERS = dict(zip(LEAVES, "AB", strict=True))
_PREFIX = "base_model.model."
# What PEFT can do beside and this decoder cannot: the one value that is supported.
_PLAIN = {
    "use_dora": False,
    "use_rslora": False,
    "fan_in_fan_out": False,
    "bias": "none",
    "modules_to_save": None,
    "rank_pattern": {},
    "alpha_pattern": {},
    "lora_bias": False,
    "trainable_token_indices": None,
}


def _name(path: Path) -> str:
    """Of ("layers_0", "q", "lora_a"): "base_model.model." and torch's name, ".lora_A.weight"."""
    module = tensor_name((*path[:-1], "kernel")).removesuffix("weight")
    return f"{_PREFIX}{module}lora_{_LETTERS[path[-1]]}.weight"


def save(lora: Lora, adapters: dict, directory: str | os.PathLike, base: str | os.PathLike) -> None:
    """Writes a directory that torch `peft` loads onto the model of the directory `base`.

    As `huggingface.save` it appears whole or not at all, and never in the place of something else;
    of several processes all must call it.

    Raises:
      InputError: as `check_target`.
    """
    target = check_target(directory)
    flat = flax.traverse_util.flatten_dict(adapters)
    tensors = {_name(path): fetch(path, x) for path, x in flat.items() if path[-1] in LEAVES}
    if jax.process_index() > 0:
        return
    modules = sorted({name.removeprefix(_PREFIX).rpartition(".lora_")[0] for name in tensors})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": os.fspath(base),
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "target_modules": modules,
        "inference_mode": True,
        **_PLAIN,
    }
    with replacing(target) as scratch:
        write_json(scratch / CONFIG, config)
        write_json(scratch / _OURS, {_BASE: model_digest(base, weights_only=True)})
        safetensors.numpy.save_file(tensors, scratch / WEIGHTS, metadata={"format": "pt"})
        (scratch / WEIGHTS).chmod((scratch / CONFIG).stat().st_mode)  # or the owner's alone


def check_target(directory: str | os.PathLike) -> pathlib.Path:
    """The resolved path if `save` may write there; InputError if something else is there."""
    target = pathlib.Path(directory).expanduser().resolve()
    if target.exists():
        names = {path.name for path in target.iterdir()} if target.is_dir() else {target.name}
        if other := names - {CONFIG, WEIGHTS, _OURS}:
            raise InputError(
                f"{target}: holds {min(other)}, which would be lost; move it or give a new "
                "directory"
            )
    return target


def read_lora(directory: str | os.PathLike) -> Lora:
    """Rank, alpha and targets of an adapter directory.

    Raises:
      InputError: no such directory, or a kind of adapter that this decoder does not support.
    """
    where = existing_directory(directory) / CONFIG
    raw = read_json(where)
    if raw.get("peft_type") != "LORA":
        raise InputError(f"{where}: peft_type is {raw.get('peft_type')!r}; only LORA is supported")
    for field, plain in _PLAIN.items():
        if (raw.get(field) or plain) != plain:
            raise InputError(f"{where}: {field} is {raw[field]!r}; only {plain!r} is supported")
    rank, alpha = raw.get("r"), raw.get("lora_alpha")
    if type(rank) is not int or rank < 1 or not isinstance(alpha, int | float) or alpha <= 0:
        raise InputError(f"{where}: r = {rank!r}, lora_alpha = {alpha!r}: must be above 0")
    return Lora(rank, float(alpha))


def load(
    model: Decoder,
    directory: str | os.PathLike,
    base: str | os.PathLike,
    mesh: jax.sharding.Mesh | None = None,
) -> dict:
    """The adapters of a directory, float32, on the default device or divided over a mesh.

    Args:
      model: with adapters (`DecoderConfig.lora`), of the rank, alpha and targets of those there.
      base: the directory of the model that they are to adapt.

    Raises:
      InputError: as `read_lora`; or a file is missing or damaged, or the adapters are others than
        the model's, or were trained on other weights.
    """
    root, lora = existing_directory(directory), model.config.lora
    assert lora is not None, "a model with adapters"
    saved = read_lora(root)
    for field in ("rank", "alpha"):
        theirs, ours = getattr(saved, field), getattr(lora, field)
        if theirs != ours:
            raise InputError(
                f"config.lora.{field} = {ours:g}: the adapter in {root} has {theirs:g}; "
                f"set --config.lora.{field}={theirs:g}"
            )
    leaves = flax.traverse_util.flatten_dict(abstract_params(model))
    wanted = {_name(path): (path, x.shape) for path, x in leaves.items() if path[-1] in LEAVES}
    trained_on = read_json(root / _OURS, missing_ok=True).get(_BASE)
    own = model_digest(base, weights_only=True)
    if trained_on not in (None, own):
        raise InputError(
            f"{root}: these adapters were trained on other weights ({trained_on}) than those in "
            f"{base} ({own}): config.model.path must name the same model"
        )
    tensors = _tensors(root / WEIGHTS)
    for name in sorted(wanted.keys() ^ tensors.keys()):
        module = name.removeprefix(_PREFIX).rpartition(".lora_")[0]
        fault = "has an adapter, and this run's model none there"
        if name in wanted:
            fault = "has no adapter, and this run's model one there"
        raise InputError(
            f"{root / WEIGHTS}: {module} {fault}: config.lora.targets = {lora.targets!r} must name "
            "the same matrices of the layers"
        )
    adapters = {}
    for name, (path, shape) in wanted.items():
        if tensors[name].shape != shape[::-1]:
            raise InputError(
                f"{root / WEIGHTS}: tensor {name} has shape {tensors[name].shape}, the model in "
                f"{base} asks for {shape[::-1]}: these are adapters of another model"
            )
        adapters[path] = _placed(path, tensors[name].T.astype(np.float32), mesh)
    return flax.traverse_util.unflatten_dict(adapters)


def _placed(path: Path, value: np.ndarray, mesh: jax.sharding.Mesh | None) -> jax.Array:
    if mesh is None:
        return jnp.asarray(value)
    where = jax.sharding.NamedSharding(mesh, spec_of("/".join(path), value.shape, mesh))
    return jax.make_array_from_callback(value.shape, where, lambda index: value[index])


def _tensors(file: pathlib.Path) -> dict[str, np.ndarray[Any, Any]]:
    try:
        with safetensors.safe_open(file, framework="numpy") as handle:
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as error:
        raise unreadable(file, "missing or damaged weights", error) from None
    for name, x in tensors.items():
        if not np.isfinite(x.astype(np.float32)).all():
            raise InputError(f"{file}: tensor {name} holds NaN or infinity")
    return tensors
