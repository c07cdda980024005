"""PrefixRL's evidence: records, claims, table and figure from JSON alone."""

import math

import pytest

from experiments import bars
from remix_jax.errors import InputError
from remix_jax.reporting import prefix
from remix_jax.reporting import prefix_numbers as numbers
from tests.reporting import redrawn

SUITES = {"hard": "eval/hard_test", "middle": "eval/middle", "validation": "validation/v"}
ARMS = {  # name: (rollouts to 63 % of the end, accuracy at the end, pays, prefixed)
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


def make(**changes):
    data = {
        "about": {"command": "python -m experiments.prefix_evidence"}, "budget": 1e12,
        "bank": {"traces": 41, "problems": 256, "attempts": 141_416, "flops": BANK},
        "bar": {
            "bank": {"traces": 130, "problems": 256, "attempts": 480_000, "flops": 2e12},
            "rollouts": 6144, "accuracy": [0.3, 0.5, 0.45],
        },
        "learning_rates": [3e-4, 6e-4], "selection_seeds": [0], "arms": [], "trials": [],
    }  # fmt: skip
    for name, (time, end, pays, prefixed) in ARMS.items():
        data["arms"].append({"name": name, "label": name.upper(), "prefixed": prefixed})
        for rate, worse in ((3e-4, 1.0), (6e-4, 0.7)):
            for seed in range(3 if rate == 3e-4 else 1):
                first = BANK if prefixed else 0.0
                metrics = run(time, worse * end, first, prefixed, seed)
                paid = BANK if pays and not prefixed else 0.0
                data["trials"].append(
                    prefix.trial(metrics, arm=name, learning_rate=rate, seed=seed, paid=paid,
                                 suites=SUITES)
                )  # fmt: skip
    return data | changes


@pytest.fixture(scope="module")
def data():
    return make()


def test_a_record_counts_what_was_paid_before(data):
    own = numbers.trials(data, "sft-grpo")[0]
    assert own["curve"]["flops"][:2] == [BANK, BANK + 3e10]
    assert own["curve"]["rollouts"][-1] == 20_000
    assert own["by_prefix"] == {}
    quarters = numbers.trials(data, "prefix")[0]["by_prefix"]
    assert quarters["0.7"] == [0.9] * 4
    assert quarters["0.4"] == [3 / 40, 8 / 40, 13 / 40, 18 / 40]
    broken = run(1, 1, 0, False)
    del broken[3]["eval/middle"]
    with pytest.raises(InputError, match=r"prefix: a at 0.1, seed 0: step 3 has no eval/middle"):
        prefix.trial(broken, arm="a", learning_rate=0.1, seed=0, paid=0, suites=SUITES)


def test_accuracy_is_read_at_equal_flops(data):
    own = numbers.trials(data, "prefix")[1]
    xs, ys = numbers.curve(own)
    assert numbers.at(own, BANK / 2) is None, "traces are still being collected"
    assert numbers.at(own, (xs[3] + xs[4]) / 2) == pytest.approx((ys[3] + ys[4]) / 2)
    assert numbers.at(own, 1e15) == ys[-1]
    assert numbers.flops_to(data, own, ys[3]) == pytest.approx(xs[3])
    assert numbers.flops_to(data, own, 0.99) is None
    late = data | {"budget": xs[3] - 1}
    assert numbers.flops_to(late, own, ys[3]) is None, "beyond the budget does not count"
    assert numbers.best_learning_rate(data, "prefix") == 3e-4


def test_claims_follow_from_the_seeds(data):
    assert numbers.strongest_baseline(data) == "sft-grpo"
    found = [(c.verdict, c.claim) for c in numbers.claims(data)]
    # .6 of .9 (1 - exp(-rollouts / 2500)) takes 2,747 rollouts: 4.8e11 of 1e12 FLOPs.
    assert [verdict for verdict, _ in found] == ["yes", "no", "yes", "yes", "yes", "yes"]
    assert "the strongest baseline, SFT-GRPO, ends with at half" in found[0][1]
    assert "three times the accuracy of plain RL, GRPO" in found[3][1]
    weak = [t for t in data["trials"] if t["arm"] != "prefix-only"]
    flat = [
        prefix.trial(run(2500.0, 0.05, BANK, True), arm="prefix-only", learning_rate=rate, seed=0,
                     paid=0, suites=SUITES)
        for rate in data["learning_rates"]
    ]  # fmt: skip
    assert numbers.claims(data | {"trials": weak + flat})[-1].verdict == "no"


def test_bar_seven_is_read_at_the_first_rate_and_6144_rollouts(data):
    with_prefixes, without = bars.prefix_bars(data)
    assert with_prefixes.measured == 0.45
    assert with_prefixes.met
    expected = 0.002 + 0.09 * (1 - math.exp(-6144 / 4000))
    assert without.measured == pytest.approx(expected, abs=0.002)
    assert without.met
    assert not list(bars.prefix_bars(data | {"trials": data["trials"][4:]}))[1].met


def test_everything_is_redrawn_from_the_json(data, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    prefix.write(data, first)
    text = (first / "prefix.md").read_text()
    assert "| PREFIX | 0.0003 | 3 | 20,000 |" in text
    assert "141,416 responses, 4.00e11 FLOPs, for 41 traces of 256 problems" in text
    assert "PrefixRL is at 45.0 [30.0–50.0] % after 6,144 rollouts" in text
    assert "| 40% to 50% | 7.5 | 45.0 | 7.5 | 45.0 |" in text
    assert "| none (held-out problems) | " in text
    prefix.write(prefix.read(first / "prefix.json"), second)
    redrawn.assert_same(first, second)
    for name in ("prefix.json", "prefix.md"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_bad_data_is_one_clear_line(tmp_path, data):
    for match, changes in (
        ("no arm 'grpo', of which the claims speak", {"arms": data["arms"][1:]}),
        ("'grpo' has no trial at 0.0003, seed 0", {"trials": data["trials"][1:]}),
        ("is there twice", {"trials": [*data["trials"], data["trials"][0]]}),
        ("'x', which is no arm", {"trials": [*data["trials"], data["trials"][0] | {"arm": "x"}]}),
    ):
        with pytest.raises(InputError, match=match) as error:
            prefix.write(data | changes, tmp_path / "out")
        assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("path", redrawn.stored("prefix.json"), ids=str)
def test_stored_results_follow_from_their_json(path, tmp_path):
    prefix.write(prefix.read(path), tmp_path)
    assert (tmp_path / "prefix.md").read_text() == path.with_suffix(".md").read_text()
    redrawn.assert_same(tmp_path, path.parent, "prefix.png", tolerance=0.02)
