"""Whether a response reflects on itself."""

import re

# What reasoning models say when they turn back to what they wrote. The paper reports the share of
# responses with self-reflection and does not list its words; these are ours, so that shares compare
# between models measured here, not with the paper's figure.
WORDS = (
    "wait",
    "hold on",
    "recheck",
    "re-check",
    "double-check",
    "double check",
    "check again",
    "let me check",
    "let's check",
    "let me verify",
    "let's verify",
    "verify again",
    "rethink",
    "re-think",
    "think again",
    "reconsider",
    "reevaluate",
    "re-evaluate",
    "reexamine",
    "re-examine",
    "try again",
)

_ANY = re.compile(rf"\b(?:{'|'.join(map(re.escape, WORDS))})\b", re.IGNORECASE)


def reflects(text: str) -> bool:
    """Whether any of `WORDS` stands in the text, as whole words, in any case."""
    return _ANY.search(text) is not None
