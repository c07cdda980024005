"""Groups of metrics by the question they answer, for trackers that show a group a section."""

import math
from collections.abc import Mapping
from typing import Any

GROUPS = {
    "1_learning": (
        *("reward", "accuracy", "format_rate", "zero_variance", "eval/", "validation/"),
        *("truncated_rate", "response_length", "grader_"),
    ),
    "2_stability": ("ratio_", "clip_share", "ess", "kl_", "entropy", "sampler_gap", "truncation_"),
    "3_optimizer": ("loss", "grad_norm", "critic_", "explained_variance", "learning_rate"),
    "4_replay": ("rows/", "n_", "rollouts"),
    "5_cost": ("seconds", "tokens", "flops", "learn_tokens", "mfu/"),
}
OTHER = "6_other"
# Also drawn against fresh rollouts, where steps of two methods cost differently.
BY_ROLLOUTS = ("reward", "accuracy", "eval/mean")


def tag(name: str) -> str:
    """`group/name` of a metric; figures by age of the rows are a group of their own."""
    if "/age" in name:
        return f"4_replay/{name}"
    found = (group for group, starts in GROUPS.items() if name.startswith(starts))
    return f"{next(found, OTHER)}/{name}"


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers among the metrics of a step."""
    return {
        name: float(value)
        for name, value in metrics.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }
