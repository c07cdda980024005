"""A small random Qwen2 directory with a real byte-level BPE tokenizer, trained on given texts."""

import pathlib
from collections.abc import Sequence

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from remix_jax.models import huggingface
from tests import tiny_models

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Qwen2's own pattern: contractions, words, single digits, punctuation, spaces.
_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def bpe_tokenizer(texts: Sequence[str], vocabulary: int = 600) -> Tokenizer:
    """Byte-level BPE as Qwen2's, with its special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    return tokenizer


def write_model(folder: pathlib.Path, texts: Sequence[str]) -> pathlib.Path:
    """The directory, with both of Qwen2's end tokens in its generation_config.json."""
    tokenizer = bpe_tokenizer(texts)
    rows = tokenizer.get_vocab_size() + 8  # real checkpoints have more rows than tokens too
    sizes = {"vocab_size": rows, "width": 32, "ffn_width": 48, "head_dim": 8}
    model, params = tiny_models.random_decoder(
        tiny_models.decoder_config(**sizes, max_positions=2048)
    )
    huggingface.save(model, params, folder)
    names = {"pad_token": SPECIAL[0], "bos_token": None, "eos_token": SPECIAL[2]}
    tiny_models.write_tokenizer(
        folder, tokenizer, **names, unk_token=None, chat_template=CHAT_TEMPLATE
    )
    ends = [tokenizer.token_to_id(token) for token in (SPECIAL[2], SPECIAL[0])]
    (folder / "generation_config.json").write_text(f'{{"eos_token_id": {ends}}}')
    return folder
