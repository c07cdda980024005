"""A model directory's config.json <-> `DecoderConfig`, and JSON files read with one-line errors.

Both spellings are read: rope_theta, rope_scaling, torch_dtype (transformers 4) and rope_parameters,
dtype (transformers 5). What this decoder does not support is refused by name, never ignored.
"""

import contextlib
import dataclasses
import json
import math
import os
import pathlib
from typing import Any

from remix_jax.errors import InputError
from remix_jax.models.decoder import DecoderConfig, RopeScaling
from remix_jax.text import one_line

CONFIG = "config.json"
ARCHITECTURES = {
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "llama": "LlamaForCausalLM",
}
# Fields of `DecoderConfig` that are numbers -> their key in config.json, and of what kind they are.
_NUMBERS = {
    "vocab_size": ("vocab_size", int),
    "width": ("hidden_size", int),
    "layers": ("num_hidden_layers", int),
    "heads": ("num_attention_heads", int),
    "kv_heads": ("num_key_value_heads", int),
    "head_dim": ("head_dim", int),
    "ffn_width": ("intermediate_size", int),
    "max_positions": ("max_position_embeddings", int),
    "norm_eps": ("rms_norm_eps", float),
}


def read_config(directory: str | os.PathLike) -> DecoderConfig:
    """Sizes and switches of the model in `directory`, from its config.json.

    `dtype` of the result stays float32: what a model computes in is the run's choice, not the
    checkpoint's.

    Raises:
        InputError: no such directory, damaged file, or a field that this decoder does not support.
    """
    where = existing_directory(directory) / CONFIG
    raw = read_json(where)
    _check_supported(raw, where)
    architecture = raw["model_type"]
    heads = _number(raw, "num_attention_heads", where)
    head_dim = max(_number(raw, "hidden_size", where) // heads, 1)
    usual = {
        "num_key_value_heads": heads,
        "head_dim": 128 if architecture == "qwen3" else head_dim,
        "rms_norm_eps": 1e-6,
    }
    numbers = {
        ours: _number(raw, name, where, kind, usual.get(name))
        for ours, (name, kind) in _NUMBERS.items()
    }
    if heads % numbers["kv_heads"]:
        raise InputError(
            f"{where}: num_attention_heads {heads} is no multiple of num_key_value_heads "
            f"{numbers['kv_heads']}"
        )
    if numbers["head_dim"] % 2:
        raise InputError(
            f"{where}: head_dim is {numbers['head_dim']}; rotary positions need an even number"
        )
    theta, scaling = _rope(raw, where)
    return DecoderConfig(
        architecture=architecture,
        **numbers,
        rope_theta=theta,
        rope_scaling=scaling,
        tied_embeddings=bool(raw.get("tie_word_embeddings")),
        qkv_bias=architecture == "qwen2",
        qk_norm=architecture == "qwen3",
    )


def plain_config(config: DecoderConfig) -> dict:
    """The content of a config.json, spelled as transformers 4, 5 and vLLM all read it."""
    scaling = config.rope_scaling
    return {
        "architectures": [ARCHITECTURES[config.architecture]],
        "model_type": config.architecture,
        **{name: getattr(config, ours) for ours, (name, _) in _NUMBERS.items()},
        "hidden_act": "silu",
        "rope_theta": config.rope_theta,
        "rope_scaling": scaling and {"rope_type": "llama3", **dataclasses.asdict(scaling)},
        "tie_word_embeddings": config.tied_embeddings,
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "eos_token_id": None,
        "torch_dtype": config.dtype,
    }


def existing_directory(directory: str | os.PathLike) -> pathlib.Path:
    """`directory` as a path, `InputError` if there is none or it is a run's directory."""
    path = pathlib.Path(directory).expanduser()
    if (path / "export" / CONFIG).is_file() and not (path / "tokenizer.json").exists():
        raise InputError(f"{path}: is the directory of a run; its model is {path / 'export'}")
    if not path.is_dir():
        raise InputError(
            f"{path}: no such model directory; it must be a local folder with {CONFIG}, "
            "model.safetensors and tokenizer.json"
        )
    return path


def read_json(path: pathlib.Path) -> dict:
    """The object in a JSON file, `InputError` if it is missing, damaged or no object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError, RecursionError) as error:  # ValueError: bad UTF-8 or bad JSON
        raise InputError(f"{path}: not readable as JSON ({what_it_is(path, error)})") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: must hold a JSON object, holds a {type(content).__name__}")
    return content


def what_it_is(path: pathlib.Path, error: Exception) -> str:
    """One line on a file that cannot be read."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        if file.read(23) == b"version https://git-lfs":
            return "it is a Git LFS pointer: run `git lfs pull` there"
    return one_line(error)


def _check_supported(raw: dict, where: pathlib.Path) -> None:
    kind, types = raw.get("model_type"), raw.get("layer_types")
    _only(where, "model_type", kind, list(ARCHITECTURES))
    wanted = [ARCHITECTURES[str(kind)]]
    _only(where, f"{kind}'s architectures", raw.get("architectures") or wanted, [wanted])
    _only(where, "hidden_act", raw.get("hidden_act", "silu"), ["silu"])
    _only(where, "quantization_config", raw.get("quantization_config") or None, [None])
    for field in ("tie_word_embeddings", "use_sliding_window"):
        _only(where, field, raw.get(field), [True, False, None])
    # Qwen2 has its biases on q, k and v whatever these fields say.
    for field in () if kind == "qwen2" else ("attention_bias", "mlp_bias"):
        _only(where, f"{kind}'s {field}", raw.get(field), [False, None])
    # Windows that are in use; the fields alone are in every Qwen2 file.
    if types is not None:
        for layer in types if isinstance(types, list) else [types]:
            _only(where, "layer_types", layer, ["full_attention"])
    elif raw.get("use_sliding_window") and raw.get("sliding_window") is not None:
        full, layers = raw.get("max_window_layers"), _number(raw, "num_hidden_layers", where)
        _only(where, "use_sliding_window", not isinstance(full, int) or full < layers, [False])


def _only(where: pathlib.Path, name: str, value: Any, supported: list) -> None:
    """Refuses a value that is not supported."""
    if value not in supported:
        spelled = (each if isinstance(each, str) else json.dumps(each) for each in supported)
        raise InputError(
            f"{where}: {name} {json.dumps(value)[:80]} is not supported; "
            f"it can be {', '.join(spelled)}"
        )


def _rope(raw: dict, where: pathlib.Path) -> tuple[float, RopeScaling | None]:
    """Theta, the base of the wavelengths, and Llama 3's scaling, from either spelling."""
    field = "rope_scaling" if raw.get("rope_scaling") else "rope_parameters"
    rope = raw.get(field) or {}
    if not isinstance(rope, dict) or any(isinstance(value, dict) for value in rope.values()):
        raise InputError(f"{where}: {field} is not supported; it can be one object for all layers")
    for scope in (raw, rope):
        _only(where, "partial_rotary_factor", scope.get("partial_rotary_factor"), [1, None])
    scope = raw if rope.get("rope_theta") is None else rope
    theta = _number(scope, "rope_theta", where, float, default=1e4)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    _only(where, f"{field}: rope_type", kind, ["default", "llama3"])
    if kind == "default":
        return theta, None
    inside = f"{where}: {field}"
    original = "original_max_position_embeddings"
    usual = raw.get(original) or raw.get("max_position_embeddings")
    scaling = RopeScaling(
        _number(rope, "factor", inside, float),
        _number(rope, "low_freq_factor", inside, float),
        _number(rope, "high_freq_factor", inside, float),
        _number(rope, original, inside, default=usual),
    )
    if scaling.high_freq_factor <= scaling.low_freq_factor:
        raise InputError(f"{inside}: high_freq_factor must be greater than low_freq_factor")
    return theta, scaling


def _number(scope: dict, name: str, where: object, kind: type = int, default: Any = None) -> Any:
    """The positive number `scope[name]`, or `default` where it is absent or null."""
    value = default if scope.get(name) is None else scope[name]
    if value is None:
        raise InputError(f"{where}: field {name} is missing")
    sane = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not sane or value <= 0 or kind(value) != value:
        wanted = "a positive integer" if kind is int else "a positive number"
        raise InputError(f"{where}: field {name} is {value!r}; it must be {wanted}")
    return kind(value)
