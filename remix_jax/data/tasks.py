"""Sets of problems by name, as `data.train`, `data.suites` and `data.validation` hold: a file, a
directory that TFDS prepared, or `reasoning_gym:NAME`; options follow a "?" (docs/tasks.md).

    data/test.jsonl?answer=boxed&system=Be brief.
    reasoning_gym:chain_sum?size=2000&seed=0&max_terms=3
"""

import dataclasses
import difflib
import inspect
import pathlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from remix_jax import plugins
from remix_jax.config import Data
from remix_jax.data.problems import FORMS, Problem, asked_form, load_problems
from remix_jax.errors import InputError
from remix_jax.text import one_line

_OPTIONS = ("instruction", "system", "answer", "name", "samples")  # of every set
_FIELDS = ("problem_field", "answer_field")  # of a file
_GYM = "reasoning_gym:"
# Templates that write today's date (Llama 3's) write their own default date instead: prompts must
# be the same on every day of a run. A macro stands before the function that transformers offers.
_DATE = {"%Y": "2024", "%m": "07", "%d": "26", "%B": "July", "%b": "Jul", "%A": "Friday"}
_REPLACED = "".join(f"|replace('{mark}', '{text}')" for mark, text in _DATE.items())
_SAME_DAY = f"{{% macro strftime_now(f) %}}{{{{ f{_REPLACED} }}}}{{% endmacro %}}{{{{ '' }}}}"

Chat = list[dict[str, str]]  # messages as templates take them: {"role": ..., "content": ...}


class Spec(NamedTuple):
    """A set's name taken apart."""

    text: str
    name: str  # what the set is called
    path: str  # of its file or directory; empty: it is generated
    generator: str  # NAME of reasoning_gym:NAME; empty: it is read
    own: dict[str, str]  # those options that every set may have
    options: dict[str, Any]  # of the generator


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
    """A spec taken apart, or an InputError where its options do not belong to it."""
    source, options = plugins.split_options(text, what)
    own = {name: str(options.pop(name)) for name in (*_OPTIONS, *_FIELDS) if name in options}
    where, form, samples = f"{what} = {text!r}", own.get("answer", "boxed"), own.get("samples", "1")
    if form not in FORMS:
        raise InputError(f"{where}: answer={form} can be {', '.join(FORMS)}")
    if not samples.isdigit() or int(samples) < 1:
        raise InputError(f"{where}: samples={samples} must be a whole number from 1")
    if source.startswith(_GYM):
        for name in (name for name in _FIELDS if name in own):
            raise InputError(f"{where}: {name} is for files")
        options = {"size": 500, "seed": 0} | options
        for name, least in (("size", 1), ("seed", 0)):
            if type(options[name]) is not int or options[name] < least:
                raise InputError(f"{where}: {name} must be a whole number from {least}")
        generator = source.removeprefix(_GYM)
        return Spec(text, own.get("name", generator), "", generator, own, options)
    if options:
        known = ", ".join((*_OPTIONS, *_FIELDS))
        raise InputError(f"{where}: a file has no option {next(iter(options))}; it can be {known}")
    path = pathlib.Path(source)
    is_version = path.name.replace(".", "").isdigit()  # of a prepared directory .../NAME/1.0.0
    name = own.get("name", path.parent.name if is_version else path.stem)
    return Spec(text, name, source and str(path.expanduser()), "", own, options)


def check_sets(data: Data) -> None:
    """Raises InputError for two sets of one name, or held-out seeds that are those of training."""
    held = [parse(text, "config.data.suites") for text in data.suites]
    held += [parse(text, "config.data.validation") for text in (data.validation,) if text]
    check_names([spec.name for spec in held])
    train = parse(data.train, "config.data.train")
    for spec in held:
        if "samples" in spec.own:
            raise InputError(f"{spec.text!r}: a run takes config.evaluation.samples for all sets")
        if train.generator and spec.generator == train.generator:
            (a, n), (b, m) = ((s.options["seed"], s.options["size"]) for s in (spec, train))
            if a < b + m and b < a + n:
                raise InputError(
                    f"{spec.text!r}: shares problems with the training set {train.text!r} "
                    "(reasoning-gym makes problem i from seed + i); give it another seed, as "
                    f"seed={b + m}"
                )


def check_names(names: Sequence[str]) -> None:
    """Raises InputError where two sets have one name."""
    for name, number in Counter(names).items():
        if number > 1:
            raise InputError(f"{number} sets are called {name}: name one SET?name=OTHER")


def load_set(
    text: str,
    data: Data,
    tokenizer: Any,
    *,
    needs_answer: bool = True,
    skip_malformed: bool = False,
    limit: int = 0,
) -> ProblemSet:
    """The problems of a spec under the model's chat template, those that fit data.prompt_tokens.

    Args:
      data: gives instruction, system prompt, form of the answer where the spec does not.
      needs_answer: False where the reward scores problems without an answer too.
      skip_malformed: leaves malformed rows out, and says so in `skipped`, instead of refusing.
      limit: the first so many problems; 0: all.

    Raises:
      InputError: the set cannot be read or made, or its parts contradict each other.
    """
    spec, skipped = parse(text), list[str]()
    left_out = skipped if skip_malformed else None
    if spec.generator:
        every = generated(spec)
    else:
        fields = {name: spec.own[name] for name in _FIELDS if name in spec.own}
        every = load_problems(spec.path, left_out, needs_answer, **fields)
    problems = every[: limit or None]
    form, instruction = _asked(spec, data, problems, needs_answer)
    chats: list[Chat] = []
    for p in problems:
        if p.instructed and p.asks not in (form, "reasoning_gym"):
            raise InputError(
                f"{text!r}: the prompt of {p.id} asks for an answer {FORMS[p.asks][0]}, the set is "
                f"scored by answer={form}"
            )
        added = spec.own.get("instruction", "") if p.instructed else instruction
        chats.append(chat(p.problem, added, spec.own.get("system", data.system_prompt), p.context))
    how = data.chat_template_kwargs
    prompts = encode_prompts(tokenizer, chats, data.prompt_tokens, how)
    kept, dropped = [problems[i] for i in prompts], len(problems) - len(prompts)
    found = ProblemSet(spec.name, kept, list(prompts.values()), dropped, tuple(skipped), form)
    samples = int(spec.own.get("samples", 0))
    return found._replace(instruction=instruction, samples=samples, indices=tuple(prompts))


def chat(
    text: str, instruction: str = "", system: str = "", context: Iterable[tuple[str, str]] = ()
) -> Chat:
    """A problem as messages: the system's, those before it, and the problem with an instruction.

    Args:
      system: takes the place of a system message in `context`; empty: that stays.
      context: (role, text) of the messages before the problem.
    """
    first = [("system", system)] if system else []
    before = [(r, t) for r, t in context if not (system and r == "system")]
    last = ("user", f"{text} {instruction}" if instruction else text)
    return [{"role": role, "content": content} for role, content in (*first, *before, last)]


def encode_prompts(
    tokenizer: Any, chats: Sequence[Chat], max_tokens: int, variables: str = ""
) -> dict[int, list[int]]:
    """Index -> token ids of each chat under the model's template, ready for the answer.

    Chats of more than `max_tokens` tokens are left out: a problem cut short is another problem.

    Args:
      variables: of the template, `NAME=VALUE&NAME=VALUE`.

    Raises:
      InputError: no chats, a limit below 1, a variable that the template does not have, a template
        that fails, or every prompt over the limit.
    """
    if not chats:
        raise InputError("there are no problems to make prompts of")
    if max_tokens < 1:
        raise InputError(f"the prompt limit is {max_tokens} tokens; it must be at least 1")
    template = tokenizer.get_chat_template()
    given = _variables(variables, template, tokenizer.apply_chat_template)
    template = _SAME_DAY + template if "strftime_now" in template else template
    how = {"chat_template": template, "add_generation_prompt": True, "return_dict": False} | given
    try:  # together: half the time of one by one
        encoded = tokenizer.apply_chat_template(list(chats), **how)
    except Exception:  # a template can fail in any way that Python can
        encoded = [_encoded_alone(tokenizer, i, each, how) for i, each in enumerate(chats)]
    kept = {i: ids for i, ids in enumerate(encoded) if len(ids) <= max_tokens}
    if not kept:
        raise InputError(
            f"all {len(encoded)} prompts are over the limit of {max_tokens} tokens; "
            f"the shortest has {min(map(len, encoded))}"
        )
    return kept


def _variables(text: str, template: str, apply: Callable) -> dict[str, Any]:
    """The variables that a config gives to a chat template, all of which it reads."""
    if not text:
        return {}
    what = f"config.data.chat_template_kwargs = {text!r}"
    try:
        given = plugins.split_options(f"?{text}", "")[1]
    except InputError:
        raise InputError(f"{what}: must be NAME=VALUE&NAME=VALUE") from None
    own = inspect.signature(apply).parameters
    for name in given:
        if name in own or not re.search(rf"\b{name}\b", template):
            raise InputError(f"{what}: the chat template has no variable {name}")
    return given


def _encoded_alone(tokenizer: Any, i: int, messages: Chat, how: dict[str, Any]) -> list[int]:
    try:
        return tokenizer.apply_chat_template(messages, **how)
    except Exception as error:
        text = messages[-1]["content"][:40]
        raise InputError(
            f"problem {i + 1} ({text!r}): the chat template fails on it ({one_line(error)})"
        ) from None


def plan(
    held_out: Sequence[ProblemSet], tokenizer: Any, train: ProblemSet | None = None
) -> dict[str, object]:
    """How problems are asked, for people: form of the answer, instruction, the end of a prompt."""
    sets = [*([train] if train else []), *held_out]

    def said(say: Callable[[ProblemSet], str]) -> str:
        by_set = {s.name: say(s) for s in sets}
        if len(set(by_set.values())) == 1:
            return by_set[sets[0].name]
        return "; ".join(f"{name}: {text}" for name, text in by_set.items())

    return {
        "answers": said(lambda s: FORMS[s.form][0]),
        "instruction": said(_instruction_text),
        "a prompt ends": repr(tokenizer.decode(sets[0].prompts[0])[-100:]),
    }


def _instruction_text(found: ProblemSet) -> str:
    first = found.problems[0]
    if first.instructed:
        return "in the problems"
    silent = found.form == "boxed" and "\\boxed" not in first.problem
    none = "none (nothing asks for \\boxed{})" if silent else "none"
    return repr(found.instruction) if found.instruction else none


def generated(spec: Spec) -> list[Problem]:
    """The problems of a reasoning-gym dataset; each keeps its entry for `score_answer`."""
    try:
        from reasoning_gym.factory import DATASETS, create_dataset
    except ImportError:
        raise InputError(f"{spec.text!r}: needs reasoning-gym; pip install reasoning-gym") from None
    name = spec.generator
    if name not in DATASETS:
        near = " or ".join(difflib.get_close_matches(name, DATASETS, 3))
        guess = f"; did you mean {near}?" if near else ""
        raise InputError(f"{spec.text!r}: reasoning-gym has no dataset {name!r}{guess}")
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


def _asked(
    spec: Spec, data: Data, problems: Sequence[Problem], needs_answer: bool
) -> tuple[str, str]:
    """The form of a set's answers, and what is added to a problem that asks for none itself."""
    form = spec.own.get("answer") or ("reasoning_gym" if spec.generator else data.answer)
    if not form:  # what most prompts ask for
        asked, number = Counter(problem.asks for problem in problems).most_common(1)[0]
        most = asked if 2 * number > len(problems) else ""
        if most == "reasoning_gym" and needs_answer:
            raise InputError(
                f"{spec.text!r}: its prompts ask for <answer> tags, which no built-in reward "
                "reads; give reward.functions"
            )
        form = "hash" if most == "hash" else "boxed"
    own = spec.own.get("instruction")
    text = data.instruction if own is None else own
    if asked_form(text) not in ("", form):
        if own is not None or "answer" in spec.own or data.answer:
            raise InputError(
                f"{spec.text!r}: the instruction {text!r} asks for another form than "
                f"answer={form}, {FORMS[form][0]}"
            )
        text = ""  # that of the config's other sets
    if not text and own is None:
        taken_off = any(p.asks == "boxed" and not p.instructed for p in problems)
        text = FORMS[form][1] if form != "boxed" or taken_off else ""
    return form, text
