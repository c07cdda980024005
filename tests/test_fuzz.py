"""Random and mutated input meets a documented error or works: it never crashes anything else."""

import dataclasses
import json
import pathlib

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from experiments import config_flag, main
from experiments.configs import arithmetic_remix_ppo
from math_grader import answers
from math_grader import verdicts as grading
from remix_jax import config as configs
from remix_jax import config_rules, schedule
from remix_jax.config import Config
from remix_jax.data.problems import Problem, load_problems
from remix_jax.errors import InputError
from remix_jax.learner.state import static_of
from remix_jax.models import huggingface
from remix_jax.run import resume
from remix_jax.text import one_line
from tests import tiny_models

# The same examples in every run: a failure is found by whoever causes it, not by the next one.
few = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
many = settings(few, max_examples=300)

LEAVES = [path for path, kind in configs.paths(Config) if not dataclasses.is_dataclass(kind)]
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-2, 300)
    | st.floats()
    | st.floats(0, 1)
    | st.text(max_size=5)
    | st.sampled_from(["gae", "k1", "rloo", "bfloat16", "token-mean", "dual", "auto"])
    | st.lists(st.text(max_size=3), max_size=2).map(tuple)
)


def refused(error, start=""):
    """A message of one line, which begins with what it is about."""
    text = str(error)
    assert text.strip()
    assert "\n" not in text
    assert text.startswith(start)


def config_with(changes):
    config = arithmetic_remix_ppo.get_config()
    for path, value in changes.items():
        *sections, name = path.split(".")
        section = config
        for part in sections:
            section = getattr(section, part)
        setattr(section, name, value)
    return config


@many
@given(st.dictionaries(st.sampled_from(LEAVES), scalars, max_size=4))
def test_any_config_is_valid_or_refused_in_one_line(changes):
    config = config_with(changes)
    try:
        config_rules.validate(config)
    except InputError as error:
        refused(error, "config.")
        return
    # What is valid can be derived, hashed and written.
    assert schedule.stages(config)
    assert schedule.fresh_groups(config, 1) >= 0
    hash(static_of(config))
    assert json.loads(configs.to_json(config))


texts = st.text(max_size=8) | st.sampled_from(["0.3", "1e400", "(1,)", "nan", "[", "'", "1,2"])


@few
@given(st.sampled_from([*LEAVES, "nothing", "replay", "replay.shar", ""]), texts)
def test_any_override_is_taken_or_refused_in_one_line(field, text):
    """--config.FIELD=TEXT as the command line gives it."""
    from absl import flags
    from ml_collections import config_flags

    values = flags.FlagValues()
    flag = config_flags.DEFINE_config_file("config", flag_values=values)
    preset = pathlib.Path(main.__file__).parent / "configs" / "arithmetic_ppo.py"
    try:
        values(["program", f"--config={preset}", f"--config.{field}={text}"])
    except (flags.Error, KeyError, TypeError, ValueError, OSError, AttributeError) as error:
        refused(one_line(error))
        return
    try:
        config_rules.validate(config_flag.value_of(flag))
    except InputError as error:
        refused(error)


@few
@given(st.dictionaries(st.sampled_from(LEAVES), scalars, max_size=3))
def test_any_saved_config_is_compared_or_refused(changes):
    saved = json.loads(configs.to_json(arithmetic_remix_ppo.get_config()))
    for path, value in changes.items():
        *sections, name = path.split(".")
        section = saved
        for part in sections:
            section = section[part]
        section[name] = value if not isinstance(value, tuple) else list(value)
    try:
        allowed = resume.changes(saved, arithmetic_remix_ppo.get_config(), "DIR")
        assert set(allowed) <= set(changes)
    except InputError as error:
        refused(error)


signs = "\\{}()[]^_$%,.-+=<>|&~ 019xΠ\n\u200b\ud800"
words = (
    "\\boxed{ \\frac \\text{ {{ }} </think> <think> \\sqrt 1e999 \\cup \\pi 10^ cm \\% \\left( "
    "\\begin{pmatrix} \\end{pmatrix} 3/4 __class__ 999999999999999999999999999999 0.0 import"
)
pieces = st.sampled_from([*signs, *words.split()])
responses = st.lists(pieces, max_size=12).map("".join)


class NoPool:
    """Nothing is computed here: every comparison runs out of time."""

    def compare(self, pairs):
        assert all(answers.screen(text) not in ("text", "heavy") for pair in pairs for text in pair)
        return [None] * len(pairs)


@many
@given(responses, responses, st.booleans())
def test_any_response_gets_a_verdict(response, gold, boxed):
    response = f"so \\boxed{{{response}}}" if boxed else response
    (verdict,) = grading.grade_many([response], [[gold, 3, 0.5]], NoPool())
    assert verdict.reason in grading.Reason.__args__
    assert verdict.correct == (verdict.reason == "match")
    itself = grading.grade_many([f"\\boxed{{{gold}}}"], [gold], NoPool())[0]
    if "{" not in gold and "}" not in gold and "\\" not in gold and gold.strip():
        assert itself.reason in ("match", "no-box", "wrong", "timeout")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6)
    | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["problem", "answer", "question", "prompt", "reward_model", "id", "role",
                         "content", "ground_truth", "answers_json", "user"]),
        inner, max_size=4,
    ),
    max_leaves=8,
)  # fmt: skip


def read(path):
    """Problems or an InputError of one line, with the rows skipped and without."""
    for skipped in (None, []):
        try:
            problems = load_problems(path, skipped)
        except InputError as error:
            refused(error, str(path))
            continue
        assert problems
        assert all(isinstance(p, Problem) and p.problem.strip() and p.answers for p in problems)


@few
@given(st.lists(json_values, max_size=3), st.binary(max_size=30), st.integers(0, 200))
def test_any_json_file_is_read_or_refused(tmp_path, rows, noise, at):
    text = json.dumps(rows).encode()
    lines = b"\n".join(json.dumps(row).encode() for row in rows)
    for name, content in (("a.json", text), ("a.jsonl", lines)):
        path = tmp_path / name
        path.write_bytes(content)
        read(path)
        path.write_bytes(content[:at] + noise + content[at + len(noise) :])
        read(path)


@few
@given(st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=6))
def test_any_parquet_file_is_read_or_refused(tmp_path, changes):
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"problem": ["1 + 1", "2 + 2"], "answer": ["2", "4"]})
    pyarrow.parquet.write_table(table, path)
    data = bytearray(path.read_bytes())
    for place, value in changes:
        data[place % len(data)] = value
    path.write_bytes(data)
    read(path)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A small model directory, and the bytes of its weights."""
    directory = tmp_path_factory.mktemp("model") / "model"
    model, params = tiny_models.random_decoder(tiny_models.decoder_config(layers=1))
    huggingface.save(model, params, directory)
    return directory, (directory / "model.safetensors").read_bytes()


@few
@given(st.data())
def test_any_safetensors_header_is_read_or_refused(weights, data):
    directory, good = weights
    size = int.from_bytes(good[:8], "little")
    bad = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, 7) | st.integers(8, 8 + size - 1))
        bad[place] = data.draw(st.integers(0, 255) | st.sampled_from(list(b'0123456789[]{},:"')))
    cut = data.draw(st.none() | st.integers(0, len(good)))
    (directory / "model.safetensors").write_bytes(bytes(bad)[:cut])
    try:
        model, params = huggingface.load(directory)
    except InputError as error:
        refused(error)
        return
    shapes = huggingface._parameter_shapes(model)
    assert len(shapes) == len(huggingface.flax.traverse_util.flatten_dict(params))
    assert dataclasses.is_dataclass(model.config)
