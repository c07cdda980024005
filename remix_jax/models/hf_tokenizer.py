"""The tokenizer of a model directory, and the ids at which its model stops."""

import math
import os
import pathlib
from typing import TYPE_CHECKING, Any, NamedTuple

from remix_jax.errors import InputError
from remix_jax.models.hf_config import CONFIG, existing_directory, read_json, unreadable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
GENERATION_CONFIG = "generation_config.json"
TOKENIZER_FILES = (
    TOKENIZER,
    TOKENIZER_CONFIG,
    GENERATION_CONFIG,
    *("special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt"),
    *("tokenizer.model", "chat_template.jinja", "chat_template.json"),
)


class Vocabulary(NamedTuple):
    """A tokenizer and what of it the programs need as constants."""

    tokenizer: Any  # transformers.PreTrainedTokenizerFast
    eos_ids: tuple[int, ...]
    pad_id: int


def load_vocabulary(directory: str | os.PathLike) -> Vocabulary:
    """The tokenizer of a model directory with its end and padding ids.

    Ends are those of generation_config.json, else of config.json, and the tokenizer's own, which a
    model tuned on chats ends with whatever those files say. Padding is the pad token, else the end.

    Raises:
        InputError: as `load_tokenizer`; or there is no end or no padding, or an end is no token id.
    """
    root, tokenizer = existing_directory(directory), load_tokenizer(directory)
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    ends = _stated_ends(root) + ([] if eos is None else [eos])
    if not ends:
        raise InputError(
            f"{root}: no end-of-sequence token; {GENERATION_CONFIG} can name it as eos_token_id"
        )
    if pad is None and eos is None:
        raise InputError(
            f"{root / TOKENIZER_CONFIG}: names neither pad_token nor eos_token; one is needed"
        )
    return Vocabulary(tokenizer, tuple(dict.fromkeys(ends)), eos if pad is None else pad)


def load_tokenizer(directory: str | os.PathLike) -> "PreTrainedTokenizerFast":
    """The tokenizer that tokenizer.json describes, with a chat template that renders.

    The file is obeyed to the letter: `AutoTokenizer` would put the pre-tokenizer that goes with
    the config's model_type in place of the file's own. Nothing is fetched, no remote code is run.

    Raises:
        InputError: a file is missing or damaged, there is no chat template or it does not render,
            or the tokenizer has ids beyond the vocab_size of the config.json beside it.
    """
    # It would advise to install torch, which nothing here needs.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import PreTrainedTokenizerFast  # a second to import; few callers need it

    root = existing_directory(directory)
    for name in (TOKENIZER, TOKENIZER_CONFIG):
        read_json(root / name)  # names the file and the place of the damage
    fault = "damaged tokenizer files"
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(
            str(root), local_files_only=True, trust_remote_code=False
        )
        if tokenizer.chat_template:
            fault = "chat template does not render one user message"
            message = [{"role": "user", "content": "1"}]
            tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
    except Exception as error:  # the Rust side raises bare Exception, and a template any
        raise unreadable(root, fault, error) from None
    if not tokenizer.chat_template:
        raise InputError(
            f"{root}: tokenizer has no chat template; {TOKENIZER_CONFIG} can hold one as "
            "chat_template, or a file chat_template.jinja"
        )
    size = _vocab_size(root)
    token, largest = max(tokenizer.get_vocab().items(), key=lambda item: item[1], default=("", -1))
    if largest >= size:
        raise InputError(
            f"{root}: token {token!r} has id {largest}, but the model's vocab_size is {size}; "
            "ids must be below it"
        )
    return tokenizer


def _stated_ends(root: pathlib.Path) -> list[int]:
    """The end tokens that the first file to name any names."""
    size = _vocab_size(root)
    for path in (root / GENERATION_CONFIG, root / CONFIG):
        value = read_json(path, missing_ok=True).get("eos_token_id")
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if any(type(i) is not int or not 0 <= i < size for i in ids):
            wanted = "a token id of the model, below its vocab_size, or a list of them"
            raise InputError(f"{path}: eos_token_id is {value!r}; it must be {wanted}")
        if ids:
            return ids
    return []


def _vocab_size(root: pathlib.Path) -> float:
    """Of the model, if there is one beside the tokenizer; else no id is too large."""
    size = read_json(root / CONFIG, missing_ok=True).get("vocab_size")
    return size if isinstance(size, int) else math.inf
