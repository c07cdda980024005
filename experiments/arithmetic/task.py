"""The arithmetic task: chains of additions and subtractions modulo 20.

A problem is a chain such as ``17 +3 -5 . . . . . . . . . . . . =``: a first value, 14 places for
operations, the unused ones marked by dots. Its worked solution writes one running value per
operation and repeats the last one as the answer: ``<think> 0 15 </think> \\boxed{ 15 }``. One
operation is one token and the places are fixed, so that operation and running value lie at one
distance in every chain: a model of 0.1M parameters then learns to follow along in seconds, and what
is left to learn is the arithmetic.

The base model is taught to make *systematic* mistakes: each of the 20 (sign, digit) pairs has a
fixed probability of being computed wrongly and a fixed wrong offset (`Rules`), and a wrong value is
carried on. Slips at random would leave greedy decoding right already and reduce reinforcement
learning to sharpening; rules must be unlearned. Counting modulo 20 instead of 10 halves what luck
earns, and offsets of +1 and +2 only keep two mistakes in one chain from cancelling.

Everything here is a function of a seed and uses `random.Random.random`, the one generator whose
stream Python documents as fixed across versions, so that the files are the same bytes everywhere.
"""

import dataclasses
import json
import math
import pathlib
import random
from collections.abc import Iterable

import tokenizers

MODULUS = 20
SIGNS = ("+", "-")
DIGITS = 10
PLACES = 14  # for operations in every problem
PROMPT_TOKENS = PLACES + 4  # every prompt: user, first value, places, "=", assistant
MAX_POSITIONS = 256  # of the base; the longest chain and its solution take 38 tokens

EASY = (3, 6)  # operations per chain, both ends included
LONG = (7, 14)
HARD = (12, 14)
MIDDLE = (7, 10)  # harder than any easy chain, never trained on, by no means hard
SUITES = (3, 4, 5, 6, 7)  # held-out suites, one per number of operations

TRAIN_ROWS = 8192
VALIDATION_ROWS = 256
SUITE_ROWS = 256
HARD_ROWS = 256
HARD_PROBABILITY = (5e-5, 5e-4)  # of a wholly correct worked solution under the rules

ERROR_PROBABILITIES = (0.0, 0.0, 0.3, 0.5, 0.6)  # dealt out evenly over the 20 pairs
OFFSETS = (1, 2)

USER, ASSISTANT, END, PAD, UNKNOWN = "<|user|>", "<|assistant|>", "<|end|>", "<|pad|>", "<|unk|>"
SPECIAL_WORDS = (USER, ASSISTANT, END, PAD, UNKNOWN)
THINK, THINK_END, BOX, BOX_END = "<think>", "</think>", "\\boxed{", "}"
UNUSED = "."
# The id of a value is the value itself, that of an operation follows from sign and digit: the
# trainer of the base writes token ids directly.
VALUES = tuple(str(value) for value in range(MODULUS))
OPERATIONS = tuple(f"{sign}{digit}" for sign in SIGNS for digit in range(DIGITS))
WORDS = (*VALUES, *OPERATIONS, UNUSED, "=", THINK, THINK_END, BOX, BOX_END, *SPECIAL_WORDS)
ID = {word: index for index, word in enumerate(WORDS)}

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message.role == 'user' -%}"
    "{{- '<|user|> ' + message.content | trim -}}"
    "{%- elif message.role == 'assistant' -%}"
    "{{- '<|assistant|> ' + message.content | trim + '<|end|>' -}}"
    "{%- else -%}"
    "{{- raise_exception('this model knows the roles user and assistant only') -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)


@dataclasses.dataclass(frozen=True)
class Chain:
    """A first value in 0..19 and the operations that follow: (index into SIGNS, digit) pairs."""

    first: int
    operations: tuple[tuple[int, int], ...]

    def text(self) -> str:
        """The problem as the model reads it, e.g. ``17 +3 -5 . . . . . . . . . . . . =``."""
        operations = [OPERATIONS[DIGITS * sign + digit] for sign, digit in self.operations]
        unused = [UNUSED] * (PLACES - len(operations))
        return " ".join([str(self.first), *operations, *unused, "="])

    def values(self) -> list[int]:
        """The correct running value after each operation."""
        values, value = [], self.first
        for sign, digit in self.operations:
            value = (value + (digit if sign == 0 else -digit)) % MODULUS
            values.append(value)
        return values


@dataclasses.dataclass(frozen=True)
class Rules:
    """The misconceptions of one base: what goes wrong, how often, for each [sign][digit]."""

    error_probability: tuple[tuple[float, ...], ...]
    offset: tuple[tuple[int, ...], ...]

    def solution_probability(self, chain: Chain) -> float:
        """Probability that every running value of a worked solution is right."""
        return math.prod(1.0 - self.error_probability[s][d] for s, d in chain.operations)


def solution_text(values: Iterable[int]) -> str:
    """The response that works through `values` and answers with the last of them."""
    values = list(values)
    steps = " ".join(str(value) for value in values)
    return f"<think> {steps} </think> \\boxed{{ {values[-1]} }}"


def right_working(problem: str, response: str) -> bool:
    """Whether a response is the worked solution of a problem, value by value.

    A right answer alone says little: two mistakes may cancel, which they do in four of five right
    answers that the base gives to a hard chain.
    """
    first, *operations = (word for word in problem.split() if word not in (UNUSED, "="))
    pairs = (divmod(OPERATIONS.index(word), DIGITS) for word in operations)
    return response.split() == solution_text(Chain(int(first), tuple(pairs)).values()).split()


def make_rules(seed: int) -> Rules:
    """Deals the 20 (sign, digit) pairs their error probabilities, four pairs to each entry."""
    rng = random.Random(f"rules {seed}")
    pairs = len(SIGNS) * DIGITS
    deck = list(ERROR_PROBABILITIES) * (pairs // len(ERROR_PROBABILITIES))
    deck = [p for _, p in sorted((rng.random(), p) for p in deck)]
    offsets = [OFFSETS[_below(rng, len(OFFSETS))] for _ in range(pairs)]
    return Rules(
        error_probability=(tuple(deck[:DIGITS]), tuple(deck[DIGITS:])),
        offset=(tuple(offsets[:DIGITS]), tuple(offsets[DIGITS:])),
    )


def make_problems(rules: Rules, seed: int) -> dict[str, list[dict[str, str]]]:
    """All problem sets by name, no chain in more than one.

    `train`, `validation` (what settings are chosen by), five suites, the hard split with a
    validation set of its own, and `middle`, longer than easy chains and shorter than hard ones.
    Rows have the fields problem, answer and id. `train` and `validation` are uniform over 3 to 6
    operations. The hard split keeps only chains whose `Rules.solution_probability` lies in
    HARD_PROBABILITY: among random long chains some are nearly free of mistakes and on-policy
    learning climbs on those.
    """
    rng = random.Random(f"problems {seed}")
    seen: set[Chain] = set()

    def draw(name: str, count: int, operations: tuple[int, int], hard: bool = False) -> list:
        rows: list[dict[str, str]] = []
        while len(rows) < count:
            chain = _random_chain(rng, *operations)
            low, high = HARD_PROBABILITY
            if chain in seen or (hard and not low <= rules.solution_probability(chain) <= high):
                continue
            seen.add(chain)
            answer = str(chain.values()[-1])
            rows.append({"problem": chain.text(), "answer": answer, "id": f"{name}-{len(rows)}"})
        return rows

    sets = {f"chain{n}": draw(f"chain{n}", SUITE_ROWS, (n, n)) for n in SUITES}
    sets["hard_test"] = draw("hard_test", HARD_ROWS, HARD, hard=True)
    sets["hard_train"] = draw("hard_train", HARD_ROWS, HARD, hard=True)
    sets["train"] = draw("train", TRAIN_ROWS, EASY)
    sets["validation"] = draw("validation", VALIDATION_ROWS, EASY)
    sets["hard_validation"] = draw("hard_validation", HARD_ROWS, HARD, hard=True)
    sets["middle"] = draw("middle", SUITE_ROWS, MIDDLE)
    return sets


def write_problems(sets: dict[str, list[dict[str, str]]], directory: pathlib.Path) -> None:
    """Writes each set as NAME.jsonl, one row a line."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, rows in sets.items():
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (directory / f"{name}.jsonl").write_text(lines, encoding="utf-8")


def write_tokenizer(directory: pathlib.Path) -> None:
    """Writes tokenizer.json, tokenizer_config.json with the chat template, generation_config.json.

    One word, one token. Ordinary words carry the space in front of them, so that decoding is plain
    concatenation and ``encode(decode(ids)) == ids``. All words are added tokens, which are cut
    out of the text before any pre-tokenizer sees it: `AutoTokenizer` of transformers 5 replaces the
    pre-tokenizer and the decoder of every "qwen2" directory by Qwen2's own, whatever class the
    directory names, and this way both of them give the same ids. An unknown word becomes <|unk|>.

    The padding token is not the end token: a dumped row then shows where it ended. Nothing in the
    trainer depends on the difference.
    """
    pieces = {word if word in SPECIAL_WORDS else f" {word}": i for i, word in enumerate(WORDS)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab=pieces, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = tokenizers.decoders.Fuse()
    ordinary = [piece for piece in pieces if piece not in SPECIAL_WORDS]
    tokenizer.add_tokens([tokenizers.AddedToken(p, normalized=False) for p in ordinary])
    tokenizer.add_special_tokens(list(SPECIAL_WORDS))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": PAD,
        "unk_token": UNKNOWN,
        "clean_up_tokenization_spaces": False,
        "model_max_length": MAX_POSITIONS,
        "chat_template": CHAT_TEMPLATE,
    }
    generation = {
        "do_sample": True,
        "temperature": 1.0,
        "eos_token_id": ID[END],
        "pad_token_id": ID[PAD],
    }
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"), pretty=True)
    for name, content in (("tokenizer_config", config), ("generation_config", generation)):
        text = json.dumps(content, indent=2) + "\n"
        (directory / f"{name}.json").write_text(text, encoding="utf-8")


def _random_chain(rng: random.Random, fewest: int, most: int) -> Chain:
    operations = fewest + _below(rng, most - fewest + 1)
    first = _below(rng, MODULUS)
    pairs = ((_below(rng, len(SIGNS)), _below(rng, DIGITS)) for _ in range(operations))
    return Chain(first, tuple(pairs))


def _below(rng: random.Random, bound: int) -> int:
    return int(rng.random() * bound)
