"""Made-up runs with known answers, and what figures must satisfy."""

from matplotlib.image import imread

from experiments.report import results

METHODS = [
    {"name": "ppo", "label": "PPO", "reference": "ppo"},
    {"name": "remix-ppo", "label": "ReMix-PPO", "reference": "ppo"},
]


def line(slope, *, end=6000, seconds=1.0, validation=None):
    """A run on a straight line to .9: .2 + slope a thousand rollouts; evaluated every 500."""
    run = []
    for step, x in enumerate(range(0, end + 1, 500)):
        accuracy = min(0.9, 0.2 + slope * x / 1000)
        run.append({
            "step": step, "rollouts": x, "tokens": 10 * x, "flops": 4e9 * x,
            "seconds": seconds * step, "eval/mean": accuracy, "eval/chain3": accuracy + 0.05,
            "eval/chain7": accuracy - 0.05, "eval/response_length": 11.0,
            "validation/chain5": accuracy if validation is None else validation,
        })  # fmt: skip
    return run


def record(method, slope, seed, *, rate=1e-4, base=None, broken=False, **how):
    """The record of such a run."""
    base = base or f"b{seed}"
    return results.record(
        line(slope, **how), method=method, learning_rate=rate, seed=seed, base=base, broken=broken
    )


def comparison(trials, rates=(1e-4,), seeds=(0, 1, 2), **fields):
    """The content of a comparison.json."""
    return {
        "about": {"command": "compare"}, "levels": [0.6, 0.7, 0.8], "target": 0.7,
        "equal_learning_rate": 1e-4, "learning_rates": list(rates), "methods": METHODS,
        "selection_seeds": list(seeds), "trials": trials,
    } | fields  # fmt: skip


def tuned(**changes):
    """Two rates; by validation PPO is best at 2e-4 and ReMix at 1e-4, by held-out the reverse."""
    height = {("ppo", 1e-4): 0.4, ("ppo", 2e-4): 0.5, ("remix-ppo", 1e-4): 0.6,
              ("remix-ppo", 2e-4): 0.55}  # fmt: skip
    slope = {("ppo", 1e-4): 0.15, ("ppo", 2e-4): 0.1, ("remix-ppo", 1e-4): 0.2,
             ("remix-ppo", 2e-4): 0.25}  # fmt: skip
    trials = [
        record(key[0], slope[key], seed, rate=key[1], validation=validation)
        for key, validation in height.items()
        for seed in range(3)
    ]
    return comparison(trials, rates=(1e-4, 2e-4), **changes)


def images(directory):
    """Name -> pixels of every figure; none may be blank."""
    found = {path.name: imread(path)[..., :3] for path in sorted(directory.glob("*.png"))}
    for name, pixels in found.items():
        assert pixels.shape[1] >= 900, name
        assert pixels.std() > 0.02, f"{name} is blank"
    return found


def rows(markdown, title=""):
    """Label -> cells of the first Markdown table below a line that begins with the title."""
    lines = iter(markdown.splitlines())
    assert any(text.startswith(title) for text in lines), title
    table = {}
    for text in lines:
        if text.startswith("| "):
            name, *cells = [cell.strip() for cell in text.strip("|").split("|")]
            table[name] = cells
        elif table and not text.startswith("|"):
            break
    return table
