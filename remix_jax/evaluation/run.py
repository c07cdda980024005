"""Responses to held-out problems, sampled and scored in batches: during a run, and of any model.

A response that `evaluate` draws depends on the seed and its `row_id`, not on its batch: a continued
evaluation gives the figures of an unbroken one, up to rounding in batches of other shapes.
"""

import contextlib
import dataclasses
import hashlib
import io
import itertools
import json
import math
import pathlib
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh
from rich.markdown import Markdown

from remix_jax import config_rules, files, processes, rewards, sharding, streams
from remix_jax.config import Config
from remix_jax.data import tasks
from remix_jax.data.problems import Problem
from remix_jax.data.tasks import ProblemSet
from remix_jax.errors import InputError
from remix_jax.evaluation import results
from remix_jax.learner import policy as policies
from remix_jax.models import huggingface
from remix_jax.models.decoder import DecoderConfig
from remix_jax.models.hf_tokenizer import Vocabulary, load_vocabulary
from remix_jax.rewards import Item, Score, Scorer
from remix_jax.rollout.rollouts import prompt_batch, response_ids, sample, score_responses
from remix_jax.rollout.sampler import Prompts, Sampler, Task, evaluation_task, make
from remix_jax.sinks.console import Console
from remix_jax.text import duration

SETTINGS, GENERATIONS = "settings.json", "generations.jsonl"
_SHOWN = ("model", "temperature", "top_p", "prompt_tokens", "response_tokens", "seed", "dtype")
SAMPLE_BITS, PLACE_BITS = 10, 14  # of a response's number: see `row_id`
# Prompts are padded to the least of limit / 16, limit / 4, limit that holds them: three programs at
# most, and no short prompt pays for the cache of a long one.
_WIDTHS = (16, 4, 1)
# In the order of the paper's tables, which is part of their random streams.
BENCHMARKS = ("aime24", "amc23", "math500", "minerva", "olympiad_bench")


class Question(NamedTuple):
    """One response to be drawn."""

    set: str
    place: int  # index of the problem in its set
    sample: int
    problem: Problem
    prompt: list[int]
    form: str  # of the answer


def questions(sets: Sequence[ProblemSet], samples: int) -> list[Question]:
    """Of each problem as many as its set says, else `samples`, in order."""
    return [
        Question(s.name, place, i, problem, prompt, s.form)
        for s in sets
        for place, problem, prompt in zip(s.indices, s.problems, s.prompts, strict=True)
        for i in range(s.samples or samples)
    ]


def respond(
    sampler: Sampler,
    task: Task,
    params: dict,
    asked: Sequence[Question],
    row_ids: Sequence[int],
    vocabulary: Vocabulary,
    config: Config,
    scorer: Scorer,
) -> Iterator[list[tuple[Question, Item, Score]]]:
    """Responses to the questions and their scores, in order, in batches of the task's rows.

    `task.group_size` questions in a row have one prompt; `row_ids` number the random streams.
    """
    key = streams.key(config.seed, "evaluation")
    for part in (slice(i, i + task.rows) for i in range(0, len(asked), task.rows)):
        batch, n = asked[part], len(asked[part])
        prompts = [q.prompt for q in batch]
        groups = prompts[:: task.group_size]
        tokens_QP, length_Q = prompt_batch(groups, task.prompts, task.prompt_slots, task.pad_id)
        ids_B = np.pad(np.array(row_ids[part], np.int32), (0, task.rows - n))
        inputs = Prompts(tokens_QP, length_Q, ids_B, np.arange(task.rows) < n)
        sampled = sampler(params, inputs, key)
        ids, ended = response_ids(sampled, n), jax.device_get(sampled.ended_B)[:n].tolist()
        problems, forms = [q.problem for q in batch], [q.form for q in batch]
        said = score_responses(scorer, vocabulary, problems, prompts, forms, ids, ended)
        yield [(question, *found) for question, found in zip(batch, said, strict=True)]


def held_out(
    sampler: Sampler,
    params: dict,
    suites: Sequence[ProblemSet],
    validation: Sequence[ProblemSet],
    vocabulary: Vocabulary,
    config: Config,
    scorer: Scorer,
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Pass@1 of each suite and the unweighted mean of the suites, as the paper reports them.

    The draws depend on the config's seed and the problem's place alone: the same noise at every
    step, whatever the batches.

    Returns:
      eval/<suite> and eval/mean in [0, 1], or mean rewards where no function says what correct is;
      eval_reward/<suite>, the mean reward, where that may be another number; over the suites,
      eval/response_length in tokens and eval/grader_timeout_rate, the share of responses that the
      grader gave up on; validation/<name> of the problems that settings are chosen by, which no
      mean contains. And lines of samples.jsonl: the first problems of each suite.
    """
    task = evaluation_task(config, vocabulary.eos_ids, vocabulary.pad_id)
    asked = questions([*suites, *validation], config.evaluation.samples)
    row_ids = range(len(asked))
    batches = respond(sampler, task, params, asked, row_ids, vocabulary, config, scorer)
    said = list(itertools.chain.from_iterable(batches))
    metrics: dict[str, float] = {}
    for kind, sets in (("eval", suites), ("validation", validation)):
        for each in sets:
            figures = rewards.metrics([score for q, _, score in said if q.set == each.name])
            metrics[f"{kind}/{each.name}"] = figures.get("accuracy", figures["reward"])
            if config.reward.functions or each.form == "reasoning_gym":
                metrics[f"{kind}_reward/{each.name}"] = figures["reward"]
    names = [s.name for s in suites]
    of_suites = [(item, score) for q, item, score in said if q.set in names]
    means: dict[str, Sequence[float]] = {
        "eval/mean": [metrics[f"eval/{name}"] for name in names],
        "eval/response_length": [len(item.completion_ids) for item, _ in of_suites],
        "eval/grader_timeout_rate": [score.reason == "timeout" for _, score in of_suites],
    }
    metrics |= {name: float(np.mean(values)) for name, values in means.items()}
    most, samples = config.samples_per_step // max(len(suites), 1), list[dict[str, Any]]()
    for name in names:
        own = [(item, score) for q, item, score in said if q.set == name][:most]
        samples += [{"held_out": name} | sample(vocabulary, *each) for each in own]
    return metrics, samples


def evaluate(
    config: Config, out: str | pathlib.Path | None = None, console: Console | None = None
) -> dict[str, Any]:
    """Evaluates config.model on config.data.suites, or continues to; under the config's reward.

    Several processes divide devices and scoring; the first one alone writes. Decoding is by
    config.evaluation, lengths and instruction are of config.data (docs/evaluation.md).

    Args:
      out: directory of settings, generations and results; None: nothing is written.
      console: takes plan, progress and tables; None: nothing is said.

    Returns:
      What results.json holds: see `results.summarise`; nothing on other processes than the first.

    Raises:
      InputError: config, model, problems, mesh or `out`; before anything is generated.
    """
    console = console or Console(0, file=io.StringIO(), terminal=False)
    scorer, vocabulary = Scorer.of(config), load_vocabulary(config.model.path)
    sets = _sets(config, vocabulary, scorer)
    mesh = sharding.make_mesh(config.mesh.sizes)
    sizes = huggingface.read_config(config.model.path)
    check_model(config, sizes, mesh, config.data.prompt_tokens)
    settings = _settings(config, sets, scorer)
    found: dict[str, Any] = {}
    with _Record(out, settings) as record:
        plan = {name: settings[name] for name in _SHOWN}
        for s in sets:
            dropped = f", {s.dropped} dropped: prompt too long" if s.dropped else ""
            samples = "1 sample" if s.samples == 1 else f"{s.samples} samples"
            plan[s.name] = f"{s.size} problems, {samples} each{dropped}"
        plan |= {"reward": scorer.text, "device": sharding.devices_text(mesh)}
        plan |= tasks.plan(sets, vocabulary.tokenizer)
        console.print_plan(plan, title="Evaluation")
        _generate(config, sets, vocabulary, mesh, scorer, record, console)
        if processes.is_first():
            found = results.summarise(record.rows, sets, settings)
            console.print(Markdown(results.tables(found)))
            if record.directory is not None:
                results.write(found, record.directory)
                console.event(f"results.json, results.md and {GENERATIONS} are in {out}")
    processes.wait_for_all("evaluated")
    return found


def check_model(
    config: Config, sizes: DecoderConfig, mesh: Mesh | AbstractMesh | None, prompt_slots: int
) -> None:
    """Raises InputError where rows exceed the model's positions, or a mesh cuts its heads."""
    slots = prompt_slots + config.data.response_tokens
    if slots > sizes.max_positions:
        prefix = " + config.prefix.tokens" if prompt_slots > config.data.prompt_tokens else ""
        raise InputError(
            f"config.data.prompt_tokens + config.data.response_tokens{prefix} = {slots}: "
            f"{config.model.path} takes {sizes.max_positions} positions (max_position_embeddings)"
        )
    tensor = 1 if mesh is None else mesh.shape["tensor"]
    if sizes.kv_heads % tensor:
        raise InputError(
            f"config.mesh.tensor = {tensor}: must divide the model's {sizes.kv_heads} key heads"
        )


def row_id(name: str, place: int, sample: int) -> int:
    """The number of a response's random stream: of its set, place and sample alone, below 2^31."""
    known = len(BENCHMARKS)
    number = zlib.crc32(name.encode()) % (2 ** (31 - PLACE_BITS - SAMPLE_BITS) - known) + known
    if name in BENCHMARKS:
        number = BENCHMARKS.index(name)
    return (number << PLACE_BITS | place) << SAMPLE_BITS | sample


class _Record(contextlib.ExitStack):
    """The generations of an evaluation: those that were there, and those that are added."""

    def __init__(self, out: str | pathlib.Path | None, settings: Mapping[str, Any]) -> None:
        super().__init__()
        self.rows: list[dict[str, Any]] = []
        self.directory: pathlib.Path | None = None
        if out is not None:
            processes.first_does(lambda: self._open(files.resolve(out, "--out"), settings))
        there = processes.from_first([(r["set"], r["place"], r["sample"]) for r in self.rows])
        self.done = set(map(tuple, there))

    def _open(self, root: files.Path, settings: Mapping[str, Any]) -> None:
        claim = files.claimed(
            root, SETTINGS, settings, what="evaluation", flag="--out", others=(GENERATIONS,)
        )
        self._mirror = self.enter_context(claim)
        directory = self.directory = self._mirror.local
        self._lines = files.JsonLines(directory / GENERATIONS)
        self.callback(self._lines.close)
        self.rows = [row for _, row in files.json_lines(directory / GENERATIONS)]

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        """Adds a batch; returns when it is on disk."""
        self.rows += rows
        if self.directory is not None:
            for row in rows:
                self._lines.write(row)
            self._lines.sync()
            self._mirror.push()


def _sets(config: Config, vocabulary: Vocabulary, scorer: Scorer) -> list[ProblemSet]:
    """The sets asked for, after a look at the config."""
    data, e = config.data, config.evaluation
    if not data.suites:
        raise InputError("no set to evaluate: name one in config.data.suites")
    filled = dataclasses.replace(data, train=data.train or data.suites[0])
    config_rules.validate(dataclasses.replace(config, data=filled))
    tasks.check_names([tasks.parse(spec).name for spec in data.suites])
    found = []
    for spec in data.suites:
        each = tasks.load_set(
            spec, data, vocabulary.tokenizer, needs_answer=scorer.needs_answers, limit=e.limit
        )
        each = each._replace(samples=each.samples or e.samples)
        scorer.check(each.problems)
        if each.size > 2**PLACE_BITS or each.samples > 2**SAMPLE_BITS:
            raise InputError(
                f"{spec}: {each.size:,} problems, {each.samples:,} samples each; at most "
                f"{2**PLACE_BITS:,} (config.evaluation.limit) and {2**SAMPLE_BITS:,}"
            )
        if each.samples > 1 and e.temperature == 0:
            raise InputError(f"{spec}: {each.samples} samples: greedy decoding has one sample")
        found.append(each)
    return found


def _settings(config: Config, sets: Sequence[ProblemSet], scorer: Scorer) -> dict[str, Any]:
    """As saved: what must be the same for an evaluation to be continued."""
    content = [[s.prompts, [(p.problem, p.answers) for p in s.problems]] for s in sets]
    e, data, model = config.evaluation, config.data, config.model
    return {
        "model": str(pathlib.Path(model.path).expanduser().resolve()),
        "sets": [s.name for s in sets],
        "samples": [s.samples for s in sets],
        "temperature": e.temperature,
        "top_p": e.top_p,
        "limit": e.limit,
        "prompt_tokens": data.prompt_tokens,
        "response_tokens": data.response_tokens,
        "instruction": [s.instruction for s in sets],
        "answer": [s.form for s in sets],
        "reward": scorer.identity(),
        "seed": config.seed,
        "dtype": model.compute_dtype or model.dtype,
        "model_digest": huggingface.model_digest(model.path),
        "problems_digest": hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16],
    }


def _generate(
    config: Config,
    sets: Sequence[ProblemSet],
    vocabulary: Vocabulary,
    mesh: Mesh | None,
    scorer: Scorer,
    record: _Record,
    console: Console,
) -> None:
    """Draws what is missing, batch by batch, longest prompts first: they need most memory."""
    every = questions(sets, config.evaluation.samples)
    missing = [q for q in every if (q.set, q.place, q.sample) not in record.done]
    missing.sort(key=lambda q: -len(q.prompt))
    if record.done:
        console.event(f"{len(record.done):,} responses were there already")
    if not missing:
        return
    config = policies.as_saved(config)
    (policy, params), rows = policies.load(config, mesh), config.evaluation.batch_size
    task = evaluation_task(config, vocabulary.eos_ids, vocabulary.pad_id)
    kept = sharding.tree_bytes(params, mesh)
    widths = sorted({-(-config.data.prompt_tokens // part) for part in _WIDTHS}, reverse=True)
    batches, number = [], 0
    for width, below in zip(widths, [*widths[1:], 0], strict=True):
        if fitting := [q for q in missing if below < len(q.prompt) <= width]:
            own = dataclasses.replace(task, prompts=rows, group_size=1, prompt_slots=width)
            row_ids = [row_id(q.set, q.place, q.sample) for q in fitting]
            drawn = make(config, policy, own, mesh, kept), own, params, fitting, row_ids
            batches.append(respond(*drawn, vocabulary, config, scorer))
            number += math.ceil(len(fitting) / rows)
    console.event(f"{len(missing):,} responses to generate in {number:,} batches")
    begin, responses, tokens = time.monotonic(), 0, 0
    for i, said in enumerate(itertools.chain.from_iterable(batches), start=1):
        record.add([_row(*each) for each in said])
        responses += len(said)
        tokens += sum(len(item.completion_ids) for _, item, _ in said)
        spent = max(time.monotonic() - begin, 1e-9)
        left = spent / responses * (len(missing) - responses)
        console.print(
            f"batch {i:,}/{number:,} | responses {responses:,}/{len(missing):,} | "
            f"{tokens / spent:,.0f} tokens/s | {duration(spent)}, left {duration(left)}"
        )


def _row(question: Question, item: Item, score: Score) -> dict[str, Any]:
    """A line of generations.jsonl."""
    row = {
        "set": question.set,
        "place": question.place,
        "sample": question.sample,
        "problem_id": item.problem.id,
        "problem": item.problem.problem,
        "answers": item.problem.answers,
        "prompt": item.prompt,
        "response": item.completion,
        "answer": score.answer,
        "correct": score.correct,
        "verdict": score.reason,
        "reward": score.reward,
        "length": len(item.completion_ids),
        "truncated": not item.ended,
        "format": bool(score.answer),
        "reflection": results.REFLECTION.search(item.completion) is not None,
    }
    if score.errors or len(score.parts) > 1:
        row |= {"parts": score.parts, "errors": score.errors}
    return row
