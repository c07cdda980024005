"""A model directory's config.json <-> `DecoderConfig`, and JSON files read with one-line errors.

Both spellings are read: rope_theta, rope_scaling, torch_dtype (transformers 4) and rope_parameters,
dtype (transformers 5). What this decoder does not support is refused by name, never ignored.
"""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import re
from typing import Any

import huggingface_hub

from remix_jax.errors import InputError
from remix_jax.models.decoder import DecoderConfig, RopeScaling
from remix_jax.text import one_line

CONFIG = "config.json"
MARK = ("saved_by", "remix_jax")  # in the config.json of every directory that we saved
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "merges.txt", "tokenizer.model"]
ARCHITECTURES = {name: f"{name.title()}ForCausalLM" for name in ("qwen2", "qwen3", "llama")}
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

    `dtype` of the result stays float32: what a model computes in is the run's choice.

    Raises:
        InputError: no such directory, damaged file, or a field that this decoder does not support.
    """
    where = existing_directory(directory) / CONFIG
    raw = _given(read_json(where))
    _check_supported(raw, where)
    kind, heads = raw["model_type"], _number(raw, "num_attention_heads", where)
    head_dim = 128 if kind == "qwen3" else max(_number(raw, "hidden_size", where) // heads, 1)
    usual = {"num_key_value_heads": heads, "head_dim": head_dim, "rms_norm_eps": 1e-6}
    numbers = {
        ours: _number(usual | raw, name, where, type_) for ours, (name, type_) in _NUMBERS.items()
    }
    kv_heads, head_dim = numbers["kv_heads"], numbers["head_dim"]
    if heads % kv_heads:
        fault = f"num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}"
        raise InputError(f"{where}: {fault}")
    if head_dim % 2:
        raise InputError(f"{where}: head_dim is {head_dim}; rotary positions need an even number")
    theta, scaling = _rope(raw, where)
    return DecoderConfig(
        architecture=kind,
        **numbers,
        rope_theta=theta,
        rope_scaling=scaling,
        tied_embeddings=bool(raw.get("tie_word_embeddings")),
        qkv_bias=kind == "qwen2",
        qk_norm=kind == "qwen3",
    )


def config_json(config: DecoderConfig, dtype: str, like: str | os.PathLike | None) -> dict:
    """A config.json for weights of that dtype: `like`'s, else one that transformers 4 and 5 and
    vLLM read. `InputError` where `like` describes another model.
    """
    scaling, architectures = config.rope_scaling, [ARCHITECTURES[config.architecture]]
    if like is None:
        raw = {
            "architectures": architectures,
            "model_type": config.architecture,
            **{name: getattr(config, ours) for ours, (name, _) in _NUMBERS.items()},
            "hidden_act": "silu",
            "rope_theta": config.rope_theta,
            "rope_scaling": scaling and {"rope_type": "llama3", **dataclasses.asdict(scaling)},
            "tie_word_embeddings": config.tied_embeddings,
            "attention_dropout": 0.0,
            "bos_token_id": None,
            "eos_token_id": None,
            "torch_dtype": dtype,
        }
    else:
        chosen = {"dtype": config.dtype, "execution": config.execution}  # of the run, not the model
        for name, theirs in (vars(read_config(like)) | chosen).items():
            ours = getattr(config, name)
            if theirs != ours:
                raise InputError(
                    f"{like}: {CONFIG} describes another model: {name} is {theirs!r}, "
                    f"that of the model to save is {ours!r}"
                )
        raw = read_json(existing_directory(like) / CONFIG) | {"architectures": architectures}
    spellings = [key for key in ("torch_dtype", "dtype") if key in raw] or ["dtype"]
    return raw | dict.fromkeys(spellings, dtype) | {MARK[0]: MARK[1]}


def existing_directory(directory: str | os.PathLike) -> pathlib.Path:
    """`directory` as a path; ORG/NAME where there is no folder ORG is fetched from the Hub.

    Raises:
        InputError: there is none, or it is a run's directory.
    """
    path = pathlib.Path(directory).expanduser()
    if _HUB_ID.fullmatch(os.fspath(directory)) and not path.parent.exists():
        return _fetched(os.fspath(directory))
    if (path / "export" / CONFIG).is_file() and not (path / "tokenizer.json").exists():
        raise InputError(f"{path}: is the directory of a run; its model is {path / 'export'}")
    if not path.is_dir():
        raise InputError(
            f"{path}: no such model directory; it must be a local folder with {CONFIG}, "
            "model.safetensors and tokenizer.json"
        )
    return path


@functools.cache
def _fetched(name: str) -> pathlib.Path:
    """Where the Hub's cache holds a model; what is there already is not fetched again."""
    try:
        return pathlib.Path(huggingface_hub.snapshot_download(name, allow_patterns=_HUB_FILES))
    except Exception as error:  # of the network, the Hub or the disk
        raise InputError(
            f"{name}: no such model directory, and the Hub does not give it "
            f"({one_line(error)}); where it does: hf download {name} --local-dir {name}"
        ) from None


def read_json(path: pathlib.Path, missing_ok: bool = False) -> dict:
    """The object in a JSON file, `InputError` if it is missing, damaged or no object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if missing_ok:
            return {}
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError, RecursionError) as error:  # ValueError: bad UTF-8 or bad JSON
        raise unreadable(path, "not readable as JSON", error) from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: must hold a JSON object, holds a {type(content).__name__}")
    return content


def unreadable(path: pathlib.Path, fault: str, error: Exception) -> InputError:
    """What to raise where a file cannot be read."""
    what = one_line(error)
    with contextlib.suppress(OSError), path.open("rb") as file:
        if file.read(23) == b"version https://git-lfs":
            what = "it is a Git LFS pointer: run `git lfs pull` there"
    return InputError(f"{path}: {fault} ({what})")


def _given(fields: dict) -> dict:
    """The fields that say something: null and empty ones are as good as absent."""
    return {name: value for name, value in fields.items() if value not in (None, [], {})}


def _check_supported(raw: dict, where: pathlib.Path) -> None:
    kind = raw.get("model_type")
    _only(where, "model_type", kind, list(ARCHITECTURES))
    switch: list = [True, False, None]
    supported: dict[str, list] = {
        "architectures": [[ARCHITECTURES[str(kind)]], None],
        "hidden_act": ["silu", None],
        "quantization_config": [None],
        "tie_word_embeddings": switch,
        "use_sliding_window": switch,
    }
    if kind != "qwen2":  # which has biases on q, k and v whatever these fields say
        supported |= {"attention_bias": [False, None], "mlp_bias": [False, None]}
    for field, values in supported.items():
        _only(where, f"{kind}'s {field}", raw.get(field), values)
    types = raw.get("layer_types", [])
    for layer in types if isinstance(types, list) else [types]:
        _only(where, "layer_types", layer, ["full_attention"])
    # Windows that are in use; the fields alone are in every Qwen2 file.
    if not types and raw.get("use_sliding_window") and "sliding_window" in raw:
        full, layers = raw.get("max_window_layers"), _number(raw, "num_hidden_layers", where)
        _only(where, "use_sliding_window", not isinstance(full, int) or full < layers, [False])


def _only(where: pathlib.Path, name: str, value: Any, supported: list) -> None:
    """Refuses a value that is not supported."""
    if value not in supported:
        given, possible = json.dumps(value)[:80], (json.dumps(x).strip('"') for x in supported)
        fault = f"{name} {given} is not supported; it can be {', '.join(possible)}"
        raise InputError(f"{where}: {fault}")


def _rope(raw: dict, where: pathlib.Path) -> tuple[float, RopeScaling | None]:
    """Theta, the base of the wavelengths, and Llama 3's scaling, from either spelling."""
    field = "rope_scaling" if "rope_scaling" in raw else "rope_parameters"
    rope = raw.get(field, {})
    if not isinstance(rope, dict) or any(isinstance(value, dict) for value in rope.values()):
        raise InputError(f"{where}: {field} is not supported; it can be one object for all layers")
    rope, original = _given(rope), "original_max_position_embeddings"
    for scope in (raw, rope):
        _only(where, "partial_rotary_factor", scope.get("partial_rotary_factor"), [1, None])
    scope = {"rope_theta": 1e4, original: raw.get("max_position_embeddings")} | raw | rope
    theta, inside = _number(scope, "rope_theta", where, float), f"{where}: {field}"
    kind = rope.get("rope_type") or rope.get("type") or "default"
    _only(where, f"{field}: rope_type", kind, ["default", "llama3"])
    if kind == "default":
        return theta, None
    names = ("factor", "low_freq_factor", "high_freq_factor")
    numbers = {name: _number(rope, name, inside, float) for name in names}
    scaling = RopeScaling(**numbers | {original: _number(scope, original, inside)})
    if scaling.high_freq_factor <= scaling.low_freq_factor:
        raise InputError(f"{inside}: high_freq_factor must be greater than low_freq_factor")
    return theta, scaling


def _number(scope: dict, name: str, where: object, kind: type = int) -> Any:
    """The positive number `scope[name]`."""
    value = scope.get(name)
    if value is None:
        raise InputError(f"{where}: field {name} is missing")
    sane = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 2**63
    if not sane or kind(value) != value:
        wanted = "a positive integer" if kind is int else "a positive number"
        raise InputError(f"{where}: field {name} is {value!r}; it must be {wanted}")
    return kind(value)
