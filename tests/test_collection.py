"""Collecting traces: every attempt counted, the first verified one kept, continued after a kill."""

import dataclasses
import io
import pathlib

import numpy as np
import pytest

from experiments.arithmetic import task
from remix_jax import collection
from remix_jax.collection import Settings, collect
from remix_jax.data import traces
from remix_jax.errors import InputError
from remix_jax.learner.programs import compile_sampler
from remix_jax.learner.rollout import load_vocabulary
from remix_jax.models import huggingface
from remix_jax.models.sampling import SamplerSettings
from remix_jax.reporting.console import Console

ARITHMETIC = pathlib.Path(task.__file__).parent
SEED, CAP = 3, 10


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Eight chains of six operations, each right one time in ten."""
    problems = tmp_path_factory.mktemp("problems") / "chain6.jsonl"
    lines = (ARITHMETIC / "problems" / "chain6.jsonl").read_text().splitlines(keepends=True)
    problems.write_text("".join(lines[:8]))
    return Settings(
        model=str(ARITHMETIC / "base"),
        problems=str(problems),
        instruction="",
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        min_p=0.0,
        prompt_tokens=18,
        response_tokens=12,
        seed=SEED,
        dtype="float32",
        attempts=CAP,
        batch_size=8,
        group_size=2,
    )


@pytest.fixture(scope="module")
def collected(settings, tmp_path_factory):
    out = tmp_path_factory.mktemp("collected") / "bank"
    return collect(settings, out, quiet()), out


def quiet() -> Console:
    return Console(0, file=io.StringIO(), terminal=False)


def text_of(ids) -> str:
    words = [task.WORDS[i] for i in ids]
    return " ".join(words)


def value_of(problem: str) -> int:
    first, *rest = (word for word in problem.split() if word not in (".", "="))
    return (int(first) + sum(map(int, rest))) % task.MODULUS


def test_every_trace_is_verified_and_every_attempt_counted(collected):
    bank, out = collected
    assert traces.load(out) == bank
    solved = [t for t in bank.traces if t.response]
    assert 0 < len(solved) < 8, "some are solved, some not: both paths are seen"
    for trace in solved:
        *_, box, answer, end, last = (task.WORDS[i] for i in trace.response)
        assert (box, end, last) == (task.BOX, task.BOX_END, task.END)
        assert int(answer) == value_of(trace.problem)
        assert trace.prompt[-1] == task.ID[task.ASSISTANT]
    assert all(t.attempts == CAP for t in bank.traces if not t.response)
    assert all(0 < t.attempts <= CAP for t in bank.traces)
    assert bank.attempts == sum(t.attempts for t in bank.traces)
    per_attempt = [t.flops / t.attempts for t in bank.traces]
    assert max(per_attempt) < 2 * min(per_attempt)


def test_the_trace_is_the_first_verified_attempt(settings, collected):
    """All attempts of a problem drawn at once, by their numbers: the bank has the first right."""
    bank, _ = collected
    place = next(i for i, t in enumerate(bank.traces) if t.response)
    trace = bank.traces[place]
    vocabulary = load_vocabulary(settings.model)
    model, params = huggingface.load(settings.model, dtype="float32")
    many = compile_sampler(
        model, len(trace.prompt), 12, 1, CAP, SamplerSettings(),
        eos_ids=vocabulary.eos_ids, pad_id=vocabulary.pad_id,
    )  # fmt: skip
    ids = (place << collection.ATTEMPT_BITS) + np.arange(CAP, dtype=np.int32)
    prompt = np.array([trace.prompt], np.int32)
    sampled = many.call(
        params, prompt, np.array([len(trace.prompt)], np.int32), ids, np.ones(CAP, bool),
        collection.jax.random.key(SEED),
    )  # fmt: skip
    responses = collection.response_ids(sampled, CAP)
    ending = f"{task.BOX} {value_of(trace.problem)} {task.BOX_END} {task.END}"
    right = [tuple(r) for r in responses if text_of(r).endswith(ending)]
    assert right[0] == trace.response
    first = responses.index(list(trace.response))
    assert first < trace.attempts <= first + settings.batch_size, "no more than its batch's rest"


class Killed(BaseException):
    """Stands in for the end of the process."""


def test_a_kill_costs_at_most_a_batch(settings, collected, tmp_path, monkeypatch):
    whole, _ = collected
    out = tmp_path / "bank"
    save, saves = traces.save, []

    def killed(bank, directory):
        if len(saves) == 3:
            raise Killed
        saves.append(bank)
        save(bank, directory)

    with monkeypatch.context() as patch:
        patch.setattr(traces, "save", killed)
        with pytest.raises(Killed):
            collect(settings, out, quiet())
    assert traces.load(out) == saves[-1]
    assert saves[-1].attempts == 2 * settings.batch_size
    assert collect(settings, out, quiet()) == whole
    assert collect(settings, out, quiet()) == whole, "what is finished draws nothing"


def test_a_higher_cap_goes_on_with_what_is_unsolved(settings, collected, tmp_path):
    whole, _ = collected
    few = dataclasses.replace(settings, attempts=4)
    bank = collect(few, tmp_path / "bank", quiet())
    assert all(t.attempts <= 4 for t in bank.traces)
    more = collect(settings, tmp_path / "bank", quiet())
    assert [t.response for t in more.traces] == [t.response for t in whole.traces]


def without_zero(problem, response):
    return "0" not in response.split()


def test_accept_reads_right_responses(settings, collected, tmp_path):
    whole, _ = collected
    strict = dataclasses.replace(settings, accept=f"{__name__}:without_zero")
    bank = collect(strict, tmp_path / "bank", quiet())
    assert traces.load(tmp_path / "bank").accept == strict.accept
    refused = 0
    for one, other in zip(bank.traces, whole.traces, strict=True):
        if other.response and 0 in other.response:
            refused += 1
            assert 0 not in one.response
        else:
            assert one.response == other.response
    assert refused > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accept": "experiments.arithmetic.task:right_working"}, "holds a bank of other accept"),
        ({"accept": "experiments.arithmetic.task:wrong"}, "expected MODULE:FUNCTION"),
        ({"seed": 4}, "holds a bank of other seed"),
        ({"temperature": 0.7}, "holds a bank of other temperature"),
        ({"instruction": "="}, "holds a bank of other problems or prompts"),
        ({"temperature": 0.0}, "must be above 0"),
        ({"batch_size": 9}, "multiple of group_size = 2"),
        ({"attempts": 2**14 + 1}, "must be from 1 to 16,384"),
        ({"response_tokens": 400}, "takes 256 positions"),
    ],
)
def test_what_does_not_fit_is_one_line(settings, collected, changes, message, tmp_path):
    _, out = collected
    out = out if "holds" in message else tmp_path / "new"
    changed = dataclasses.replace(settings, **changes)
    if "instruction" in changes:
        changed = dataclasses.replace(changed, prompt_tokens=20)
    with pytest.raises(InputError) as error:
        collect(changed, out, quiet())
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_directory_of_something_else_is_left_alone(settings, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty and holds no trace bank"):
        collect(settings, tmp_path, quiet())
