"""Made-up results with known answers, for tests of tables and figures."""

import math

import numpy as np

RATES = (5e-5, 1e-4, 2e-4, 4e-4)
VARIANTS = {
    "{}": ("{}", 2600.0, 2e-4),
    "remix-{}": ("ReMix-{}", 1100.0, 1e-4),
    "remix-{}-without-utd": ("ReMix-{} without UTD", 1900.0, 2e-4),
    "remix-{}-without-kl-convex": ("ReMix-{} without KL-Convex", 1000.0, 1e-4),
    "remix-{}-without-reincarnation": ("ReMix-{} without reincarnation", 1250.0, 1e-4),
    "mix-{}": ("Mix-{} alone", 2100.0, 2e-4),
    "utd-{}": ("UTD-{} alone", 1400.0, 2e-4),
}


def evaluated(time, slow=1.0, noise=0.0, seed=0, end=6144, every=256):
    """Metrics of a run that was only evaluated: accuracy 1 - .78 exp(-rollouts / time)."""
    normal = np.random.default_rng(seed).normal
    run = []
    for step, rollouts in enumerate(range(0, end + 1, every)):
        mean = 1 - 0.78 * math.exp(-rollouts / time)
        mean = min(0.99, max(0.01, mean + noise * normal()))
        run.append({
            "step": step, "rollouts": rollouts, "tokens": 11 * rollouts,
            "flops": 3e7 * slow * rollouts, "seconds": 1e-3 * slow * rollouts,
            "validation/chain5": min(1.0, mean + noise * normal()), "eval/mean": mean,
            "eval/chain3": min(1.0, mean + 0.1), "eval/chain7": max(0.0, mean - 0.1),
            "eval/response_length": 11.0,
        })  # fmt: skip
    return run


def comparison_data(trial, families=("ppo", "grpo"), rates=RATES, variants=VARIANTS, seeds=6):
    """A comparison as it comes: all seeds at the equal and the best rate, else three."""
    data = {
        "about": {"command": "python -m experiments.compare", "hardware": "2 cores"},
        "levels": [0.6, 0.7, 0.8, 0.9], "target": 0.8, "equal_learning_rate": 1e-4,
        "learning_rates": list(rates), "methods": [], "selection_seeds": [0, 1, 2], "trials": [],
    }  # fmt: skip
    for family in families:
        for pattern, (label, time, best) in variants.items():
            name = pattern.format(family)
            data["methods"].append(
                {"name": name, "label": label.format(family.upper()), "reference": family}
            )
            for rate in rates:
                off = abs(math.log2(rate / best))
                for seed in range(seeds if rate in (1e-4, best) else 3):
                    slower = (1 + 0.35 * off) * (1 + 0.06 * (seed % 3)) * (1 + (family != "ppo") / 5)
                    metrics = evaluated(
                        time * slower, 1 + (pattern != "{}"), 0.012, seed + 100 * len(name)
                    )
                    data["trials"].append(
                        trial(metrics, method=name, learning_rate=rate, seed=seed,
                              base=f"base{seed % 3}")
                    )  # fmt: skip
    return data
