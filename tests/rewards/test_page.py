"""docs/rewards.md, followed to the letter: the example trains; beside it a function that hangs."""

import json
import os
import shlex
import subprocess
import sys
import zlib

from tests import doc_pages
from tests.compiling import on_devices
from tests.experiments.runs import training_samples

PAGE = "docs/rewards.md"

HANGS = """
import zlib

def hangs(completions, **columns):
    while any(zlib.crc32(text.encode()) % 8 == 0 for text in completions):
        pass
    return [0.25] * len(completions)
"""


def test_the_example_trains_beside_a_function_that_hangs(tmp_path):
    assert doc_pages.write_named(PAGE, tmp_path) == ["my_reward.py"]
    assert len((tmp_path / "my_reward.py").read_text().splitlines()) <= 10
    (tmp_path / "experiments").symlink_to(doc_pages.ROOT / "experiments")
    (tmp_path / "hangs.py").write_text(HANGS)
    command = doc_pages.blocks(PAGE, "bash")[0].replace("\\\n", " ")
    command = command.replace("overlong?max=16", "overlong?max=16,hangs.py:hangs")
    command = command.replace("0.5,1,0.1", "0.5,1,0.1,2")
    program, *flags = shlex.split(command)
    assert program == "python"
    flags += ["--config.reward.seconds=0.3", "--config.samples_per_step=1000"]
    flags += ["--config.evaluation.limit=4", "--config.data.validation="]
    done = subprocess.run(
        [sys.executable, *flags], cwd=tmp_path, capture_output=True, text=True, check=False,
        env=os.environ | on_devices(1) | {"PYTHONPATH": str(doc_pages.ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "reward hangs: TimeoutError: took more than 0.3 s" in done.stdout
    run = tmp_path / "runs" / "closeness"
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    steps = [row for row in rows if "reward" in row]
    assert [row["step"] for row in steps] == [1, 2]
    samples = training_samples(run)
    for row in steps:
        own = [s for s in samples if s["step"] == row["step"]]
        hung = [s for s in own if "errors" in s]
        assert row["reward_errors/hangs"] == len(hung) > 0
        assert [s for s in own if zlib.crc32(s["response"].encode()) % 8 == 0] == hung
        parts = [s["parts"] for s in own]
        assert {p["hangs"] for p in parts} == {0.0, 0.25}
        assert all(0 <= p["closeness"] <= 1 for p in parts)
        assert all((p["math"] == 1) == (p["closeness"] == 1) for p in parts)
        assert {p["overlong"] for p in parts} <= {0.0, -1 / 3, -2 / 3, -1.0}
        for name, weight in (("closeness", 0.5), ("math", 1), ("overlong", 0.1), ("hangs", 2)):
            mean = sum(p[name] for p in parts) / len(parts)
            assert abs(row[f"reward/{name}"] - mean) < 1e-6
            row["reward"] -= weight * mean
        assert abs(row["reward"]) < 1e-5, "the weighted sum of its parts"
        assert row["accuracy"] == row["reward/math"]
