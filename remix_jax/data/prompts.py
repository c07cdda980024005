"""Problems to token ids: the model's chat template, a length limit."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, cast

from remix_jax.errors import InputError
from remix_jax.text import one_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Templates that write today's date (Llama 3's) write their own default date instead: prompts must
# be the same on every day of a run. A macro stands before the function that transformers offers.
_DATE = {"%Y": "2024", "%m": "07", "%d": "26", "%B": "July", "%b": "Jul", "%A": "Friday"}
_REPLACED = "".join(f"|replace('{mark}', '{text}')" for mark, text in _DATE.items())
_SAME_DAY = f"{{% macro strftime_now(f) %}}{{{{ f{_REPLACED} }}}}{{% endmacro %}}{{{{ '' }}}}"

Chat = list[dict[str, str]]  # messages as templates take them: {"role": ..., "content": ...}


def chat(
    text: str, instruction: str = "", system: str = "", context: Iterable[tuple[str, str]] = ()
) -> Chat:
    """A problem as messages: the system's, those before it, and the problem with an instruction.

    Args:
      instruction: follows the text after a space; empty: nothing does.
      system: takes the place of a system message in `context`; empty: that stays.
      context: (role, text) of the messages before the problem.
    """
    first = [("system", system)] if system else []
    before = [(r, t) for r, t in context if not (system and r == "system")]
    last = ("user", f"{text} {instruction}" if instruction else text)
    return [{"role": role, "content": content} for role, content in (*first, *before, last)]


def encode_prompts(
    tokenizer: "PreTrainedTokenizerFast", chats: Sequence[Chat], max_tokens: int
) -> dict[int, list[int]]:
    """Index -> token ids of each chat under the model's template, ready for the answer.

    The template writes the special tokens, so the tokenizer adds none. Chats of more than
    `max_tokens` tokens are left out: a problem cut short is another problem.

    Raises:
      InputError: no chats, a limit below 1, a template that fails on one, or every prompt over the
        limit.
    """
    if not chats:
        raise InputError("there are no problems to make prompts of")
    if max_tokens < 1:
        raise InputError(f"the prompt limit is {max_tokens} tokens; it must be at least 1")
    encoded = []
    for i, messages in enumerate(chats):
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
                f"problem {i + 1} ({text!r}): the chat template fails on it ({one_line(error)})"
            ) from None
        encoded.append(cast(list[int], ids))
    kept = {i: ids for i, ids in enumerate(encoded) if len(ids) <= max_tokens}
    if not kept:
        raise InputError(
            f"all {len(encoded)} prompts are over the limit of {max_tokens} tokens; "
            f"the shortest has {min(map(len, encoded))}"
        )
    return kept
