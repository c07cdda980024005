"""Collecting traces: every attempt counted, the first verified one kept, continued after a kill."""

import dataclasses
import io
import pathlib
import shutil

import numpy as np
import pytest
from absl import flags

from experiments import collect_traces, collection
from experiments.arithmetic import task
from experiments.collection import Effort, collect
from experiments.configs import arithmetic_prefix_reinforce
from experiments.evaluate import replaced
from remix_jax import streams
from remix_jax.config import Config, Data, Model
from remix_jax.data import traces
from remix_jax.errors import InputError
from remix_jax.models import huggingface
from remix_jax.models.hf_tokenizer import load_vocabulary
from remix_jax.models.sampling import SamplerSettings
from remix_jax.rollout.rollouts import response_ids
from remix_jax.rollout.sampler import Prompts, Task, compiled
from remix_jax.sinks.console import Console

ARITHMETIC = pathlib.Path(task.__file__).parent
SEED, CAP = 3, 12
EFFORT = Effort(attempts=CAP, batch_size=16, group_size=4)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Four chains of three operations and four of six: right one time in three, in ten."""
    problems = tmp_path_factory.mktemp("problems") / "chains.jsonl"
    files = [ARITHMETIC / "problems" / f"chain{n}.jsonl" for n in (3, 6)]
    lines = [file.read_text().splitlines(keepends=True)[:4] for file in files]
    problems.write_text("".join(lines[0] + lines[1]))
    return Config(
        seed=SEED,
        model=Model(path=str(ARITHMETIC / "base")),
        data=Data(train=str(problems), prompt_tokens=18, response_tokens=12),
    )


@pytest.fixture(scope="module")
def collected(config, tmp_path_factory):
    out = tmp_path_factory.mktemp("collected") / "bank"
    return collect(config, EFFORT, out, quiet()), out


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


def test_the_trace_is_the_first_verified_attempt(config, collected):
    """All attempts drawn at once, by their numbers: the bank has the first right one of each."""
    bank, _ = collected
    n = len(bank.traces)
    vocabulary = load_vocabulary(config.model.path)
    model, params = huggingface.load(config.model.path, dtype="float32")
    width = len(bank.traces[0].prompt)
    many = Task(n, width, CAP, 12, SamplerSettings(), vocabulary.eos_ids, vocabulary.pad_id)
    ids = (np.arange(n, dtype=np.int32)[:, None] << collection.ATTEMPT_BITS) + np.arange(CAP)
    asked = Prompts(
        np.array([trace.prompt for trace in bank.traces], np.int32),
        np.full(n, width, np.int32),
        ids.reshape(-1).astype(np.int32),
        np.ones(n * CAP, bool),
    )
    sampled = compiled(model, many)(params, asked, streams.key(SEED, "collection"))
    responses = response_ids(sampled, n * CAP)
    for place, trace in enumerate(bank.traces):
        own = responses[place * CAP : (place + 1) * CAP]
        ending = f"{task.BOX} {value_of(trace.problem)} {task.BOX_END} {task.END}"
        right = [i for i, r in enumerate(own) if text_of(r).endswith(ending)]
        assert trace.response == (tuple(own[right[0]]) if right else ())
        assert trace.attempts > right[0] if right else trace.attempts == CAP


class Killed(BaseException):
    """Stands in for the end of the process."""


def test_a_kill_costs_at_most_a_batch(config, collected, tmp_path, monkeypatch):
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
            collect(config, EFFORT, out, quiet())
    assert traces.load(out) == saves[-1]
    assert saves[-1].attempts == 2 * EFFORT.batch_size
    assert collect(config, EFFORT, out, quiet()) == whole
    assert collect(config, EFFORT, out, quiet()) == whole, "what is finished draws nothing"


def test_a_higher_cap_goes_on_with_what_is_unsolved(config, collected, tmp_path):
    whole, _ = collected
    few = dataclasses.replace(EFFORT, attempts=4)
    bank = collect(config, few, tmp_path / "bank", quiet())
    assert all(t.attempts <= 4 for t in bank.traces)
    more = collect(config, EFFORT, tmp_path / "bank", quiet())
    assert [t.response for t in more.traces] == [t.response for t in whole.traces]


def test_accept_reads_right_responses(config, collected, tmp_path):
    whole, _ = collected
    check = tmp_path / "check.py"
    check.write_text(
        "def begins_odd(problem, response):\n    return int(response.split()[1]) % 2 == 1\n"
    )
    strict = dataclasses.replace(EFFORT, accept=f"{check}:begins_odd")
    bank = collect(config, strict, tmp_path / "bank", quiet())
    assert traces.load(tmp_path / "bank").accept == strict.accept
    refused = 0
    for one, other in zip(bank.traces, whole.traces, strict=True):
        if other.response and other.response[1] % 2 == 0:
            refused += 1
            assert not one.response or one.response[1] % 2 == 1
        else:
            assert one.response == other.response
    assert refused > 0


@pytest.mark.parametrize(
    ("effort", "fields", "message"),
    [
        ({"accept": "experiments.arithmetic.task:right_working"}, {}, "a trace bank with accept ="),
        ({"accept": "experiments.arithmetic.task:wrong"}, {}, "has no wrong"),
        ({}, {"": {"seed": 4}}, "holds a trace bank with seed = 3.0, now 4.0"),
        ({}, {"sampling": {"temperature": 0.7}}, "holds a trace bank with temperature = 1.0"),
        ({}, {"data": {"instruction": "=", "prompt_tokens": 20}}, "trace bank with problems and p"),
        ({}, {"reward": {"functions": ("math", "think_format")}}, "a trace bank with reward = "),
        ({}, {"sampling": {"temperature": 0.0}}, "must be above 0"),
        ({"batch_size": 9}, {}, "--batch_size=9: must be a multiple of group_size = 4"),
        ({"attempts": 2**14 + 1}, {}, "must be from 1 to 16,384"),
        ({}, {"data": {"response_tokens": 400}}, "takes 256 positions"),
    ],
)
def test_what_does_not_fit_is_one_line(config, collected, effort, fields, message, tmp_path):
    _, out = collected
    out = out if "trace bank" in message else tmp_path / "new"
    for section, values in fields.items():
        config = replaced(config, section, **values)
    with pytest.raises(InputError) as error:
        collect(config, dataclasses.replace(EFFORT, **effort), out, quiet())
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_directory_of_something_else_is_left_alone(config, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty and holds no trace bank"):
        collect(config, EFFORT, tmp_path, quiet())


def test_flags_go_before_the_config(config):
    values = flags.FlagValues()
    collect_traces.define_flags(values)
    values(["collect", "--problems=reasoning_gym:chain_sum", "--temperature=0.5", "--seed=7"])
    found = collect_traces.config_of(values, config)
    assert found == replaced(
        replaced(
            replaced(config, "data", train="reasoning_gym:chain_sum"), "sampling", temperature=0.5
        ),
        "",
        seed=7,
    )
    with pytest.raises(InputError, match="--model is required, or a --config"):
        collect_traces.config_of(values)


def test_the_shipped_bank_can_be_continued(tmp_path):
    config = arithmetic_prefix_reinforce.get_config()
    shutil.copytree(config.prefix.bank, tmp_path / "bank")
    done = Effort(attempts=1, accept="experiments.arithmetic.task:right_working")
    assert collect(config, done, tmp_path / "bank", quiet()) == traces.load(config.prefix.bank)
