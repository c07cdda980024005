"""Writes and reads the files of each kind of results: KIND.json, KIND.md and its figures."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from experiments.report import (
    comparison, comparison_figures, comparison_tables, dynamics, dynamics_figures, family, figures,
    prefix, results,
)  # fmt: skip


class Kind(NamedTuple):
    """How results of a kind are checked, written and drawn."""

    keys: tuple[str, ...]  # of the JSON
    load: Callable[[results.Data], Any]  # raises InputError where the data are wrong
    markdown: Callable[[Any], str]
    draw: Callable[[Any], Mapping[str, Figure]]


KINDS = {
    "comparison": Kind(
        comparison.KEYS, comparison.Comparison, comparison_tables.markdown, comparison_figures.draw
    ),
    "dynamics": Kind(
        dynamics.KEYS, dynamics.Dynamics, dynamics.markdown, dynamics_figures.draw
    ),
    "prefix": Kind(prefix.KEYS, prefix.Prefix, prefix.markdown, prefix.draw),
    "family": Kind(family.KEYS, family.Family, family.markdown, family.draw),
}


def write(kind: str, data: results.Data, directory: str | pathlib.Path) -> Any:
    """Writes the data as they are as KIND.json, and what follows from them: KIND.md and figures.

    Returns:
      The results as their class.
    Raises:
      InputError: the data are incomplete, or methods were not tuned alike; nothing is written.
    """
    found, directory = _load(kind, data, kind), pathlib.Path(directory)
    text = KINDS[kind].markdown(found)
    results.write_json(data, directory / f"{kind}.json")
    (directory / f"{kind}.md").write_text(text, encoding="utf-8")
    figures.render(KINDS[kind].draw, found, directory)
    return found


def read(kind: str, path: str | pathlib.Path) -> Any:
    """The results of a KIND.json as their class.

    Raises:
      InputError: no such file, no JSON object, or wrong data.
    """
    return _load(kind, results.read_json(pathlib.Path(path)), str(path))


def _load(kind: str, data: Any, where: str) -> Any:
    results.require_keys(data, KINDS[kind].keys, where)
    return KINDS[kind].load(data)
