"""The tokenizer of a model directory, and the ids at which its model stops."""

import os
import pathlib
from typing import TYPE_CHECKING, Any, NamedTuple

from remix_jax.errors import InputError
from remix_jax.models.hf_config import CONFIG, existing_directory, read_json
from remix_jax.text import one_line

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
    """The tokenizer of a model directory with its end and padding ids."""
    tokenizer = load_tokenizer(directory)
    return Vocabulary(tokenizer, eos_ids(directory, tokenizer), pad_id(tokenizer))


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
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(
            str(root), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # the Rust side raises bare Exception
        raise InputError(f"{root}: damaged tokenizer files ({one_line(error)})") from None
    if not tokenizer.chat_template:
        raise InputError(
            f"{root}: tokenizer has no chat template; {TOKENIZER_CONFIG} can hold one as "
            "chat_template, or a file chat_template.jinja"
        )
    message = [{"role": "user", "content": "1"}]
    try:
        tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
    except Exception as error:  # a template can fail in any way that Python can
        raise InputError(
            f"{root}: chat template does not render one user message ({one_line(error)})"
        ) from None
    size = _vocab_size(root)
    token, largest = max(tokenizer.get_vocab().items(), key=lambda item: item[1], default=("", -1))
    if size is not None and largest >= size:
        raise InputError(
            f"{root}: token {token!r} has id {largest}, but the model's vocab_size is {size}; "
            "ids must be below it"
        )
    return tokenizer


def eos_ids(directory: str | os.PathLike, tokenizer: "PreTrainedTokenizerFast") -> tuple[int, ...]:
    """Every token id that ends a response: those of generation_config.json, else of config.json,
    and the tokenizer's own, which a model tuned on chats ends with whatever those files say.

    Raises:
        InputError: none of the three names one, or one is no token id of the model.
    """
    root, found = existing_directory(directory), list[int]()
    size = _vocab_size(root)
    for path in (root / GENERATION_CONFIG, root / CONFIG):
        value = read_json(path).get("eos_token_id") if path.is_file() and not found else None
        for i in value if isinstance(value, list) else [] if value is None else [value]:
            if type(i) is not int or not 0 <= i < (size or i + 1):
                raise InputError(
                    f"{path}: eos_token_id is {value!r}; it must be a token id or a list of them"
                    f"{f', below vocab_size {size}' if size else ''}"
                )
            found.append(i)
    if tokenizer.eos_token_id is not None:
        found.append(tokenizer.eos_token_id)
    if not found:
        raise InputError(
            f"{root}: no end-of-sequence token; {GENERATION_CONFIG} can name it as eos_token_id"
        )
    return tuple(dict.fromkeys(found))


def pad_id(tokenizer: "PreTrainedTokenizerFast") -> int:
    """The id that fills empty slots: the pad token's, else the end-of-sequence token's.

    Raises:
        InputError: the tokenizer has neither.
    """
    for candidate in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if candidate is not None:
            return candidate
    raise InputError(
        f"{pathlib.Path(tokenizer.name_or_path) / TOKENIZER_CONFIG}: "
        "names neither pad_token nor eos_token; one is needed"
    )


def _vocab_size(root: pathlib.Path) -> int | None:
    """Of the model, where there is one beside the tokenizer."""
    rows = read_json(root / CONFIG).get("vocab_size") if (root / CONFIG).is_file() else None
    return rows if isinstance(rows, int) else None
