"""Model directories of a few kilobytes that the tests make for themselves."""

import json

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers, processors

from remix_jax.models.decoder import Decoder, DecoderConfig

SPECIAL = ("<pad>", "<s>", "<end>", "<unk>")
PAD, BOS, END, UNK = range(4)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] + ':' + m['content'] + '<end>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'a:' }}{% endif %}"
)
VOCABULARY = [*SPECIAL, *"\n abcdefghijklmnopqrstuvwxyz0123456789+-*/=?:.,ABC"]
ROWS = 60  # of the embedding; some beyond the vocabulary, as in real checkpoints


def char_tokenizer() -> Tokenizer:
    """One token a character, and a post-processor that puts <s> in front of plain text."""
    vocabulary = {token: i for i, token in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", BOS)])
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    return tokenizer


def write_tokenizer(folder, tokenizer=None, **settings):
    """tokenizer.json and tokenizer_config.json; a setting of None removes it."""
    folder.mkdir(parents=True, exist_ok=True)
    (tokenizer or char_tokenizer()).save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "<pad>",
        "bos_token": "<s>",
        "eos_token": "<end>",
        "unk_token": "<unk>",
        "chat_template": CHAT_TEMPLATE,
    }
    config = {k: v for k, v in (config | settings).items() if v is not None}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def decoder_config(**changes) -> DecoderConfig:
    sizes = {"vocab_size": ROWS, "width": 16, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 4}
    rope = {"rope_theta": 1e4, "rope_scaling": None, "max_positions": 128, "norm_eps": 1e-6}
    switches = {"tied_embeddings": True, "qkv_bias": True, "qk_norm": False}
    defaults = {"architecture": "qwen2", "ffn_width": 24, **sizes, **rope, **switches}
    return DecoderConfig(**{**defaults, **changes})


def random_decoder(config: DecoderConfig, seed: int = 0):
    """A decoder whose every parameter, norms and biases too, is far from its initial value."""
    model = Decoder(config)
    slot = jnp.zeros((1, 1), jnp.int32)
    params = model.init(jax.random.key(seed), slot, slot, slot)["params"]
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(seed)
    noise = [jnp.asarray(rng.normal(0, 0.3, x.shape), jnp.float32) for x in leaves]
    return model, jax.tree.unflatten(tree, [x + n for x, n in zip(leaves, noise, strict=True)])


def edit_json(path, **changes):
    """Sets fields of a JSON file; a value of `...` removes the field."""
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))
