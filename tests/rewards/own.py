"""Reward functions as users write them, good and bad."""

import os
import time

import numpy as np


def length(completions, **kwargs):
    return [float(len(text)) for text in completions]


def scaled(completions, factor=1.0):
    return [factor * len(text) for text in completions]


def near(prompts, completions, completion_ids, target):
    return [-abs(len(text) - t) for text, t in zip(completions, target, strict=True)]


def chat(prompts, completions, **kwargs):
    assert prompts[0][-1]["role"] == "user"
    return [float(len(completion[0]["content"])) for completion in completions]


async def later(completions, **kwargs):
    return [0.5 for _ in completions]


def says(completions, **kwargs):
    return [np.bool_("right" in text) for text in completions]


def half(completions, **kwargs):
    """Applies to some."""
    return [1.0 if "a" in text else None for text in completions]


def bad(completions, **kwargs):
    """Does what the completion says."""
    for text in completions:
        if text == "hang":
            while True:
                pass
        if text == "sleep":
            time.sleep(1000)
        if text == "raise":
            raise ValueError("a bad one\nand more")
        if text == "die":
            os.abort()
        if text == "exit":
            raise SystemExit(3)
        if text == "grow":
            bytearray(1 << 40)
        if text == "print":
            print('{"value": [[7, null, null, "", ""]]}', flush=True)
    odd = {"nan": float("nan"), "inf": float("inf"), "huge": 1e300, "text": "one"}
    values = [odd.get(text, 1.0) for text in completions]
    return values[1:] if "short" in completions else values


def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    """verl's form, a float."""
    assert data_source == "openai/gsm8k"
    assert extra_info["index"] == 3
    return 1.0 if ground_truth in solution_str else 0.1


def compute_score_dict(data_source, solution_str, ground_truth, extra_info, **kwargs):
    return {"score": -1.0, "acc": ground_truth in solution_str, "pred": solution_str[-1:]}


def score_answer(answer, entry):
    """reasoning-gym's form."""
    return 1.0 if answer == entry["answer"] else 0.01


def sleeps(completions, **kwargs):
    """Half a second of processor time an item."""
    end = time.process_time() + 0.1 * len(completions)
    while time.process_time() < end:
        pass
    return [1.0] * len(completions)
