"""A model directory's config.json <-> `DecoderConfig`, and JSON files read with one-line errors.

Both spellings are read: rope_theta, rope_scaling, torch_dtype (transformers 4) and rope_parameters,
dtype (transformers 5). What this decoder does not support is refused by name, never ignored.
"""

import contextlib
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
# Ours -> Hugging Face's names of what every file must hold.
_SIZES = {
    "vocab_size": "vocab_size",
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "ffn_width": "intermediate_size",
    "max_positions": "max_position_embeddings",
}
_FACTORS = ("factor", "low_freq_factor", "high_freq_factor")  # of Llama 3's scaling, ours alike
_ORIGINAL = "original_max_position_embeddings"


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
    sizes = {ours: _number(raw, name, where) for ours, name in _SIZES.items()}
    width, heads = sizes["width"], sizes["heads"]
    kv_heads = _number(raw, "num_key_value_heads", where, default=heads)
    if heads % kv_heads:
        raise InputError(
            f"{where}: num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}"
        )
    usual = 128 if architecture == "qwen3" else max(width // heads, 1)
    head_dim = _number(raw, "head_dim", where, default=usual)
    if head_dim % 2:
        raise InputError(f"{where}: head_dim is {head_dim}; rotary positions need an even number")
    theta, scaling = _rope(raw, where)
    return DecoderConfig(
        architecture=architecture,
        **sizes,
        kv_heads=kv_heads,
        head_dim=head_dim,
        rope_theta=theta,
        rope_scaling=scaling,
        norm_eps=_number(raw, "rms_norm_eps", where, float, default=1e-6),
        tied_embeddings=_flag(raw, "tie_word_embeddings", where),
        qkv_bias=architecture == "qwen2",
        qk_norm=architecture == "qwen3",
    )


def plain_config(config: DecoderConfig) -> dict:
    """The content of a config.json, spelled as transformers 4, 5 and vLLM all read it."""
    scaling = None
    if config.rope_scaling is not None:
        values = {name: getattr(config.rope_scaling, name) for name in _FACTORS}
        original = config.rope_scaling.original_max_positions
        scaling = {"rope_type": "llama3", **values, _ORIGINAL: original}
    return {
        "architectures": [ARCHITECTURES[config.architecture]],
        "model_type": config.architecture,
        **{name: getattr(config, ours) for ours, name in _SIZES.items()},
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": scaling,
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
    kind = raw.get("model_type")
    _only(where, "model_type", kind, list(ARCHITECTURES))
    wanted = [ARCHITECTURES[str(kind)]]
    _only(where, f"{kind}'s architectures", raw.get("architectures") or wanted, [wanted])
    _only(where, "hidden_act", raw.get("hidden_act", "silu"), ["silu"])
    _only(where, "quantization_config", raw.get("quantization_config") or None, [None])
    # Qwen2 has its biases on q, k and v whatever these fields say.
    for field in () if kind == "qwen2" else ("attention_bias", "mlp_bias"):
        _only(where, f"{kind}'s {field}", _flag(raw, field, where), [False])
    # Windows that are in use; the fields alone are in every Qwen2 file.
    types = raw.get("layer_types")
    if types is not None:
        for layer in types if isinstance(types, list) else [types]:
            _only(where, "layer_types", layer, ["full_attention"])
    elif _flag(raw, "use_sliding_window", where) and raw.get("sliding_window") is not None:
        full, layers = raw.get("max_window_layers"), _number(raw, "num_hidden_layers", where)
        windowed = not isinstance(full, int) or full < layers
        _only(where, "use_sliding_window", windowed, [False])


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
    original = raw.get(_ORIGINAL) or raw.get("max_position_embeddings")
    scaling = RopeScaling(
        **{name: _number(rope, name, inside, float) for name in _FACTORS},
        original_max_positions=_number(rope, _ORIGINAL, inside, default=original),
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


def _flag(raw: dict, name: str, where: pathlib.Path) -> bool:
    value = raw.get(name)
    if value not in (None, False, True):
        raise InputError(f"{where}: field {name} is {value!r}; it must be true or false")
    return bool(value)
