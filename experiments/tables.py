"""Tables in Markdown and on the terminal, and how numbers are written in them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich import box
from rich.table import Table
from rich.text import Text


class Sheet(NamedTuple):
    """A table of strings: the first column left, the others right."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    words: int = 1  # columns that hold words: left

    def markdown(self) -> list[str]:
        """The lines in Markdown, the title above, an empty line below."""
        title = [f"**{self.title}**", ""] if self.title else []
        rule = "|" + "---|" * self.words + "---:|" * (len(self.header) - self.words)
        lines = ["| " + " | ".join(row) + " |" for row in (self.header, *self.rows)]
        return [*title, lines[0], rule, *lines[1:], ""]

    def terminal(self) -> Table:
        """The table for rich."""
        title = Text(self.title)
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column(self.header[0])
        for name in self.header[1:]:
            table.add_column(Text(name), justify="right", no_wrap=True)
        for row in self.rows:
            table.add_row(*map(Text, row))
        return table


def share(value: float) -> str:
    """A share as a percentage with one decimal, for a column whose header has the sign."""
    return f"{100 * value:.1f}"


def goal(level: float) -> str:
    """An accuracy to reach: 80 %."""
    return f"{100 * level:g} %"


def rate_text(rate: float) -> str:
    """A learning rate as people write it: 1e-4, 2.5e-3."""
    mantissa, _, exponent = f"{rate:.1e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def page(lines: Sequence[str], about: Mapping[str, Any]) -> str:
    """A page of Markdown that ends with how the results were made."""
    made = [f"* {name.replace('_', ' ')}: {value}" for name, value in about.items()]
    return "\n".join([*lines, *made]).rstrip() + "\n"
