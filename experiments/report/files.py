"""Writes and reads the files of each kind of results: KIND.json, KIND.md and its figures."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from experiments.report import (
    comparison_figures,
    comparison_tables,
    dynamics,
    dynamics_figures,
    family,
    figures,
    prefix,
    results,
)
from experiments.report.comparison import Comparison
from remix_jax.errors import InputError


class Kind(NamedTuple):
    """How results of a kind are checked, written and drawn."""

    load: Callable[[results.Data], Any]
    markdown: Callable[[Any], str]
    draw: Callable[[Any], Mapping[str, Figure]]


KINDS = {
    "comparison": Kind(Comparison, comparison_tables.markdown, comparison_figures.draw),
    "dynamics": Kind(dict, dynamics.markdown, dynamics_figures.draw),
    "prefix": Kind(prefix.Prefix, prefix.markdown, prefix.draw),
    "family": Kind(family.Family, family.markdown, family.draw),
}


def write(kind: str, data: results.Data, directory: str | pathlib.Path) -> Any:
    """Writes the data as they are as KIND.json, and what follows from them: KIND.md and figures.

    Returns:
      The results: `Comparison`, `prefix.Prefix`, `family.Family`, or for dynamics the data.
    Raises:
      InputError: the data are incomplete, or methods were not tuned alike; nothing is written.
    """
    directory = pathlib.Path(directory)
    try:
        found = KINDS[kind].load(data)
        text = KINDS[kind].markdown(found)
    except KeyError as error:
        raise InputError(f"{kind} results: {error.args[0]!r} missing") from None
    results.write_json(data, directory / f"{kind}.json")
    (directory / f"{kind}.md").write_text(text, encoding="utf-8")
    figures.render(KINDS[kind].draw, found, directory)
    return found


def read(kind: str, path: str | pathlib.Path) -> Any:
    """The results of a KIND.json, as `write` returns them.

    Raises:
      InputError: no such file, no JSON object, or wrong data.
    """
    data = results.read_json(pathlib.Path(path))
    try:
        return KINDS[kind].load(data)
    except KeyError as error:
        raise InputError(f"{path}: {error.args[0]!r} missing") from None
