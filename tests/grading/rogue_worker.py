"""A grading process that misbehaves as the answer tells it to."""

import os
import subprocess
import time

doomed: list[str] = []


def comparison():
    """The factory of a pool."""
    print("a line that is no message", flush=True)
    return lambda pair: compare(*pair)


def broken():
    """A factory that fails."""
    raise ValueError("no such thing")


def compare(answer: str, gold: str) -> bool:
    """Hangs, sleeps, crashes, grows, waits to be killed, or compares as text."""
    if doomed:
        os.abort()
    if answer.startswith("doom"):  # answers, and dies of the next request, whatever it is
        doomed.append(answer)
    if answer == "hang":
        while True:
            pass
    if answer == "sleep":
        time.sleep(1000)
    if answer == "crash":
        os.abort()
    if answer == "grow":
        return len([bytes(1 << 20) for _ in range(1 << 20)]) > 0
    if answer == "noise":
        print("1" * 100)
        os.write(2, b"1" * 100)
    if answer == "child":
        subprocess.Popen(["sleep", "1000"])
        while True:
            pass
    if answer == "raise":
        raise ValueError
    if answer.startswith(("slow", "doom")):
        time.sleep(0.3)
    return answer == gold
