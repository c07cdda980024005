"""Several methods against each other, over seeds and base models: from metrics to results.

`trial` makes the record of one run, `write` the files of a comparison. What lies between is in
`comparison_numbers`, `comparison_tables` and `comparison_plot`: pure functions of the JSON.
"""

import math
import pathlib
from collections.abc import Sequence
from typing import Any

from remix_jax.errors import InputError
from remix_jax.reporting import comparison_plot, comparison_tables, records
from remix_jax.reporting.comparison_numbers import KEYS, best_learning_rate, check, setting
from remix_jax.run import report
from remix_jax.sinks.metrics import Metrics

__all__ = ["best_learning_rate", "check", "read", "setting", "trial", "write"]

VALIDATION = "validation/"
# Lists of a curve that older runs may lack, and the metrics they come from.
OPTIONAL = {
    "tokens": "tokens",
    "flops": "flops",
    "seconds": "seconds",
    "response_length": "eval/response_length",
}


def trial(
    metrics: Sequence[Metrics], *, method: str, learning_rate: float, seed: int, base: str
) -> dict[str, Any]:
    """The record of one run: what comparison.json keeps of it.

    Args:
      metrics: one run, in order of steps. Used are the steps with a held-out evaluation: rollouts,
        tokens, flops and seconds so far, eval/mean, eval/<suite>, eval/response_length, and
        validation/<name> (several are averaged).
      base: the name of the base model that the run began with.
    Returns:
      method, learning_rate, seed, base and curve: lists over the evaluations, numbers to 5
      significant digits. A list is left out where the run has no such metric at all.
    Raises:
      InputError: no evaluation, or one without a metric that other evaluations have.
    """
    where = f"comparison: {method} at {learning_rate:g}, seed {seed}"
    steps = [step for step in metrics if report.ACCURACY in step]
    if not steps:
        raise InputError(f"{where}: no step with {report.ACCURACY}; expected an evaluated run")

    def values(key: str) -> list[float] | None:
        found = [step[key] for step in steps if key in step]
        if not found:
            return None
        if len(found) < len(steps) or not all(map(records.finite, found)):
            raise InputError(
                f"{where}: {key} must be a finite number in all of the {len(steps)} evaluations "
                "or in none"
            )
        return [records.significant(value) for value in found]

    curve: dict[str, Any] = {"rollouts": values("rollouts"), "accuracy": values(report.ACCURACY)}
    if curve["rollouts"] is None:
        raise InputError(f"{where}: no rollouts in the evaluations")
    optional = {name: values(key) for name, key in OPTIONAL.items()}
    curve |= {name: value for name, value in optional.items() if value is not None}
    validation = [
        values(key)
        for key in dict.fromkeys(key for step in steps for key in step)
        if key.startswith(VALIDATION)
    ]
    if validation:
        means = (math.fsum(point) / len(point) for point in zip(*validation, strict=True))
        curve["validation"] = [records.significant(mean) for mean in means]
    curve["suites"] = {key.removeprefix("eval/"): values(key) for key in report.suites(steps)}
    identity = {"method": method, "learning_rate": learning_rate, "seed": seed, "base": base}
    return identity | {"curve": curve}


def write(data: dict[str, Any], directory: str | pathlib.Path) -> None:
    """Writes the results of a comparison: comparison.json, the tables in .md, the figures in .png.

    Args:
      data: "about" (strings shown under the tables: command, commit, hardware, ...), "levels",
        "target", "equal_learning_rate", "learning_rates", "selection_seeds", "methods"
        ({"name", "label", "reference"}, where an on-policy base is its own reference) and
        "trials" (of `trial`). comparison.json holds it as it is; everything else follows from it.
    Raises:
      InputError: the data are incomplete, or methods were not tuned alike.
    """
    check(data)
    directory = pathlib.Path(directory)
    records.write_json(data, directory / "comparison.json")
    markdown = comparison_tables.markdown(data)
    (directory / "comparison.md").write_text(markdown, encoding="utf-8")
    comparison_plot.draw(data, directory)


def read(path: str | pathlib.Path) -> dict[str, Any]:
    """The data of a comparison.json, checked (`records.read_json`)."""
    return records.read_json(path, KEYS, check)
