"""Problems to token ids: the model's chat template, a length limit, padding on the left."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import numpy as np

from remix_jax.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclasses.dataclass(frozen=True)
class EncodedPrompts:
    """Prompts within the limit: `ids[j]` are of problem `indices[j]`; `dropped` were longer."""

    ids: list[list[int]]
    indices: list[int]
    dropped: int


def encode_prompts(
    tokenizer: "PreTrainedTokenizerFast",
    problems: Sequence[str],
    instruction: str,
    max_tokens: int,
) -> EncodedPrompts:
    """Each problem as one user message under the model's chat template, ready for the answer.

    The message is the problem's text, a space and `instruction` (the text alone where that is
    empty). The template writes the special tokens, so the tokenizer adds none. A prompt of more
    than `max_tokens` tokens is dropped and counted: a problem cut short is another problem.

    Raises:
        InputError: no problems, a limit below 1, a template that fails on a problem, or every
            prompt over the limit.
    """
    if not problems:
        raise InputError("there are no problems to make prompts of")
    if max_tokens < 1:
        raise InputError(f"the prompt limit is {max_tokens} tokens; it must be at least 1")
    encoded = [_encode(tokenizer, i, text, instruction) for i, text in enumerate(problems)]
    kept = [i for i, ids in enumerate(encoded) if len(ids) <= max_tokens]
    if not kept:
        raise InputError(
            f"all {len(encoded)} prompts are over the limit of {max_tokens} tokens; "
            f"the shortest has {min(map(len, encoded))}"
        )
    return EncodedPrompts([encoded[i] for i in kept], kept, len(encoded) - len(kept))


def pad_left(
    ids: Sequence[Sequence[int]], width: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray]:
    """Prompts as tokens_QP (int32, P = `width`, filled with `pad_id` on the left) and prompt_len_Q.

    Raises:
        ValueError: a prompt is empty or longer than `width`.
    """
    tokens_QP = np.full((len(ids), width), pad_id, np.int32)
    for row, prompt in zip(tokens_QP, ids, strict=True):
        if not 0 < len(prompt) <= width:
            raise ValueError(f"a prompt of {len(prompt)} tokens does not fit a width of {width}")
        row[width - len(prompt) :] = prompt
    return tokens_QP, np.array([len(prompt) for prompt in ids], np.int32)


def _encode(
    tokenizer: "PreTrainedTokenizerFast", index: int, text: str, instruction: str
) -> list[int]:
    message = {"role": "user", "content": f"{text} {instruction}" if instruction else text}
    try:
        ids = tokenizer.apply_chat_template(
            [message], add_generation_prompt=True, tokenize=True, return_dict=False
        )
    except Exception as error:  # a template can fail in any way that Python can
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"problem {index}: the chat template fails on it ({reason})") from None
    return cast(list[int], ids)
