"""Examples for a cold start: reasoning-gym's problems with answers, chain_sum's with their steps.

    python -m experiments.smollm2.examples --out=runs/cold.jsonl --each=40
    python -m experiments.sft --model=models/SmolLM2-135M-Instruct --data=runs/cold.jsonl \\
        --out=runs/cold --config.data.prompt_tokens=256 --config.data.response_tokens=64

Rows are shuffled and each holds its task's instruction, so that they can be read by any trainer.
A policy that never writes <answer> tags gets no reward at all; some ten updates on these end that.
"""

import json
import pathlib
import random
import re

from absl import flags

from experiments import main
from experiments.smollm2.survey import TASKS, spec
from remix_jax import files
from remix_jax.data import tasks
from remix_jax.data.problems import TAG_INSTRUCTION
from remix_jax.errors import InputError


def worked_sum(problem: str) -> str:
    """The steps of "... 35 + 40 - 34 =" from left to right, a line each."""
    terms = re.findall(r"([+-]?) ?(\d+)", problem.rpartition(":")[2])
    total, lines = int(terms[0][1]), []
    for sign, number in terms[1:]:
        before, total = total, total + int(sign + number)
        lines.append(f"{before} {sign} {number} = {total}")
    return "\n".join(lines)


WORKED = {"chain_sum": worked_sum}


def rows_of(task: str, text: str) -> list[dict[str, str]]:
    """Prompts of a set, with the instruction, and what is to be said.

    Raises:
      InputError: the set has a problem without an answer.
    """
    rows = []
    for problem in tasks.generated(tasks.parse(text)):
        if not problem.answers:
            raise InputError(f"{text}: {problem.id} has no answer to show")
        steps = WORKED[task](problem.problem) + "\n" if task in WORKED else ""
        completion = f"{steps}<answer>{problem.answers[0]}</answer>"
        prompt = f"{problem.problem} {TAG_INSTRUCTION}"
        rows.append({"prompt": prompt, "completion": completion})
    return rows


def examples() -> None:
    """The file behind the flags."""
    given = list(SETS.value) or [spec(name, EACH.value, seed=0) for name in TASKS]
    rows = [row for text in given for row in rows_of(tasks.parse(text).generator, text)]
    random.Random(0).shuffle(rows)
    out = pathlib.Path(str(OUT.value)).expanduser()
    out.parent.mkdir(parents=True, exist_ok=True)
    files.write_durably(out, "".join(json.dumps(row) + "\n" for row in rows))
    print(f"{out}: {len(rows):,} rows of {len(given)} sets")


if __name__ == "__main__":
    SETS = flags.DEFINE_list("sets", [], "reasoning_gym:NAME?...; none: the survey's tasks")
    EACH = flags.DEFINE_integer("each", 40, "rows of each of the survey's tasks", lower_bound=1)
    OUT = flags.DEFINE_string("out", None, "the file to write: rows.jsonl")
    main.run(examples, required=("out",))
