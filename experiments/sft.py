"""Supervised finetuning on prompts and completions: the cold start before RL.

    python -m experiments.sft --model=DIR --data=rows.jsonl --out=runs/sft [--suites=test.jsonl]

A row has `prompt` and `completion` (texts, or chat messages) or `messages` that end with the
assistant's; files are .jsonl, .json or .parquet. Prompts go through the model's chat template with
the instruction that RL appends too, so that what is learned here is what RL asks for. The loss is
the mean -log p over the tokens of completions, their end token among them. It is a run like
any other: the same learner, checkpoints, metrics and export/; the same command continues it, and
any field can be set (--config.optimizer.learning_rate=1e-5, --config.lora.rank=16). The rows as
the run reads them lie beside it, in runs/sft_data.

The last rows are held out: their loss is printed before and after. Those of them that end in a
\\boxed{} answer are the held-out problems of the run unless --suites names others.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags

from experiments import config_flag, main
from math_grader.answers import last_box
from remix_jax import files
from remix_jax.config import Config
from remix_jax.data import tasks, traces
from remix_jax.data.problems import load_problems, read_rows
from remix_jax.data.traces import Bank, Trace
from remix_jax.errors import InputError
from remix_jax.models import huggingface, scoring
from remix_jax.models.hf_tokenizer import Vocabulary, load_vocabulary
from remix_jax.run import loop

PRESET = pathlib.Path(__file__).resolve().parent / "configs" / "sft.py"
HELD_OUT = 64  # rows at most, and no more than a tenth
_ROWS = 8  # of a pass over the held-out rows


class Example(NamedTuple):
    """A row: what is asked, as `load_problems` reads it, and the text that is to be said."""

    row: dict[str, Any]
    completion: str


def read_examples(path: pathlib.Path) -> list[Example]:
    """The examples of a file.

    Raises:
      InputError: names the file, the row, and what was expected there.
    """
    found = []
    for number, (place, row) in enumerate(read_rows(path)):
        try:
            prompt, completion = _parts(row)
        except InputError as error:
            raise InputError(f"{path}, {place}: {error}") from None
        # What the run takes for the answer tells rows of one prompt apart; nothing is graded.
        found.append(Example({"prompt": prompt, "answer": f"row {number}"}, completion))
    if len(found) < 2:
        raise InputError(f"{path}: holds {len(found)} rows; some are to train on, some to hold out")
    return found


def _parts(row: Any) -> tuple[Any, str]:
    """Prompt (a text or messages) and completion of a row."""
    expected = "expected `prompt` and `completion`, or `messages` that end with the assistant's"
    if isinstance(row, InputError):
        raise row
    if not isinstance(row, dict):
        raise InputError(f"{expected}; found no object")
    prompt, said = row.get("prompt"), row.get("completion")
    if isinstance(messages := row.get("messages"), list) and messages:
        prompt, said = messages[:-1], messages[-1:]
    if isinstance(said, list) and len(said) == 1 and isinstance(said[0], dict):
        said = said[0].get("content") if said[0].get("role") == "assistant" else None
    if not prompt or not isinstance(said, str) or not said.strip():
        raise InputError(f"{expected}; found the fields {', '.join(map(str, row))[:200]}")
    return prompt, said


def write(examples: list[Example], folder: pathlib.Path, name: str, vocabulary: Vocabulary) -> None:
    """Problems (name.jsonl) and bank (name/) of a run with `objective.method` sft."""
    file = folder / f"{name}.jsonl"
    files.write_durably(file, "".join(json.dumps(e.row) + "\n" for e in examples))
    end, tokenizer = vocabulary.eos_ids[0], vocabulary.tokenizer
    written = [
        Trace(
            problem.problem,
            problem.answers,
            (),
            (*tokenizer(example.completion, add_special_tokens=False)["input_ids"], end),
            attempts=1,
            flops=0.0,
        )
        for problem, example in zip(load_problems(file), examples, strict=True)
    ]
    bank = Bank("given completions", "", traces.fingerprint(tokenizer), {}, written)
    traces.save(bank, folder / name)


def with_boxes(examples: list[Example], folder: pathlib.Path) -> tuple[str, ...]:
    """A set of the examples that end in a boxed answer, of which that is right; none: empty."""
    boxed = [(e.row, last_box(e.completion)[0]) for e in examples]
    rows = [row | {"answer": answer} for row, answer in boxed if (answer or "").strip()]
    if not rows:
        return ()
    files.write_durably(folder / "boxed.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return (str(folder / "boxed.jsonl"),)


def most_ask_for_tags(examples: list[Example]) -> bool:
    """Whether most prompts ask for an answer between <answer> tags, as reasoning-gym's do."""
    return 2 * sum("<answer>" in str(e.row["prompt"]) for e in examples) > len(examples)


def held_out_loss(model_dir: str | pathlib.Path, config: Config, folder: pathlib.Path) -> float:
    """Mean -log p, in nats, over the completions' tokens of the held-out rows that fit."""
    model, params = huggingface.load(model_dir)
    tokenizer, data = load_vocabulary(model_dir).tokenizer, config.data
    found = tasks.load_set(str(folder / "held_out.jsonl"), data, tokenizer, needs_answer=False)
    said = traces.traces_of(traces.load(folder / "held_out"), found.problems)
    pairs = zip(found.prompts, said, strict=True)
    rows = [(p, t.response) for p, t in pairs if t and len(t.response) <= data.response_tokens]
    if not rows:
        raise InputError(f"{folder / 'held_out.jsonl'}: no row fits prompt and response tokens")
    slots = max(len(prompt) + len(response) for prompt, response in rows)
    score = jax.jit(lambda *given: scoring.token_logps(model, params, *given))
    total = count = 0.0
    for begin in range(0, len(rows), _ROWS):
        tokens_BS, real_BS, own_BS = np.zeros((3, _ROWS, slots), np.int32)
        for b, (prompt, response) in enumerate(rows[begin : begin + _ROWS]):
            both = [*prompt, *response]
            tokens_BS[b, : len(both)], real_BS[b, : len(both)] = both, 1
            own_BS[b, len(prompt) : len(both)] = 1
        total -= float((np.asarray(score(tokens_BS, real_BS)) * own_BS).sum())
        count += own_BS.sum()
    return total / count


def finetune(
    config: Config,
    data: pathlib.Path,
    out: pathlib.Path,
    suites: Sequence[str] = (),
    epochs: float = 0.0,
) -> loop.Outcome:
    """Trains config.model on the rows of a file, or goes on to; the run's directory is `out`.

    Args:
      suites: held-out problems for the pass rate; none: the held-out rows that end in a box.
      epochs: times over the rows; 0: config.steps.

    Raises:
      InputError: the rows, or no problem to tell a pass rate by.
    """
    vocabulary, examples = load_vocabulary(config.model.path), read_examples(data)
    kept = min(HELD_OUT, max(len(examples) // 10, 1))
    folder, train, held = out.with_name(f"{out.name}_data"), examples[:-kept], examples[-kept:]
    folder.mkdir(parents=True, exist_ok=True)
    write(train, folder, "train", vocabulary)
    write(held, folder, "held_out", vocabulary)
    # Prompts that ask for <answer> tags stay as they are: nothing here is scored.
    form = "?answer=reasoning_gym" if most_ask_for_tags(train) else ""
    config.data.train, config.expert.bank = f"{folder}/train.jsonl{form}", str(folder / "train")
    config.data.suites = tuple(suites) or with_boxes(held, folder)
    if not config.data.suites:
        raise InputError("--suites: name a problem file or more; no held-out row ends in \\boxed{}")
    if epochs:
        config.steps = max(round(epochs * len(train) / config.batch_size), 1)
    before = held_out_loss(config.model.path, config, folder)
    print(f"{len(train):,} rows to train on, {kept} held out: {before:.4f} nats a token before")
    outcome = loop.run(config, out)
    if (out / "export").is_dir():
        after = held_out_loss(out / "export", config, folder)
        files.write_durably(out / "held_out.json", json.dumps({"before": before, "after": after}))
        print(f"held-out loss: {before:.4f} nats a token before, {after:.4f} after")
    return outcome


def experiment() -> None:
    """The run behind the flags."""
    config = config_flag.value_of(CONFIG)
    config.model.path = str(MODEL.value)
    data, out = (pathlib.Path(str(path.value)).expanduser() for path in (DATA, OUT))
    main.leave(finetune(config, data, out, SUITES.value, EPOCHS.value))


if __name__ == "__main__":
    CONFIG = config_flag.define(default=str(PRESET))
    MODEL = flags.DEFINE_string("model", None, "a Hugging Face model directory")
    DATA = flags.DEFINE_string("data", None, "rows of prompt and completion, or of messages")
    OUT = flags.DEFINE_string("out", None, "directory of the run: new, or of the same run")
    SUITES = flags.DEFINE_list("suites", [], "held-out problems for the pass rate (docs/tasks.md)")
    EPOCHS = flags.DEFINE_float(
        "epochs", 0.0, "times over the rows; 0: --config.steps", lower_bound=0
    )
    main.run(experiment, required=("model", "data", "out"))
