"""What stored results must satisfy: everything in them follows from their JSON."""

import pathlib

import numpy as np
from matplotlib.image import imread

RESULTS = pathlib.Path(__file__).resolve().parents[2] / "experiments" / "results" / "arithmetic"


def stored(name):
    """Every file of that name among the stored results."""
    return sorted(RESULTS.rglob(name))


def images(directory, pattern="*.png"):
    """Name -> pixels of every figure; none may be blank."""
    found = {path.name: imread(path)[..., :3] for path in sorted(directory.glob(pattern))}
    for name, pixels in found.items():
        assert pixels.shape[1] >= 900, name
        assert pixels.std() > 0.02, f"{name} is blank"
    return found


def assert_same(first, second, pattern="*.png", tolerance=0.0):
    """The same figures in both directories; the tolerance is a mean difference of pixels."""
    ours, theirs = images(first, pattern), images(second, pattern)
    assert ours
    assert ours.keys() == theirs.keys()
    for name, pixels in ours.items():
        assert pixels.shape == theirs[name].shape, name
        assert np.abs(pixels - theirs[name]).mean() <= tolerance, name
