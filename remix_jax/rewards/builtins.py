"""The builtin reward functions apart from `math`, which is the package `grading`."""

import re
from collections.abc import Sequence

_THINK, _THINK_END = "<think>", "</think>"
_GSM8K_TAIL = 300  # characters; verl looks at no more
_MARKED = re.compile(r"#### (-?[0-9.,]+)")
_ANY_NUMBER = re.compile(r"-?[0-9.,]+")
_TAGGED = re.compile(r"<answer>\s?(.*?)\s?</answer>", re.DOTALL)


def gsm8k_answer(text: str, method: str = "strict") -> str | None:
    """The number that verl's `gsm8k` reads from a response (verl/utils/reward_score/gsm8k.py).

    Of the last 300 characters: strict, the last `#### NUMBER` without its commas; flexible, the
    last number of any kind.
    """
    text = text[-_GSM8K_TAIL:]
    if method == "strict":
        found = _MARKED.findall(text)
        return found[-1].replace(",", "") if found else None
    numbers = _ANY_NUMBER.findall(text)
    return next((n for n in reversed(numbers) if n != "."), numbers[0] if numbers else None)


def tagged_answer(text: str) -> str | None:
    """The content of the last <answer>...</answer>, as reasoning-gym's `extract_answer` has it."""
    found = _TAGGED.findall(text)
    return found[-1].strip() if found else None


def think_format(prompt: str, completion: str) -> float:
    """1 if the response is one `<think>...</think>` and what follows, else 0 (TRL).

    A `<think>` that the chat template put at the end of the prompt counts as the response's.
    """
    text = (_THINK if prompt.rstrip().endswith(_THINK) else "") + completion
    return float(text.startswith(_THINK) and text.count(_THINK) == 1 and _THINK_END in text)


def overlong(length: int, limit: int, buffer: int) -> float:
    """DAPO's soft overlong punishment (arXiv 2503.14476, Eq. 13), in [-1, 0].

        0                              length <= limit - buffer
        (limit - buffer - length) / buffer      up to limit
        -1                             beyond

    Args:
      length: tokens of the response.
      limit: L_max.
      buffer: L_cache, the tokens before the limit over which the penalty grows.
    """
    if length <= limit - buffer:
        return 0.0
    return (limit - buffer - length) / buffer if length <= limit else -1.0


def repetition(ids: Sequence[int], n: int, penalty: float) -> float:
    """penalty * (1 - distinct n-grams / n-grams) of the response's tokens (TRL).

    Source: arXiv 2502.03373, appendix C.2. 0 for fewer than n tokens.
    """
    grams = list(zip(*(ids[i:] for i in range(n)), strict=False))
    repeated = 1 - len(set(grams)) / len(grams) if grams else 0.0
    return repeated * penalty if repeated else 0.0
