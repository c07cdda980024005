"""Problems to token ids: the model's chat template, a length limit, padding on the left."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import numpy as np

from remix_jax.errors import InputError
from remix_jax.text import one_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Chat = list[dict[str, str]]
"""Messages as chat templates take them: {"role": ..., "content": ...}."""

# Templates that write today's date (Llama 3's) write their own default date instead: prompts must
# be the same on every day of a run. A macro stands before the function that transformers offers.
_DATE = {"%Y": "2024", "%m": "07", "%d": "26", "%B": "July", "%b": "Jul", "%A": "Friday"}
_REPLACED = "".join(f"|replace('{mark}', '{text}')" for mark, text in _DATE.items())
_SAME_DAY = f"{{% macro strftime_now(f) %}}{{{{ f{_REPLACED} }}}}{{% endmacro %}}{{{{ '' }}}}"


@dataclasses.dataclass(frozen=True)
class EncodedPrompts:
    """Prompts within the limit: `ids[j]` are of chat `indices[j]`; `dropped` were longer."""

    ids: list[list[int]]
    indices: list[int]
    dropped: int


def chat(text: str, instruction: str = "", system: str = "", context=()) -> Chat:
    """A problem as messages: the system's, those before it, and the problem with an instruction.

    Args:
      text: the problem.
      instruction: follows the text after a space; empty: nothing does.
      system: takes the place of a system message in `context`; empty: that stays.
      context: (role, text) of the messages before the problem.
    """
    before = [(r, t) for r, t in context if not (system and r == "system")]
    if system:
        before.insert(0, ("system", system))
    last = ("user", f"{text} {instruction}" if instruction else text)
    return [{"role": role, "content": content} for role, content in (*before, last)]


def encode_prompts(
    tokenizer: "PreTrainedTokenizerFast", chats: Sequence[Chat], max_tokens: int
) -> EncodedPrompts:
    """Each chat under the model's template, ready for the answer.

    The template writes the special tokens, so the tokenizer adds none. A prompt of more than
    `max_tokens` tokens is dropped and counted: a problem cut short is another problem.

    Raises:
        InputError: no chats, a limit below 1, a template that fails on one, or every prompt over
            the limit.
    """
    if not chats:
        raise InputError("there are no problems to make prompts of")
    if max_tokens < 1:
        raise InputError(f"the prompt limit is {max_tokens} tokens; it must be at least 1")
    encoded = [_encode(tokenizer, i, each) for i, each in enumerate(chats)]
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


def _encode(tokenizer: "PreTrainedTokenizerFast", index: int, messages: Chat) -> list[int]:
    try:
        template = tokenizer.get_chat_template()
        ids = tokenizer.apply_chat_template(
            messages,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
            chat_template=_SAME_DAY + template if "strftime_now" in template else template,
        )
    except Exception as error:  # a template can fail in any way that Python can
        text = messages[-1]["content"][:40]
        raise InputError(
            f"problem {index + 1} ({text!r}): the chat template fails on it ({one_line(error)})"
        ) from None
    return cast(list[int], ids)
