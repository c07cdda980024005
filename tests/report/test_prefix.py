"""PrefixRL's evidence: claims, table and figure from JSON alone."""

import math

import numpy as np
import pytest

from experiments import bars
from experiments.report import files, prefix, results
from experiments.report.prefix import Prefix
from remix_jax.errors import InputError
from tests.report.runs import images, rows

METHODS = {  # name: (rollouts to 63 % of the end, accuracy at the end, pays, prefixed)
    "grpo": (4000.0, 0.08, False, False),
    "sft-grpo": (2000.0, 0.6, True, False),
    "prefix": (2500.0, 0.9, True, True),
    "prefix-only": (2500.0, 0.8, True, True),
}
BANK, EACH = 4e11, 3e7  # FLOPs of the bank, of a rollout


def run(time, end, first, prefixed, seed=0):
    """Metrics of an evaluated run from accuracy .002 on; FLOPs begin at `first`."""
    metrics = []
    for step in range(21):
        rollouts = 1000 * step
        accuracy = 0.002 + (end + 0.01 * seed) * (1 - math.exp(-rollouts / time))
        record = {
            "step": step, "rollouts": rollouts, "flops": first + EACH * rollouts,
            "eval/hard_test": accuracy, "eval/middle": accuracy / 2 + 0.06,
            "validation/v": accuracy,
        }  # fmt: skip
        if prefixed and step:
            record |= {"reward/prefix_0.4": step / 40, "reward/prefix_0.7": 0.9}
        metrics.append(record)
    return metrics


def trial(name, metrics, rate, seed, paid=0.0):
    own = {"method": name, "learning_rate": rate, "seed": seed}
    found = results.record(metrics, accuracy="eval/hard_test", paid=paid, **own)
    return found | {"by_prefix": prefix.by_prefix(metrics)}


@pytest.fixture(scope="module")
def data():
    made = {
        "about": {"command": "python -m experiments.prefix_evidence"}, "budget": 1e12,
        "bank": {"traces": 41, "problems": 256, "attempts": 141_416, "flops": BANK},
        "bar": {
            "bank": {"traces": 130, "problems": 256, "attempts": 480_000, "flops": 2e12},
            "rollouts": 6144, "accuracy": [0.3, 0.5, 0.45],
        },
        "learning_rates": [3e-4, 6e-4], "selection_seeds": [0], "methods": [], "trials": [],
    }  # fmt: skip
    for name, (time, end, pays, prefixed) in METHODS.items():
        made["methods"].append({"name": name, "label": name.upper(), "prefixed": prefixed})
        for rate, worse in ((3e-4, 1.0), (6e-4, 0.7)):
            for seed in range(3 if rate == 3e-4 else 1):
                metrics = run(time, worse * end, BANK if prefixed else 0.0, prefixed, seed)
                paid = BANK if pays and not prefixed else 0.0
                made["trials"].append(trial(name, metrics, rate, seed, paid))
    return made


def test_a_record_counts_what_was_paid_before_and_success_by_prefix(data):
    found = {(t["method"], t["learning_rate"], t["seed"]): t for t in data["trials"]}
    own = found["sft-grpo", 3e-4, 0]
    assert own["curve"]["flops"][:2] == [BANK, BANK + 3e10]
    assert own["by_prefix"] == {}
    quarters = found["prefix", 3e-4, 0]["by_prefix"]
    assert quarters["0.7"] == [0.9] * 4
    assert quarters["0.4"] == [3 / 40, 8 / 40, 13 / 40, 18 / 40]
    assert prefix.by_prefix(run(1, 1, 0, True)[:3])["0.7"] == [0.9, 0.9, None, None]


def test_accuracy_is_read_at_equal_flops(data):
    runs = Prefix(data)
    xs, ys = (runs.curves("prefix")[1][name] for name in ("flops", prefix.HARD))
    assert np.isnan(runs.accuracies("prefix", BANK / 2)).all(), "traces are still being collected"
    between = runs.accuracies("prefix", (xs[3] + xs[4]) / 2)
    assert between[1] == pytest.approx((ys[3] + ys[4]) / 2)
    assert runs.accuracies("prefix", 1e15)[1] == ys[-1]
    levels = runs.curves("prefix").map(lambda curve: curve[prefix.HARD][3])
    assert runs.share_spent("prefix", levels)[1] == pytest.approx(xs[3] / 1e12)
    assert runs.share_spent("prefix", levels * 0 + 0.99)[1] == math.inf
    late = Prefix(data | {"budget": xs[3] - 1})
    assert late.share_spent("prefix", levels)[1] == math.inf, "beyond the budget does not count"
    assert runs.best["prefix"] == 3e-4


def test_claims_follow_from_the_seeds(data):
    runs = Prefix(data)
    assert runs.strongest_baseline() == "sft-grpo"
    found = [(c.verdict, c.claim) for c in runs.claims()]
    # .6 of .9 (1 - exp(-rollouts / 2500)) takes 2,747 rollouts: 4.8e11 of 1e12 FLOPs.
    assert [verdict for verdict, _ in found] == ["yes", "no", "yes", "yes", "yes", "yes"]
    assert "the strongest baseline, SFT-GRPO, ends with at half" in found[0][1]
    assert "three times the accuracy of plain RL, GRPO" in found[3][1]
    weak = [t for t in data["trials"] if t["method"] != "prefix-only"]
    flat = [
        trial("prefix-only", run(2500.0, 0.05, BANK, True), rate, 0)
        for rate in data["learning_rates"]
    ]
    assert Prefix(data | {"trials": weak + flat}).claims()[-1].verdict == "no"


def test_bar_seven_is_read_at_the_first_rate_and_6144_rollouts(data):
    with_prefixes, without = bars.prefix_bars(Prefix(data))
    assert with_prefixes.measured == 0.45
    assert with_prefixes.met
    expected = 0.002 + 0.09 * (1 - math.exp(-6144 / 4000))
    assert without.measured == pytest.approx(expected, abs=0.002)
    assert without.met


def test_page_and_figure_follow_from_the_json(data, tmp_path):
    files.write("prefix", data, tmp_path)
    text = (tmp_path / "prefix.md").read_text()
    assert rows(text, "# PrefixRL")["PREFIX"][:3] == ["3e-4", "3", "20,000"]
    assert "141,416 responses, 4.00e11 FLOPs, for 41 traces of 256 problems" in text
    assert "PrefixRL is at 45.0 [30.0–50.0] % after 6,144 rollouts" in text
    bins = rows(text, "## Success by the share")
    assert bins["40% to 50%"] == ["7.5", "45.0", "7.5", "45.0"]
    first = [t["curve"]["accuracy"][:6] for t in data["trials"] if t["method"] == "prefix"][:3]
    shown = [float(part) for part in bins["none (held-out problems)"][0].split(" ")[:1]]
    assert shown == [round(100 * float(np.median(np.mean(first, axis=1))), 1)]
    assert set(images(tmp_path)) == {"prefix.png"}
    assert files.read("prefix", tmp_path / "prefix.json").data == data
    with pytest.raises(InputError, match="no method 'grpo' among"):
        Prefix(data | {"methods": data["methods"][1:]})
