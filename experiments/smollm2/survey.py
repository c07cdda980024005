"""What a small model can do: reasoning-gym's tasks at their smallest settings, and GSM8K.

    python -m experiments.smollm2.survey --models=models/SmolLM2-135M-Instruct,runs/cold/export \\
        --gsm8k=data/gsm8k/test.parquet --out=runs/survey

Of each model 16 responses a problem at temperature 1; per task pass@1 with its interval, pass@16,
the share of responses from which an answer could be read, and their length. survey.md has the
table, a directory a model the responses; the same command continues after an interruption. RL can
start where some of the responses to a problem are right and some are not: `mixed` is that share of
problems.
"""

import json
import pathlib
from collections.abc import Sequence

from absl import flags
from rich.console import Console as Terminal
from rich.markdown import Markdown

from experiments import main
from remix_jax import evaluation
from remix_jax.config import Config, Data, Evaluation, Model
from remix_jax.errors import InputError
from remix_jax.sinks.console import Console
from remix_jax.text import percent

# Task -> the options that make it as easy as it can be.
TASKS = {
    "chain_sum": "min_terms=2&max_terms=2&min_digits=1&max_digits=1",
    "products": "min_digits=1&max_digits=1",
    "decimal_chain_sum": "min_terms=2&max_terms=2&max_digits=1&max_decimal_places=1",
    "basic_arithmetic": "max_terms=2&max_digits=1&allow_negation=false&allow_parentheses=false",
    "simple_equations": "min_terms=2&max_terms=2&max_value=10",
    "gcd": "max_value=10",
    "lcm": "max_value=10",
    "fraction_simplification": "max_value=9&max_factor=5",
    "prime_factorization": "max_value=20",
    "base_conversion": "max_base=3&max_value=15",
    "count_bits": "max_n=15",
    "number_sequence": "max_terms=4&min_value=0&max_value=10&max_complexity=1",
    "number_filtering": "max_numbers=3&max_decimals=0&min_value=0&max_value=10",
    "number_sorting": "max_numbers=3&max_decimals=0&min_value=0&max_value=10",
    "number_format": "max_num_candidates=2&max_n=2000",
    "coin_flip": "max_trials=3",
    "calendar_arithmetic": "offset_upper_bound=7",
    "leg_counting": "min_animals=1&max_animals=2&max_instances=3",
    "gsm_symbolic": "",
    "aiw": "max_entities=3",
    "family_relationships": "max_family_size=4",
    "syllogism": "",
    "needle_haystack": "min_num_statements=2&max_num_statements=3",
    "letter_counting": "min_words=3&max_words=4",
    "spell_backward": "max_word_len=4",
    "word_sorting": "max_words=3&max_word_length=5",
    "word_sequence_reversal": "max_words=3",
    "letter_jumble": "min_words=1&max_words=1&max_word_len=4&max_corruption_level=0.3",
    "ransom_note": "max_note_length=2&max_magazine_length=4",
    "isomorphic_strings": "max_string_length=3",
    "caesar_cipher": "min_words=1&max_words=2&max_rotation=2",
    "palindrome_generation": "max_length=4",
}
SEED = 100_000  # of problem 0: apart from what a cold start was made of


def spec(task: str, problems: int, seed: int = SEED) -> str:
    """The set of a task: problem i is made from seed + i."""
    options = f"&{TASKS[task]}" if TASKS[task] else ""
    return f"reasoning_gym:{task}?size={problems}&seed={seed}{options}"


def config_of(model: str, names: Sequence[str], gsm8k: str, problems: int, tokens: int) -> Config:
    """The evaluation of one model: 16 responses a problem at temperature 1.

    Raises:
      InputError: an unknown task.
    """
    if unknown := [name for name in names if name not in TASKS]:
        raise InputError(f"--tasks: {unknown[0]!r} is none of {', '.join(TASKS)}")
    sets = [spec(name, problems) for name in names]
    return Config(
        model=Model(path=model, dtype="float32"),
        data=Data(
            suites=(*sets, f"{gsm8k}?name=gsm8k") if gsm8k else tuple(sets),
            prompt_tokens=512,
            response_tokens=tokens,
        ),
        evaluation=Evaluation(samples=SAMPLES, temperature=1.0, batch_size=128, limit=problems),
    )


SAMPLES = 16


def mixed(out: pathlib.Path, name: str) -> float:
    """The share of a set's problems with a right response and a wrong one."""
    right: dict[int, list[bool]] = {}
    for line in (out / "generations.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row["set"] == name:
            right.setdefault(row["place"], []).append(bool(row["correct"]))
    return sum(0 < sum(each) < len(each) for each in right.values()) / len(right)


def table(found: Sequence[dict], outs: Sequence[pathlib.Path]) -> str:
    """A line a task, the columns of each model side by side, in Markdown."""
    columns = ["pass@1", "95 %", f"pass@{SAMPLES}", "mixed", "answered", "tokens"]
    lines = [["task", *columns * len(found)]]
    lines.append(["---", *["---:"] * (len(lines[0]) - 1)])
    for name in found[0]["sets"]:
        line = [name]
        for each, out in zip(found, outs, strict=True):
            f = each["sets"][name]
            interval = " to ".join(f"{100 * bound:.0f}" for bound in f["interval"])
            line += [percent(f["pass@1"]), interval, percent(f["pass@k"][str(SAMPLES)])]
            line += [percent(mixed(out, name)), percent(f["format_rate"])]
            line += [f"{f['response_length']:.0f}"]
        lines.append(line)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def survey() -> None:
    """The survey behind the flags."""
    root, found, outs = pathlib.Path(str(OUT.value)).expanduser(), [], []
    models = list(MODELS.value or ())
    for i, model in enumerate(models):
        asked = TASK_NAMES.value, GSM8K.value, PROBLEMS.value, TOKENS.value
        outs.append(root / f"model{i}")
        found.append(evaluation.evaluate(config_of(model, *asked), outs[-1], Console(0)))
    names = "\n".join(f"* model {i}: {model}" for i, model in enumerate(models))
    text = (
        f"{table(found, outs)}\n\n{names}\n\n{PROBLEMS.value} problems a task, {SAMPLES} responses "
        f"each, at most {TOKENS.value} tokens, temperature 1; 95 %: bootstrap over problems.\n"
    )
    (root / "survey.md").write_text(text)
    Terminal().print(Markdown(text))


if __name__ == "__main__":
    MODELS = flags.DEFINE_list("models", None, "model directories, side by side in the table")
    TASK_NAMES = flags.DEFINE_list("tasks", list(TASKS), "of reasoning-gym")
    GSM8K = flags.DEFINE_string("gsm8k", "", "a file of its test problems; empty: left out")
    PROBLEMS = flags.DEFINE_integer("problems", 16, "of each task", lower_bound=1)
    TOKENS = flags.DEFINE_integer("response_tokens", 64, "of the longest response", lower_bound=1)
    OUT = flags.DEFINE_string("out", "runs/survey", "a directory a model, and survey.md")
    main.run(survey, required=("models",))
