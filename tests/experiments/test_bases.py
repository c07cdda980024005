"""Independent base models: made once, kept only if they pass the gates."""

import pathlib

import pytest

from experiments.arithmetic import bases
from remix_jax.errors import InputError


@pytest.fixture
def made(monkeypatch):
    """Makes no model: seed 2 fails its gates; calls are recorded."""
    calls = []

    def pretend(function, arguments, workers, title):
        for directory, seed in arguments:
            calls.append(seed)
            (directory / str(seed)).mkdir(parents=True)
            verdict = "failed" if seed == 2 else "passed"
            (directory / str(seed) / "gates.txt").write_text(f"{verdict}\n")

    monkeypatch.setattr(bases.trials, "map_in_processes", pretend)
    return calls


def test_failed_bases_are_passed_over_and_none_is_made_twice(made, tmp_path):
    found = bases.bases(3, tmp_path, workers=2)
    assert found == [bases.SHIPPED, tmp_path / "1" / "base", tmp_path / "3" / "base"]
    assert made == [1, 2, 3]
    assert bases.bases(3, tmp_path, workers=2) == found
    assert made == [1, 2, 3]


def test_the_shipped_base_alone_needs_none(made, tmp_path):
    assert bases.bases(1, tmp_path, workers=2) == [bases.SHIPPED]
    assert made == []
    assert isinstance(bases.SHIPPED, pathlib.Path)


def test_too_many_are_refused(made, tmp_path):
    with pytest.raises(InputError, match=r"--bases=20: 8 of seeds 0 to 8 pass the gates"):
        bases.bases(20, tmp_path, workers=2)
