"""Sets of problems by name: what `data.train`, `data.suites` and `data.validation` may hold.

A spec is a file, a directory that TFDS prepared, or `reasoning_gym:NAME`; options follow a "?":

    data/train.parquet
    data/test.jsonl?answer=boxed&system=Be brief.
    reasoning_gym:chain_sum?size=2000&seed=0&max_terms=3

`instruction`, `system`, `answer`, `name` and `samples` (of `experiments.evaluate`) are options of
every set; the others are those of the reasoning-gym dataset. See docs/tasks.md.
"""

import dataclasses
import difflib
import pathlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from remix_jax import plugins
from remix_jax.config import Data
from remix_jax.data.problems import (
    HASH_INSTRUCTION,
    INSTRUCTION,
    TAG_INSTRUCTION,
    Problem,
    asked_form,
    load_problems,
)
from remix_jax.data.prompts import Chat, chat, encode_prompts
from remix_jax.errors import InputError
from remix_jax.text import one_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

OWN_OPTIONS = ("instruction", "system", "answer", "name", "samples")
# Form of the answer -> (for people, what asks for it, what it looks like in an instruction).
FORMS = {
    "boxed": ("in \\boxed{}", INSTRUCTION, "boxed"),
    "hash": ("a number after ####", HASH_INSTRUCTION, "hash"),
    "reasoning_gym": ("scored by reasoning-gym", TAG_INSTRUCTION, "tag"),
}
_GYM = "reasoning_gym:"


class Spec(NamedTuple):
    """A set's name taken apart."""

    text: str
    source: str  # path, or reasoning_gym:NAME
    own: dict[str, str]  # OWN_OPTIONS that were given
    options: dict[str, Any]  # of the generator

    @property
    def generator(self) -> str:
        """NAME of reasoning_gym:NAME; empty for a path."""
        return self.source.removeprefix(_GYM) if self.source.startswith(_GYM) else ""

    @property
    def name(self) -> str:
        """What the set is called: its file's name, NAME of a prepared .../NAME/1.0.0, `name`."""
        path = pathlib.PurePath(self.source)
        is_version = path.name.replace(".", "").isdigit()
        found = self.generator or (path.parent.name if is_version else path.stem)
        return self.own.get("name", found)

    @property
    def samples(self) -> int:
        """Responses a problem where that is evaluated; 0: as the config says."""
        return int(self.own.get("samples", 0))

    @property
    def seeds(self) -> range:
        """A problem's each: reasoning-gym makes problem i from seed + i."""
        first = self.options["seed"]
        return range(first, first + self.options["size"])


class ProblemSet(NamedTuple):
    """Problems whose prompts fit, as token ids; and how they are asked and scored."""

    name: str
    problems: list[Problem]
    prompts: list[list[int]]
    dropped: int  # over the prompt limit
    skipped: tuple[str, ...] = ()  # what was said of each malformed row left out by choice
    form: str = "boxed"  # of the answer, a key of FORMS
    instruction: str = ""
    samples: int = 0  # responses a problem where that is evaluated; 0: as the config says
    indices: tuple[int, ...] = ()  # of the problems among all of the set

    @property
    def size(self) -> int:
        """Problems of the set, dropped ones too."""
        return len(self.problems) + self.dropped


def parse(text: str, what: str = "problem set") -> Spec:
    """A spec taken apart.

    Raises:
      InputError: options that do not belong to it.
    """
    source, options = plugins.split_options(text, what)
    own = {name: str(options.pop(name)) for name in OWN_OPTIONS if name in options}
    where, form, samples = f"{what} = {text!r}", own.get("answer"), own.get("samples", "1")
    if form is not None and form not in FORMS:
        raise InputError(f"{where}: answer={form} can be {', '.join(FORMS)}")
    if not samples.isdigit() or int(samples) < 1:
        raise InputError(f"{where}: samples={samples} must be a whole number from 1")
    if source.startswith(_GYM):
        options = {"size": 500, "seed": 0} | options
        for name, least in (("size", 1), ("seed", 0)):
            if type(options[name]) is not int or options[name] < least:
                raise InputError(f"{where}: {name} must be a whole number from {least}")
    elif options:
        known = ", ".join(OWN_OPTIONS)
        raise InputError(f"{where}: a file has no option {next(iter(options))}; it can be {known}")
    return Spec(text, source, own, options)


def file_of(text: str) -> str:
    """The path of a spec's file or directory, ~ expanded; empty where there is none."""
    spec = parse(text)
    return "" if spec.generator or not text else str(pathlib.Path(spec.source).expanduser())


def check_sets(data: Data) -> None:
    """Names apart, and no generator whose held-out problems are among those of training.

    Raises:
      InputError: two sets of one name, or seeds that training and a held-out set share.
    """
    held = [parse(text, "config.data.suites") for text in data.suites]
    held += [parse(text, "config.data.validation") for text in (data.validation,) if text]
    check_names([spec.name for spec in held])
    train = parse(data.train, "config.data.train")
    for spec in held:
        if spec.samples:
            raise InputError(f"{spec.text!r}: a run takes config.evaluation.samples for all sets")
        if train.generator and spec.generator == train.generator:
            own, other = spec.seeds, train.seeds
            if own.start < other.stop and other.start < own.stop:
                raise InputError(
                    f"{spec.text!r}: shares problems with the training set {train.text!r} "
                    "(reasoning-gym makes problem i from seed + i); give it another seed, as "
                    f"seed={other.stop}"
                )


def check_names(names: Sequence[str]) -> None:
    """Sets are told apart by their names.

    Raises:
      InputError: two have one name.
    """
    for name, number in Counter(names).items():
        if number > 1:
            raise InputError(f"{number} sets are called {name}: name one SET?name=OTHER")


def load_set(
    text: str,
    data: Data,
    tokenizer: "PreTrainedTokenizerFast",
    *,
    needs_answer: bool = True,
    skip_malformed: bool = False,
    limit: int = 0,
) -> ProblemSet:
    """The problems of a spec under the model's chat template.

    Prompts over data.prompt_tokens are dropped and counted.

    Args:
      text: the spec.
      data: gives instruction, system prompt, form of the answer where the spec does not.
      tokenizer: of the model.
      needs_answer: False where the reward scores problems without an answer too.
      skip_malformed: leaves malformed rows out, and says so in `skipped`, instead of refusing.
      limit: the first so many problems; 0: all.

    Raises:
      InputError: the set cannot be read or made, or its parts contradict each other.
    """
    spec = parse(text)
    skipped: list[str] = []
    if spec.generator:
        problems = _generated(spec)
    else:
        problems = load_problems(spec.source, skipped if skip_malformed else None, needs_answer)
    problems = problems[: limit or None]
    form = _form(spec, data, problems, needs_answer)
    instruction = _instruction(spec, data, problems, form)
    chats = [_chat(problem, spec, data, form, instruction) for problem in problems]
    encoded = encode_prompts(tokenizer, chats, data.prompt_tokens)
    kept = [problems[i] for i in encoded.indices]
    return ProblemSet(
        spec.name,
        kept,
        encoded.ids,
        encoded.dropped,
        tuple(skipped),
        form,
        instruction,
        spec.samples,
        tuple(encoded.indices),
    )


def plan(
    held_out: Sequence[ProblemSet], tokenizer: Any, train: ProblemSet | None = None
) -> dict[str, object]:
    """How problems are asked, for people: form of the answer, instruction, the end of a prompt.

    With a training set also a warning of held-out problems that are in it.
    """
    lines: dict[str, object] = {}
    sets = [*([train] if train else []), *held_out]
    lines["answers"] = _by_set(sets, lambda s: FORMS[s.form][0])
    lines["instruction"] = _by_set(sets, _instruction_text)
    lines["a prompt ends"] = repr(tokenizer.decode(sets[0].prompts[0])[-100:])
    shared = overlap(train.problems, held_out) if train else []
    if shared:
        found = ", ".join(f"{n:,} of {len(s.problems):,} of {s.name}" for s, n in shared)
        lines["WARNING"] = f"held-out problems that are training problems too: {found}"
    return lines


def overlap(
    train: Iterable[Problem], held_out: Sequence[ProblemSet]
) -> list[tuple[ProblemSet, int]]:
    """The held-out sets with problems whose text is a training problem's, and how many."""

    def words(problems: Iterable[Problem]) -> list[str]:
        return [" ".join(problem.problem.split()) for problem in problems]

    known = set(words(train))
    counts = [(s, sum(text in known for text in words(s.problems))) for s in held_out]
    return [(s, n) for s, n in counts if n]


def _generated(spec: Spec) -> list[Problem]:
    """The problems of a reasoning-gym dataset; each keeps its entry for `score_answer`."""
    try:
        from reasoning_gym.factory import DATASETS, create_dataset
    except ImportError:
        raise InputError(f"{spec.text!r}: needs reasoning-gym; pip install reasoning-gym") from None
    name = spec.generator
    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, 3)
        raise InputError(
            f"{spec.text!r}: reasoning-gym has no dataset {name!r}"
            + (f"; did you mean {' or '.join(near)}?" if near else "")
        )
    known = [field.name for field in dataclasses.fields(DATASETS[name][1])]
    for option in (option for option in spec.options if option not in known):
        raise InputError(f"{spec.text!r}: {name} has no option {option}; it has {', '.join(known)}")
    try:
        entries = list(create_dataset(name, **spec.options))
    except Exception as error:  # the dataset's own checks, and whatever its generator raises
        raise InputError(f"{spec.text!r}: {one_line(error)}") from None
    return [
        Problem(e["question"], (e["answer"],) if e["answer"] else (), f"{spec.name}-{i}", e)
        for i, e in enumerate(entries)
    ]


def _form(spec: Spec, data: Data, problems: Sequence[Problem], needs_answer: bool) -> str:
    """The form of a set's answers: as given, else that which most of its prompts ask for."""
    given = spec.own.get("answer") or ("reasoning_gym" if spec.generator else data.answer)
    if given:
        return given
    asked, number = Counter(problem.asks for problem in problems).most_common(1)[0]
    if not asked or 2 * number <= len(problems):
        return "boxed"
    if asked in FORMS:
        return asked
    if needs_answer:
        raise InputError(
            f"{spec.text!r}: its prompts ask for <answer> tags, which no built-in reward reads; "
            "give reward.functions"
        )
    return "boxed"


def _instruction(spec: Spec, data: Data, problems: Sequence[Problem], form: str) -> str:
    """What is added to each problem that does not itself say in which form to answer."""
    own = spec.own.get("instruction")
    text = data.instruction if own is None else own
    _, default, mark = FORMS[form]
    if asked_form(text) not in ("", mark):
        if own is not None or "answer" in spec.own or data.answer:
            raise InputError(
                f"{spec.text!r}: the instruction {text!r} asks for another form than "
                f"answer={form}, {FORMS[form][0]}"
            )
        text = ""  # that of the config's other sets
    if text or own is not None:
        return text
    taken_off = any(p.asks == "boxed" and not p.instructed for p in problems)
    return default if form != "boxed" or taken_off else ""


def _chat(problem: Problem, spec: Spec, data: Data, form: str, instruction: str) -> Chat:
    if problem.instructed:
        if problem.asks != FORMS[form][2] and problem.asks in FORMS:
            raise InputError(
                f"{spec.text!r}: the prompt of {problem.id} asks for an answer "
                f"{FORMS[problem.asks][0]}, the set is scored by answer={form}"
            )
        instruction = spec.own.get("instruction", "")
    system = spec.own.get("system", data.system_prompt)
    return chat(problem.problem, instruction, system, problem.context)


def _instruction_text(found: ProblemSet) -> str:
    if found.problems[0].instructed:
        return "in the problems"
    if found.instruction:
        return repr(found.instruction)
    silent = found.form == "boxed" and "\\boxed" not in found.problems[0].problem
    return "none (nothing asks for \\boxed{})" if silent else "none"


def _by_set(sets: Sequence[ProblemSet], say) -> str:
    """What is said of all sets, once where it is the same."""
    said = {s.name: say(s) for s in sets}
    if len(set(said.values())) == 1:
        return next(iter(said.values()))
    return "; ".join(f"{name}: {text}" for name, text in said.items())
