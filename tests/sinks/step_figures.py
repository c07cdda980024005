"""Figures of a step as the training loop hands them in."""


def step(index, **more):
    """Figures of one step, as the training loop hands them in."""
    figures = {
        "step": index,
        "stage": "mix",
        "rollouts": 77 * index,
        "reward": 0.5,
        "accuracy": 0.4321,
        "response_length": 21.5,
        "truncated_rate": 0.01,
        "format_rate": 0.99,
        "entropy": 0.31,
        "kl_base": 0.0123,
        "kl_prev": 0.0021,
        "loss": -0.004,
        "grad_norm": 0.7,
        "ratio_mean": 1.0042,
        "ratio_max": 3.5,
        "clip_share": 0.031,
        "ess": 0.95,
        "seconds/sample": 0.25,
        "seconds/learn": 0.125,
        "tokens_per_second": 12345.0,
    }
    for age, ratio in enumerate((1.0001, 1.0055)):
        figures |= {
            f"rows/age{age}": 77 - 26 * age,
            f"ratio_mean/age{age}": ratio,
            f"ratio_max/age{age}": 2.0 + age,
            f"clip_share/age{age}": 0.02,
            f"ess/age{age}": 0.9,
        }
    return figures | more


EVALUATED = {"eval/short": 0.7, "eval/long": 0.3, "eval/mean": 0.5, "eval/response_length": 20.0}
