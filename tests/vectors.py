"""Vectors made by running peers: the full set from ../shared, else the small copy in goldens/."""

import csv
import functools
import json
import pathlib

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
SHARED = HERE.parent.parent / "shared" / "goldens"
GOLDENS = SHARED if SHARED.is_dir() else HERE / "goldens"


@functools.cache
def losses(name):
    """{case: (arrays by key, as "in/logp" or "vanilla/loss"; settings of the case)} of one file."""
    settings = json.loads((GOLDENS / "losses" / f"{name}.json").read_text())
    cases = {case: ({}, settings[case]) for case in settings}
    with np.load(GOLDENS / "losses" / f"{name}.npz") as file:
        for key in file.files:
            case, entry = key.split("/", 1)
            cases[case][0][entry] = file[key]
    return cases


def accounting(name):
    """A table of accounting/: the parsed JSON, or the rows of the CSV as dicts of strings."""
    path = GOLDENS / "accounting" / name
    if path.suffix == ".json":
        return json.loads(path.read_text())
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
