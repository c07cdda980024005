"""What a run needs before its first step, loaded and checked; and its plan, for people."""

import concurrent.futures
import functools
import time
from typing import NamedTuple

import jax
from jax.sharding import AbstractMesh, Mesh

from remix_jax import config_rules, device_memory, schedule, sharding
from remix_jax.config import Config
from remix_jax.data import tasks
from remix_jax.data.tasks import ProblemSet
from remix_jax.errors import InputError
from remix_jax.evaluation.run import check_model
from remix_jax.learner import policy as policies
from remix_jax.learner import step as learning
from remix_jax.learner.state import (
    Learner,
    TrainState,
    busy_slots,
    make_learner,
    place_state,
    static_of,
)
from remix_jax.models import attention, huggingface
from remix_jax.models.decoder import Decoder, DecoderConfig
from remix_jax.models.hf_tokenizer import Vocabulary, load_vocabulary
from remix_jax.models.prefill import merges
from remix_jax.models.slots import Slots
from remix_jax.rewards import Scorer
from remix_jax.rl import family
from remix_jax.rollout import sampler as sampling
from remix_jax.rollout.draws import Prefixes, load_prefixes, prefix_plan
from remix_jax.rollout.rollouts import Traces, with_traces
from remix_jax.sinks.console import Console
from remix_jax.text import size_text

_SKIPPED_SHOWN = 5  # malformed rows in the plan


class Setup(NamedTuple):
    """A run, ready to compile."""

    config: Config
    learner: Learner
    vocabulary: Vocabulary
    train: ProblemSet
    prefixes: Prefixes | None
    suites: list[ProblemSet]
    validation: list[ProblemSet]  # one, or none
    state: TrainState
    mesh: Mesh | None  # None: one device
    traces: Traces  # an expert's, of every training problem; or none
    scorer: Scorer


def prepare(config: Config) -> Setup:
    """Checks the config, reads problems and tokenizer, loads the model, makes the first state.

    Raises:
      InputError: anything that is wrong with them, in one line.
    """
    config = config_rules.validate(config)
    policies.check_trainable(config)
    kernel, platform = config.model.attention, jax.default_backend()
    dtype = config.model.compute_dtype or config.model.dtype
    if kernel not in ("auto", "plain", attention.chosen(platform, dtype)):
        raise InputError(
            f"config.model.attention = {kernel!r}: this machine's devices are of kind {platform}; "
            "splash is for tpu, cudnn for gpu with bfloat16 products; auto: what suits"
        )
    scorer = Scorer.of(config)
    vocabulary = load_vocabulary(config.model.path)
    data = config.data
    tasks.check_sets(data)
    load = functools.partial(
        tasks.load_set, data=data, tokenizer=vocabulary.tokenizer, needs_answer=scorer.needs_answers
    )
    train = load(data.train, skip_malformed=data.on_bad_row == "skip")
    scorer.check(train.problems)
    train, traces = with_traces(train, config, vocabulary, scorer)
    prefixes = load_prefixes(config, train, vocabulary)
    load = functools.partial(load, limit=config.evaluation.limit)
    suites = [load(spec) for spec in data.suites]
    validation = [load(spec) for spec in (data.validation,) if spec]
    mesh = sharding.make_mesh(config.mesh.sizes)
    check_sizes(config, huggingface.read_config(config.model.path), mesh)
    policy, params = policies.load(config, mesh)
    learner = make_learner(config, policy)
    state = place_state(learner, params, config.seed, mesh)
    sets = train, prefixes, suites, validation
    return Setup(config, learner, vocabulary, *sets, state, mesh, traces, scorer)


def check_sizes(config: Config, sizes: DecoderConfig, mesh: Mesh | AbstractMesh | None) -> None:
    """Rows fit the model's positions; on a mesh no device idles or holds half a head.

    Fresh rows need not divide: how many there are follows from batch_size and replay.share.

    Raises:
      InputError: they do not.
    """
    check_model(config, sizes, mesh, config.prompt_slots)
    if mesh is None:
        return
    shards = sharding.row_shards(mesh)
    static, samples = static_of(config), config.evaluation.samples
    busy = busy_slots(sizes.width)
    rows = (
        ("micro_batch_size", static.micro_rows(busy, shards), 1),
        ("score_batch_size", static.score_rows(busy, shards), 1),
        ("evaluation.batch_size", config.evaluation.batch_size, samples),
    )
    for field, value, unit in rows:
        if value % (shards * unit):
            more = f" and {unit} samples a problem" if unit > 1 else ""
            raise InputError(
                f"config.{field} = {value}: must be a multiple of {shards * unit} on a mesh that "
                f"divides rows over data x fsdp = {shards} devices{more}"
            )


def plan(setup: Setup) -> dict[str, object]:
    """What the run will do, for people: printed before the first step."""
    c, train, skipped = setup.config, setup.train, setup.train.skipped
    held_out, count = [*setup.suites, *setup.validation], len(train.problems)
    sizes = {s.name: f"{s.name} {len(s.problems)}" for s in held_out}
    expert = f"1 of {c.group_size} of each group" if c.own_rows else "all"
    prefixes = prefix_plan(c, setup.prefixes, count) if setup.prefixes is not None else {}
    dropped = sum(s.dropped for s in (train, *held_out))
    more = f"; and {len(skipped) - _SKIPPED_SHOWN:,} more" * (len(skipped) > _SKIPPED_SHOWN)
    malformed = "; ".join(skipped[:_SKIPPED_SHOWN]) + more
    lines = {
        "training problems": f"{count:,} ({schedule.groups_until(c, c.steps) / count:.2f} epochs)",
        "held-out problems": ", ".join(sizes[s.name] for s in setup.suites),
        "rows of an expert": c.expert_rows
        and f"{expert}, traces of {c.expert.bank}; other problems left out",
        "reward": setup.scorer.text,
        **prefixes,
        "settings may be chosen by": ", ".join(sizes[s.name] for s in setup.validation),
        **tasks.plan(held_out, setup.vocabulary.tokenizer, train),
        "problems dropped": dropped
        and f"{dropped:,} with prompts over {c.data.prompt_tokens} tokens",
        "training rows skipped": skipped and f"{len(skipped):,} malformed: {malformed}",
        "device": sharding.devices_text(setup.mesh),
    }
    return config_plan(c, setup.learner, setup.state) | {
        k: text for k, text in lines.items() if text
    }


def config_plan(c: Config, learner: Learner, state: TrainState) -> dict[str, object]:
    """What the config, the models and the shapes of the first state say of a run."""
    o, share = c.objective, c.replay.share
    passes = c.passes / (1 - share)  # over a row of the mix stage, expected: m (1 + p / (1 - p))
    updates = c.batch_size // c.mini_batch_size
    own = family.METHODS[o.method]
    base = {"gae": "PPO", "group_normalized": "GRPO"}.get(o.advantage, o.advantage)
    method = f"{'ReMix-' if share > 0 or c.passes > 1 else ''}{base}"
    if o.method != "mix_ppg":
        params = family.params_of(o.method, o.method_params)
        method = ", ".join([own.title, *(f"{name} {value:g}" for name, value in params.items())])
    ends = 0 < c.reincarnation_step < c.steps
    until = f" until reincarnation after step {c.reincarnation_step}" if ends else ""
    mixed = f"{1 - share:.0%} fresh, {share:.0%} of the last {c.replay.window} steps{until}"
    trained = f"{passes:.2f} expected in the mix stage (m = {c.passes}){', then 1' if ends else ''}"
    more: dict[str, object] = {}
    if sampling.sampler_settings(c).truncates and not c.sampling.correct_truncation:
        more["biased by truncation_gap"] = (
            "the gradient: its ratios do not know of the truncation by top_k, top_p or min_p "
            "(sampling.correct_truncation corrects)"
        )
    if learner.policy.config.lora:
        once = "merged into the weights, once a sampling"
        apart = "applied at every token: merged into such weights they would be rounded away"
        more["adapters in decoding"] = once if merges(learner.policy.config) else apart
    return {
        "method": method,
        "steps": c.steps,
        "fresh rollouts, whole run": schedule.planned_rollouts(c),
        "rows a step": f"{c.batch_size} ({mixed if share > 0 else 'all fresh'})",
        "gradient passes a fresh row": trained if passes != 1 else "1",
        "optimizer steps a pass": f"{updates} of {c.mini_batch_size} rows",
        "parameters": _parameters(c, state),
    } | more


def _parameters(c: Config, state: TrainState) -> object:
    trained = sum(x.size for x in jax.tree.leaves(state.params))
    if state.frozen is None:
        return trained
    frozen = sum(x.size for x in jax.tree.leaves(state.frozen))
    critic = " for policy and critic each" if c.has_critic and c.lora.critic == "adapter" else ""
    return f"{frozen:,} frozen, adapters of rank {c.lora.rank} with {trained:,}{critic}"


def decoding(
    config: Config,
    policy: Decoder,
    mesh: Mesh | AbstractMesh | None,
    kept: int,
    limit: int | None,
) -> dict[str, tuple[sampling.Task, Slots]]:
    """What is decoded in the sampling of each stage, and in evaluation, and in which slots.

    Args:
      kept, limit: bytes that stay on a device, and that it has, as of `sampling.with_budget`.
    """
    tasks = {
        f"sampling, {name} stage": sampling.rollout_task(config, stage, (), 0)
        for name, stage in schedule.stages(config).items()
        if config.own_rows
    } | {"evaluation": sampling.evaluation_task(config, (), 0)}
    shards, found = sharding.row_shards(mesh), {}
    for phase, task in tasks.items():
        task = sampling.with_budget(config, policy, task, mesh, kept, limit)
        found[phase] = task, task.in_slots(shards, policy.config)
    return found


def state_bytes(state: TrainState, mesh: Mesh | AbstractMesh | None = None) -> dict[str, int]:
    """What stays on a device of the mesh, by part; the state may be abstract."""
    parts = {
        "frozen weights": state.frozen,
        "policy": state.params,
        "policy's optimizer": state.opt_state,
        "critic and its optimizer": (state.critic_params, state.critic_opt_state),
        "anchors": (state.base_params, state.prev_params),
        "replay": (state.replay, state.in_flight),
    }
    held = {name: sharding.tree_bytes(part, mesh) for name, part in parts.items()}
    return {name: bytes_ for name, bytes_ in held.items() if bytes_}


def compile_programs(setup: Setup, console: Console) -> tuple[learning.Programs, sampling.Samplers]:
    """The programs of a run; before they are made and after, whether a device can hold it."""
    begin, config, limit = time.perf_counter(), setup.config, device_memory.limit()
    kept = state_bytes(setup.state, setup.mesh)
    state, policy = sum(kept.values()), setup.learner.policy
    if limit is not None and state > limit:
        console.event(
            f"the state alone takes {size_text(state)} of each device, which has {size_text(limit)}"
        )
    console.event("compiling")
    stages = schedule.stages(config).values()
    ends = setup.vocabulary.eos_ids, setup.vocabulary.pad_id

    def build_learning() -> learning.Programs:
        with device_memory.phase("compiling for learning", "learning"):
            return learning.build(setup.learner, stages, setup.mesh)

    with concurrent.futures.ThreadPoolExecutor(1) as beside:  # the compiler holds no lock of Python
        building = beside.submit(build_learning)
        with device_memory.phase("compiling for sampling and evaluation", "sampling"):
            samplers = sampling.build(config, policy, stages, *ends, setup.mesh, state)
        programs = building.result()
    phases = ("sampling", samplers.rollout), ("learning", programs.learn)
    made = {f"{phase}, {s} stage": p for phase, by_stage in phases for s, p in by_stage.items()}
    made |= {"evaluation": samplers.evaluate}
    taken = {f"{name}: temporary": getattr(p, "temporary_bytes", None) for name, p in made.items()}
    temporary = {name: size for name, size in taken.items() if size is not None}
    peak = state + max(temporary.values())
    sizes = kept | temporary | {"peak, about": peak}
    texts: dict[str, object] = {name: size_text(size) for name, size in sizes.items()}
    for phase, (task, slots) in decoding(config, policy, setup.mesh, state, limit).items():
        if slots.number < slots.rows:
            rows = slots.number * slots.devices
            texts[f"{phase}: at once"] = f"{rows:,} of {task.rows:,} rows"
    console.print_plan(texts, title="Memory of a device")
    console.event(f"compiled in {time.perf_counter() - begin:.0f} s")
    if limit is not None and peak > limit:
        console.event(
            f"about {size_text(peak)} will be needed on a device, which has {size_text(limit)}: "
            f"what needs less: {device_memory.REMEDIES['learning']} (docs/scaling.md)"
        )
    return programs, samplers
