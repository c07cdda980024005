"""Writes the tables and figures of stored results again, from their JSON alone.

python -m experiments.report --results=experiments/results/arithmetic
"""

import pathlib

from absl import flags

from experiments import main
from experiments.report import files, results
from remix_jax.errors import InputError


def experiment() -> None:
    """Every comparison.json, dynamics.json, prefix.json and family.json below the directory."""
    root = pathlib.Path(RESULTS.value)
    found = [(kind, path) for kind in files.KINDS for path in sorted(root.rglob(f"{kind}.json"))]
    if not found:
        names = ", ".join(f"{kind}.json" for kind in files.KINDS)
        raise InputError(f"--results={root}: no {names} there or below")
    for kind, path in found:
        data = results.read_json(path)
        out = pathlib.Path(OUT.value) / path.parent.relative_to(root) if OUT.value else path.parent
        files.write(kind, data, out)
        print(f"{path}: {out}/{kind}.md and figures")


if __name__ == "__main__":
    RESULTS = flags.DEFINE_string(
        "results", "experiments/results/arithmetic", "directory of results, at any depth"
    )
    OUT = flags.DEFINE_string("out", "", "directory for what is written; default: beside the JSON")
    main.run(experiment)
