"""The plan of a run from its config and the model's config.json: no weights need be there.

Problems, tokenizer and chat template are read and checked as far as they are there.

What stays on a device is exact, from shapes. What a phase takes on top of it is an estimate from
shapes, before the compiler fuses and reuses: the plan of a real run, printed once its programs are
compiled, has the compiler's own figures, and so has `launch.tpu_aot` for a slice. All is of one
device of the mesh that the config asks for, whose devices need not be here.
"""

import collections
import dataclasses
import functools
import math
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh

from remix_jax import config_rules, sharding
from remix_jax.config import Config
from remix_jax.data import tasks
from remix_jax.data.problems import load_problems
from remix_jax.errors import InputError
from remix_jax.learner import losses
from remix_jax.learner.state import Learner, TrainState, abstract_state, make_learner
from remix_jax.models import huggingface, packing
from remix_jax.models.decoder import Decoder, DecoderConfig
from remix_jax.models.hf_tokenizer import load_vocabulary
from remix_jax.models.lora import by_layer, joined
from remix_jax.rewards import Scorer
from remix_jax.rl import family
from remix_jax.run.setup import check_sizes, config_plan, decoding, state_bytes
from remix_jax.sinks import health
from remix_jax.sinks.console import Console
from remix_jax.text import size_text
from remix_jax.types import batch_of, empty_rows, kept_rows

MODEL_CONFIG = "config.json"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


def print_plans(config: Config, console: Console, architectures: pathlib.Path) -> None:
    """Checks a config and prints what its run will do and need.

    Args:
      config: of the run.
      console: takes the plans.
      architectures: folder of NAME/config.json, asked where the model's own is not there yet.

    Raises:
      InputError: the config, or what is there of its problems and tokenizer, is wrong, or no
        config.json describes its model.
    """
    directory, learner, state = described_run(config, architectures)
    mesh = planned_mesh(config.mesh.sizes)
    check_sizes(config, learner.policy.config, mesh)
    problems = problem_plan(config)
    plan = config_plan(config, learner, state) | {"model": config.model.path}
    if directory != pathlib.Path(config.model.path):
        plan["architecture, from"] = directory / MODEL_CONFIG
    plan |= {"mesh": sharding.axes_text(mesh)} | problems
    console.print_plan(plan)
    console.print_plan(memory_plan(config, learner, state, mesh), title="Memory of a device")
    for path in _missing(config):
        console.event(f"not there yet: {path}")


def planned_mesh(wanted: Sequence[int]) -> AbstractMesh:
    """The mesh's sizes without its devices: to plan on a laptop what a pod will hold.

    Raises:
      InputError: as `mesh_shape`, where `sharding.REST` asks for the devices that are here.
    """
    here = jax.device_count() if sharding.REST in wanted else math.prod(wanted)
    return AbstractMesh(sharding.mesh_shape(wanted, here), sharding.AXES)


def problem_plan(config: Config) -> dict[str, object]:
    """Every set of problems that is there, read as the run will read it.

    Without the model's tokenizer the prompts are not made: only the files' form is checked.

    Raises:
      InputError: a set, the chat template, a prompt limit or a reward function is wrong.
    """
    data, scorer = config.data, Scorer.of(config)
    tasks.check_sets(data)
    sets = [spec for spec in (data.train, *data.suites, data.validation) if spec]
    files = {spec: tasks.parse(spec).path for spec in sets}
    ready = [spec for spec in sets if not files[spec] or pathlib.Path(files[spec]).exists()]
    if not all((pathlib.Path(config.model.path) / name).is_file() for name in TOKENIZER):
        for spec in filter(files.get, ready):
            skipped: list[str] | None = [] if data.on_bad_row == "skip" else None
            load_problems(files[spec], skipped, scorer.needs_answers)
        return {}
    tokenizer = load_vocabulary(config.model.path).tokenizer
    load = functools.partial(
        tasks.load_set, data=data, tokenizer=tokenizer, needs_answer=scorer.needs_answers
    )
    skip = data.on_bad_row == "skip"
    found = {spec: load(spec, skip_malformed=skip and spec == data.train) for spec in ready}
    counts = {each.name: _counted(each, data.prompt_tokens) for each in found.values()}
    lines: dict[str, object] = {f"problems, {name}": text for name, text in counts.items()}
    if data.train in found:
        scorer.check(found[data.train].problems)
        held_out = [found[spec] for spec in ready if spec != data.train]
        lines |= tasks.plan(held_out, tokenizer, found[data.train])
        wrong = health.of_problems(found[data.train], held_out, scorer.needs_answers)
        lines |= {f"WARNING: {finding.rule}": finding.text for finding in wrong}
    return lines


def _counted(found: tasks.ProblemSet, limit: int) -> str:
    """How many problems of a set, and how many are left out."""
    left_out = {f"with prompts over {limit} tokens": found.dropped, "malformed": len(found.skipped)}
    more = (f"{number:,} {why}" for why, number in left_out.items() if number)
    return ", left out ".join([f"{len(found.problems):,}", *more])


def described_run(
    config: Config, architectures: pathlib.Path, platform: str = ""
) -> tuple[pathlib.Path, Learner, TrainState]:
    """Where the model is described, the learner, and the shapes of its first state.

    Raises:
      InputError: as `print_plans`.
    """
    config_rules.validate(config)
    directory = _described(config.model.path, architectures)
    sizes = dataclasses.replace(huggingface.read_config(directory), dtype=config.model.dtype)
    learner = make_learner(config, Decoder(sizes), platform)
    return directory, learner, abstract_state(learner)


def memory_plan(
    config: Config, learner: Learner, state: TrainState, mesh: AbstractMesh
) -> dict[str, object]:
    """Bytes of each part of the state, and estimates of what each phase takes on top.

    Anchors that rest on the host count all the same: the learning phase fetches them.
    """
    kept = state_bytes(state, mesh)
    lines: dict[str, object] = {name: size_text(part) for name, part in kept.items()}
    shards, tensor = sharding.row_shards(mesh), mesh.shape["tensor"]
    sizes, extra = learner.policy.config, [0]
    for phase, (task, slots) in decoding(config, learner.policy, mesh, 0, None).items():
        some = f"{slots.number * shards:,} rows" if config.memory.decode_tokens else "each row"
        rows = slots.number if config.memory.decode_tokens else 1  # else as many as there is room
        extra.append(cache_bytes(sizes, rows, task.slots) // tensor)
        lines[f"{phase}: cache of {some}"] = size_text(extra[-1])
    trained = {"params": state.params, "critic_params": state.critic_params}
    gradients = sharding.tree_bytes(trained, mesh)
    micro = learner.static.micro_rows(learner.busy_slots, shards)
    added_up = config.mini_batch_size > micro
    gradients *= 2 if added_up else 1  # the sum so far, and those of one micro-batch
    lines["learning: gradients"] = size_text(gradients)
    saved = backward_bytes(learner, state, micro // shards) // tensor
    lines["learning: kept for the backward pass, estimate"] = size_text(saved)
    extra.append(gradients + saved)
    lines["peak, estimate"] = size_text(sum(kept.values()) + max(extra))
    return lines


def cache_bytes(sizes: DecoderConfig, rows: int, slots: int) -> int:
    """Keys and values of all layers for `rows` full rows of so many slots."""
    numbers = 2 * sizes.layers * sizes.kv_heads * sizes.head_dim * slots * rows
    return numbers * jnp.dtype(sizes.dtype).itemsize


def backward_bytes(learner: Learner, state: TrainState, micro: int) -> int:
    """What automatic differentiation keeps of `micro` rows of the policy, parameters apart.

    The critic's pass comes after the policy's and keeps no more: it has no logits.
    """
    slots = learner.static.prompt_slots, learner.static.response_slots
    batch = jax.eval_shape(lambda: batch_of(kept_rows(empty_rows(micro, *slots))))
    one = jax.ShapeDtypeStruct((), jnp.float32)

    names = family.scheduled(learner.static.method, (), 1, 1, 1)

    def kept(frozen, params, batch, weight, count):
        numbers = dict.fromkeys(names, weight)
        terms, batch = losses.minibatch_terms(learner, joined(frozen, params), batch, numbers)
        given = learner, packing.alone(batch), batch, terms, weight, count, 1

        def loss(params):
            return losses.policy_loss(joined(frozen, params), *given)

        return jax.vjp(loss, params, has_aux=True)[1]

    shapes = jax.eval_shape(kept, state.frozen, state.params, batch, one, one)
    residuals, every = jax.tree.leaves(shapes), jax.eval_shape(by_layer, state.whole(state.params))
    of_params = collections.Counter((x.shape, x.dtype) for x in jax.tree.leaves(every))
    found = collections.Counter((x.shape, x.dtype) for x in residuals)
    layers = learner.policy.config.layers
    stacked = {((layers, *shape), dtype): n for (shape, dtype), n in of_params.items()}
    own = found - of_params - collections.Counter(stacked)  # the latter where layers are scanned
    return sum(n * sharding.tree_bytes(jax.ShapeDtypeStruct(*leaf)) for leaf, n in own.items())


def _described(path: str, architectures: pathlib.Path) -> pathlib.Path:
    """The directory whose config.json describes the model."""
    candidates = (pathlib.Path(path).expanduser(), architectures / pathlib.PurePath(path).name)
    for directory in candidates:
        if (directory / MODEL_CONFIG).is_file():
            return directory
    raise InputError(
        f"{path}: has no {MODEL_CONFIG}, and none is known for that name; --dry_run needs it, "
        "without weights or tokenizer"
    )


def _missing(config: Config) -> list[str]:
    """What a real run will ask for and is not there."""
    model = pathlib.Path(config.model.path)
    files = [model / name for name in (MODEL_CONFIG, *TOKENIZER)]
    sets = [config.data.train, *config.data.suites, config.data.validation]
    paths = [*map(str, files), *(path for each in sets if (path := tasks.parse(each).path))]
    paths += [bank for bank in (config.prefix.bank, config.expert.bank) if bank]
    missing = [path for path in paths if not pathlib.Path(path).exists()]
    if not any(model.glob("*.safetensors")):
        missing.insert(0, f"{model}/*.safetensors")
    return missing
