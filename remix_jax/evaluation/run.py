"""An evaluation from end to end: problems, prompts, batches, files, figures.

Generations are written after every batch, so that a kill costs at most the batch that was running.
A response depends on the seed, its set, its problem's place and its sample number (`row_id`), not
on the batch that it was drawn in: a continued evaluation gives the figures of an unbroken one, up
to the rounding of sums in batches of other shapes.
"""

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from remix_jax import processes, sharding
from remix_jax.data.benchmark_sets import BENCHMARKS, locate
from remix_jax.data.problems import INSTRUCTION, Problem, load_problems
from remix_jax.data.prompts import chat, encode_prompts
from remix_jax.errors import InputError
from remix_jax.evaluation import record, results
from remix_jax.evaluation.reflection import reflects
from remix_jax.evaluation.respond import Response, respond
from remix_jax.evaluation.settings import PLACE_BITS, Settings, identity, row_id, validate
from remix_jax.grading import verdicts as grading
from remix_jax.models import huggingface
from remix_jax.models.sampling import SamplerSettings
from remix_jax.rollout.rollouts import Vocabulary, load_vocabulary
from remix_jax.rollout.sampler import Task, compiled
from remix_jax.sinks.console import Console
from remix_jax.sinks.progress import Progress

# Prompts are padded to the least of limit / 16, limit / 4, limit that holds them: three programs at
# most, and no short prompt pays for the cache of a long one.
_WIDTHS = (16, 4, 1)


class Question(NamedTuple):
    """One response to be drawn."""

    benchmark: str
    place: int  # of the problem in its set
    sample: int
    problem: Problem
    prompt: list[int]


def run(settings: Settings, out: str | pathlib.Path, console: Console) -> dict:
    """Evaluates, or continues to, and leaves settings, generations and results in `out`.

    Several processes divide devices and grading; the first one alone writes.

    Returns:
      What results.json holds: see `results.summarise`; nothing on other processes than the first.

    Raises:
      InputError: settings, model, problems, mesh or `out`; before anything is generated.
    """
    out = pathlib.Path(out)
    validate(settings)
    vocabulary = load_vocabulary(settings.model)
    problems = {name: _problems(settings, name) for name in settings.benchmarks}
    questions = _questions(settings, problems, vocabulary)
    mesh = _mesh(settings)
    saved = identity(settings, problems)
    processes.first_does(lambda: record.claim(out, saved))
    console.print_plan(_plan(settings, problems, questions, mesh), title="Evaluation")
    _generate(settings, vocabulary, questions, mesh, out, console)
    found = _summarise(settings, problems, saved, out, console) if processes.is_first() else {}
    processes.wait_for_all("evaluated")
    return found


def _summarise(settings: Settings, problems, saved, out: pathlib.Path, console: Console) -> dict:
    found = results.summarise(
        record.read_generations(out), problems, dict(_per_set(settings)), saved
    )
    results.write(found, out)
    console.print(results.tables(found))
    console.event(f"results.json, results.md and generations.jsonl are in {out}")
    return found


def _per_set(settings: Settings):
    return zip(settings.benchmarks, settings.samples, strict=True)


def _problems(settings: Settings, name: str) -> list[Problem]:
    path = locate(settings.data, name)
    problems = load_problems(path)
    if len(problems) > 2**PLACE_BITS:
        raise InputError(f"{path}: {len(problems):,} problems; a set can have {2**PLACE_BITS:,}")
    return problems[: settings.limit or None]


def _questions(settings: Settings, problems, vocabulary: Vocabulary) -> list[Question]:
    """Every response to draw, those with the longest prompts first: they need the most memory."""
    questions = []
    for name, samples in _per_set(settings):
        texts = [chat(problem.problem, INSTRUCTION) for problem in problems[name]]
        encoded = encode_prompts(vocabulary.tokenizer, texts, settings.prompt_tokens)
        for place, prompt in zip(encoded.indices, encoded.ids, strict=True):
            problem = problems[name][place]
            questions += [Question(name, place, i, problem, prompt) for i in range(samples)]
    return sorted(questions, key=lambda q: -len(q.prompt))


def _mesh(settings: Settings) -> Mesh | None:
    """The mesh asked for, after a look whether the model suits it and the lengths."""
    sizes = huggingface.read_config(settings.model)
    slots = settings.prompt_tokens + settings.response_tokens
    if slots > sizes.max_positions:
        raise InputError(
            f"--prompt_tokens + --response_tokens = {slots}: {settings.model} takes "
            f"{sizes.max_positions} positions (max_position_embeddings)"
        )
    mesh = sharding.make_mesh(settings.mesh)
    if mesh is not None and sizes.kv_heads % mesh.shape["tensor"]:
        raise InputError(
            f"--mesh: tensor = {mesh.shape['tensor']} must divide the model's {sizes.kv_heads} "
            "key heads"
        )
    return mesh


def _plan(
    settings: Settings, problems, questions: Sequence[Question], mesh: Mesh | None
) -> dict[str, object]:
    lines: dict[str, object] = {"model": settings.model}
    for name, samples in _per_set(settings):
        asked = len({q.place for q in questions if q.benchmark == name})
        size, whole = len(problems[name]), BENCHMARKS[name].problems
        notes = [f"{samples} sample{'s' if samples > 1 else ''} each"]
        notes += [f"{size - asked} dropped: prompt too long"] if asked < size else []
        notes += [f"the paper's set has {whole}"] if size != whole else []
        lines[name] = f"{size} problems, {', '.join(notes)}"
    heat = settings.temperature
    return lines | {
        "decoding": f"temperature {heat:g}, top-p {settings.top_p:g}" if heat else "greedy",
        "tokens": f"{settings.prompt_tokens} of prompt, {settings.response_tokens} of response",
        "seed": str(settings.seed),
        "dtype": settings.dtype,
        "batch": f"{settings.batch_size} responses",
        "device": sharding.devices_text(mesh),
    }


def _generate(
    settings: Settings,
    vocabulary: Vocabulary,
    questions: Sequence[Question],
    mesh: Mesh | None,
    out: pathlib.Path,
    console: Console,
) -> None:
    """Draws what is missing of `questions`, batch by batch."""
    known = processes.first_does(
        lambda: [(r["set"], r["place"], r["sample"]) for r in record.read_generations(out)]
    )
    done = set(map(tuple, known))
    missing = [q for q in questions if (q.benchmark, q.place, q.sample) not in done]
    if done:
        console.event(f"{len(done):,} responses were there already")
    if not missing:
        return
    batches = _batches(settings, missing)
    model, params = huggingface.load(settings.model, dtype=settings.dtype, mesh=mesh)
    heat = SamplerSettings(temperature=settings.temperature, top_p=settings.top_p)
    ends = vocabulary.eos_ids, vocabulary.pad_id
    tasks = {
        width: Task(settings.batch_size, width, 1, settings.response_tokens, heat, *ends)
        for width in sorted({width for width, _ in batches})
    }
    samplers = {width: compiled(model, task, mesh) for width, task in tasks.items()}
    progress = Progress(len(batches), len(missing), console)
    key = jax.random.key(settings.seed)
    pool = grading.process_pool()
    for width, batch in batches:
        ids = [row_id(q.benchmark, q.place, q.sample) for q in batch]
        problems, prompts = [q.problem for q in batch], [q.prompt for q in batch]
        responses = respond(
            samplers[width], tasks[width], params, problems, prompts, ids, vocabulary, key, pool
        )
        seen = vocabulary.tokenizer.batch_decode(prompts)
        if processes.is_first():
            record.append_generations(out, map(_record, batch, seen, responses))
        progress.advance(len(batch), sum(r.length for r in responses))


def _batches(settings: Settings, questions: Sequence[Question]) -> list[tuple[int, list[Question]]]:
    """(prompt width, questions) of each batch, in the questions' order."""
    widths = sorted({-(-settings.prompt_tokens // part) for part in _WIDTHS}, reverse=True)
    batches = []
    for width, below in zip(widths, [*widths[1:], 0], strict=True):
        fitting = [q for q in questions if below < len(q.prompt) <= width]
        starts = range(0, len(fitting), settings.batch_size)
        batches += [(width, fitting[i : i + settings.batch_size]) for i in starts]
    return batches


def _record(question: Question, prompt: str, response: Response) -> dict:
    """A line of generations.jsonl; `prompt` is what the model saw, special tokens and all."""
    return {
        "set": question.benchmark,
        "place": question.place,
        "sample": question.sample,
        "problem_id": question.problem.id,
        "problem": question.problem.problem,
        "answers": question.problem.answers,
        "prompt": prompt,
        "response": response.text,
        "answer": response.verdict.answer,
        "correct": response.verdict.correct,
        "verdict": response.verdict.reason,
        "length": response.length,
        "truncated": not response.ended,
        "format": grading.format_ok(response.text),
        "reflection": reflects(response.text),
    }
