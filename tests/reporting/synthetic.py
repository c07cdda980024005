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
                    slower = (
                        (1 + 0.35 * off) * (1 + 0.06 * (seed % 3)) * (1 + (family != "ppo") / 5)
                    )
                    metrics = evaluated(
                        time * slower, 1 + (pattern != "{}"), 0.012, seed + 100 * len(name)
                    )
                    data["trials"].append(
                        trial(metrics, method=name, learning_rate=rate, seed=seed,
                              base=f"base{seed % 3}")
                    )  # fmt: skip
    return data


def trained(time=1100.0, drift=0.01, passes=2, seed=0, mix=30, steps=80, ages=3):
    """Metrics of a run with every figure; `drift` is how far a step moves the old rows' ratios."""
    normal = np.random.default_rng(seed).normal
    run = [{"step": 0, "rollouts": 0, "eval/mean": 0.22}]
    rollouts = 0
    for step in range(1, steps + 1):
        mixing = step <= mix
        rollouts += 77 if mixing else 128
        accuracy = 1 - 0.78 * math.exp(-rollouts / time)
        record = {
            "step": step, "stage": "mix" if mixing else "on-policy", "rollouts": rollouts,
            "reward": accuracy + 0.03 * normal(),
            "response_length": 10.5 - 20 * drift + 0.1 * normal(),
            "entropy": 0.19 * math.exp(-rollouts / 4000) + 0.004 * abs(normal()),
            "ess": 1 - drift / 2, "grad_norm": 0.4 + 0.1 * abs(normal()),
            "kl_base": 2e-5 * rollouts * (1 + 10 * drift),
        }  # fmt: skip
        if mixing:
            record["kl_prev"] = 0.002 + 0.0003 * abs(normal())
        for age in range(ages if mixing else 1):
            record |= {
                f"ratio_mean/age{age}": 1 - drift * age * passes + 0.001 * normal(),
                f"ratio_max/age{age}": 1.1 + abs(normal()) * math.exp(drift * 60 * (age + 1)),
                f"clip_share/age{age}": 0.01 * passes * (age + 1) * abs(normal()),
                f"ess/age{age}": 1 - drift * age, f"rows/age{age}": 25 * (step > age),
            }  # fmt: skip
        for name in ("ratio_mean", "ratio_max", "clip_share"):
            every = [record[f"{name}/age{age}"] for age in range(ages if mixing else 1)]
            record[name] = max(every) if name == "ratio_max" else sum(every) / len(every)
        if step % 4 == 0:
            record |= {
                "eval/mean": min(1.0, accuracy + 0.01 * normal()),
                "eval/response_length": 11.0,
            }
        run.append(record)
    return run


def slug(label):
    return label.lower().replace(" ", "-")


def dynamics_data(arm, panels=None, seeds=3, steps=80):
    """Panels of methods, two sweeps and the collapse."""
    panels = panels or {
        "methods": ("Methods at one learning rate", {
            "PPO": (None, {"time": 2600.0, "ages": 1, "drift": 0.003}), "ReMix-PPO": (None, {}),
            "without KL-Convex": (None, {"drift": 0.015, "time": 1000.0}),
            "without reincarnation": (None, {"mix": 100, "drift": 0.02}),
        }),
        "p": ("Share of replayed rows p", {
            f"p = {p}": (
                p, {"time": 2600 - 2000 * p, "drift": 0.002 + p / 20, "ages": 3 if p else 1}
            )
            for p in (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
        }),
        "t": ("Step T of the reincarnation", {
            **{f"T = {t}": (t, {"mix": t, "time": 1500 - 5 * t}) for t in (10, 20, 40)},
            "never": (None, {"mix": 100, "time": 1300.0}),
        }),
        "collapse": ("Collapse: p = .4, m = 8", {
            "neither KL nor reincarnation": (None, {"drift": 0.09, "time": 60000.0, "mix": 100}),
            "with KL-Convex": (None, {"drift": 0.02}), "with both": (None, {"time": 900.0}),
        }),
    }  # fmt: skip
    return {
        "about": {"command": "python -m experiments.dynamics"}, "levels": [0.6, 0.7, 0.8],
        "panels": [
            {"name": name, "title": title,
             "arms": [{"name": slug(arm_name), "label": arm_name, "value": value}
                      for arm_name, (value, _) in arms.items()]}
            for name, (title, arms) in panels.items()
        ],
        "trials": [
            arm(trained(**how, seed=seed, steps=steps), panel=name,
                arm=slug(arm_name), seed=seed)
            for name, (_, arms) in panels.items()
            for arm_name, (_, how) in arms.items()
            for seed in range(seeds)
        ],
        "findings": [{"claim": "More passes raise the ratio.", "verdict": "seen",
                      "evidence": "Greatest ratio 2.1 against 1.2."}],
    }  # fmt: skip
