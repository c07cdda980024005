"""The family's table and figure from JSON alone."""

import numpy as np

from experiments import family as experiment
from experiments.report import family, files
from experiments.report.family import Family
from tests.report.runs import images, rows
from tests.report.test_stored import RESULTS, ROOT


def trial(method, rate, seed, accuracy, validation):
    curve = {"rollouts": [0, 1000, 2000], "accuracy": accuracy, "validation": validation}
    return {"method": method, "learning_rate": rate, "seed": seed, "curve": curve}


def test_the_rate_is_chosen_by_validation_and_accuracy_interpolated(tmp_path):
    trials = [
        trial("m", 1e-4, 0, [0.0, 0.9, 0.9], [0.1, 0.1, 0.1]),
        trial("m", 3e-4, 0, [0.2, 0.4, 0.8], [0.2, 0.1, 0.1]),
        trial("m", 3e-4, 1, [0.2, 0.6, 0.7], [0.0, 0.0, 0.0]),
    ]
    method = {"name": "m", "label": "M", "base": "groups", "rows": "fresh", "kind": "reference"}
    data = {
        "about": {"command": "family"}, "trials": trials, "learning_rates": [1e-4, 3e-4],
        "selection_seeds": [0], "rollouts": [500, 2000, 3000], "methods": [method],
    }  # fmt: skip
    runs = Family(data)
    assert runs.best == {"m": 3e-4}
    np.testing.assert_allclose(runs.accuracies("m", 500), [0.3, 0.4])
    np.testing.assert_allclose(runs.accuracies("m", 2000), [0.8, 0.7])
    assert runs.accuracies("m", 3000).isna().all()
    files.write("family", data, tmp_path)
    text = (tmp_path / "family.md").read_text()
    cells = ["groups", "fresh", "3e-4", "35.0 [30.0–40.0]", "75.0 [70.0–80.0]", "-"]
    assert rows(text)["**M** (`m`)"] == cells
    assert "**each at the learning rate, of 1e-4, 3e-4, that was best on validation" in text
    assert set(images(tmp_path)) == {"family.png"}


def test_the_stored_family_is_whole_and_its_page_says_that_it_is_not_tuned():
    runs = files.read("family", RESULTS / "family" / "family.json")
    assert set(runs.names) == {*experiment.REFERENCES, *experiment.PRESETS}
    for name in runs.names:
        assert len(runs.at(name, runs.best[name])) == 3
    page = (ROOT / "docs" / "choosing_a_method.md").read_text()
    assert "\n".join(family.table(runs).markdown()) in page
    assert "**not tuned: all ran at" in page.split("## What they reach")[1].split("\n\n")[1]
