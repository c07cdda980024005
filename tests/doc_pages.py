"""The code blocks of the documentation, for tests that run them as a reader would."""

import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parent.parent
_BLOCK = re.compile(r"^```(\w+)(?: +(\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: str, language: str) -> list[str]:
    """The blocks of a language on a page below the root of the checkout, in order."""
    text = (ROOT / page).read_text()
    return [code for found, _, code in _BLOCK.findall(text) if found == language]


def write_named(page: str, directory: pathlib.Path) -> list[str]:
    """Writes each block that carries a file name (```python my.py) to `directory`; the names."""
    text = (ROOT / page).read_text()
    named = [(name, code) for _, name, code in _BLOCK.findall(text) if name]
    for name, code in named:
        (directory / name).write_text(code)
    return [name for name, _ in named]
