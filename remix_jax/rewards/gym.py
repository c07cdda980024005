"""reasoning-gym's own scores. Runs in the workers, for some of its functions evaluate text."""

from typing import Any

from reasoning_gym.factory import get_score_answer_fn  # its import takes seconds: before a request


def reasoning_gym(answer: str | None, entry: dict[str, Any]) -> float:
    """The score in [0, 1] of the task that an entry's metadata names."""
    return get_score_answer_fn(entry["metadata"]["source_dataset"])(answer, entry)
