"""The record of a run, made up."""

import math

import numpy as np


def training(steps=40, mix=12, rate=2000.0):
    """A run with every figure: accuracy 1 - .75 exp(-rollouts / rate), a stage change, a NaN."""
    noise = np.random.default_rng(0).normal
    run = [{"step": 0, "rollouts": 0, "seconds": 0.0, "eval/short": 0.4, "eval/long": 0.1,
            "eval/mean": 0.25, "eval/response_length": 20.0}]  # fmt: skip
    rollouts = 0
    for k in range(1, steps + 1):
        mixing = k <= mix
        rollouts += 77 if mixing else 128
        accuracy = 1 - 0.75 * math.exp(-rollouts / rate)
        record = {
            "step": k, "stage": "mix" if mixing else "on-policy", "rollouts": rollouts,
            "tokens": 20 * rollouts, "seconds": 0.2 * k, "reward": accuracy + noise(0, 0.03),
            "response_length": 20 + noise(), "entropy": 0.4, "kl_base": 0.001 * k,
            "kl_prev": 0.002, "grad_norm": math.nan if k == 5 else 0.7, "critic_grad_norm": 0.5,
            "seconds/sample": 0.05, "seconds/grade": 0.01, "seconds/learn": 0.1,
            "seconds/eval": 0.04, "seconds/log": 0.0,
        }  # fmt: skip
        for age in range(3 if mixing else 1):
            record |= {
                f"ratio_mean/age{age}": 1 + 0.01 * age, f"ratio_max/age{age}": 2.0 + 4 * age,
                f"clip_share/age{age}": 0.02, f"ess/age{age}": 0.95,
                f"rows/age{age}": 26 * (k > age),
            }  # fmt: skip
        if k % 4 == 0:
            record |= {"eval/short": min(1, accuracy + 0.1), "eval/long": accuracy - 0.1,
                       "eval/mean": accuracy, "eval/response_length": 21.0}  # fmt: skip
        run.append(record)
    return run
