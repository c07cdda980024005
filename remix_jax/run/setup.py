"""What a run needs before its first step, loaded and checked; and the plan of it, for people."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
from jax.sharding import AbstractMesh, Mesh

from remix_jax import config_rules, schedule, sharding
from remix_jax.config import Config
from remix_jax.data import tasks
from remix_jax.data.tasks import ProblemSet
from remix_jax.errors import InputError
from remix_jax.learner.programs import Programs
from remix_jax.learner.state import (
    Learner,
    TrainState,
    check_trainable,
    make_learner,
    place_state,
    static_of,
)
from remix_jax.models import attention, huggingface
from remix_jax.models.decoder import DecoderConfig
from remix_jax.models.huggingface import Vocabulary, load_vocabulary
from remix_jax.models.waves import Waves, in_waves
from remix_jax.rewards import Scorer
from remix_jax.rl import family
from remix_jax.rollout.experts import Traces, with_traces
from remix_jax.rollout.prefixed import Prefixes, load_prefixes, prefix_plan
from remix_jax.rollout.sampler import Samplers, memory_of
from remix_jax.text import size_text

_SKIPPED_SHOWN = 5  # malformed rows told in the plan


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
    check_trainable(config)
    check_attention(config)
    scorer = Scorer.of(config)
    vocabulary = load_vocabulary(config.model.path)
    data, tokenizer = config.data, vocabulary.tokenizer
    tasks.check_sets(data)
    skip = data.on_bad_row == "skip"
    load = functools.partial(
        tasks.load_set, data=data, tokenizer=tokenizer, needs_answer=scorer.needs_answers
    )
    train = load(data.train, skip_malformed=skip)
    scorer.check(train.problems)
    train, held = with_traces(train, config, vocabulary, scorer)
    prefixes = load_prefixes(config, train, vocabulary)
    load = functools.partial(load, limit=config.evaluation.limit)
    suites = [load(spec) for spec in data.suites]
    validation = [load(spec) for spec in (data.validation,) if spec]
    sizes = huggingface.read_config(config.model.path)
    check_width(config, sizes.max_positions)
    mesh = sharding.make_mesh(config.mesh.sizes)
    check_mesh(config, sizes, mesh)
    policy, params = huggingface.load(config.model.path, dtype=config.model.dtype, mesh=mesh)
    learner = make_learner(config, policy)
    state = place_state(learner, params, config.seed, mesh)
    return Setup(
        config,
        learner,
        vocabulary,
        train,
        prefixes,
        suites,
        validation,
        state,
        mesh,
        held,
        scorer,
    )


def check_width(config: Config, limit: int) -> None:
    """A row must fit the positions that the model was made for.

    Raises:
      InputError: it does not.
    """
    slots = config.prompt_slots + config.data.response_tokens
    if slots > limit:
        raise InputError(
            f"config.data.prompt_tokens + config.data.response_tokens"
            f"{' + config.prefix.tokens' if config.prefix.tokens else ''} = {slots}: "
            f"{config.model.path} takes {limit} positions (max_position_embeddings)"
        )


def check_attention(config: Config) -> None:
    """A kernel that is asked for by name must run on this machine's devices.

    Raises:
      InputError: it does not.
    """
    kernel, platform = config.model.attention, jax.default_backend()
    dtype = config.model.compute_dtype or config.model.dtype
    if kernel not in ("auto", "plain", attention.chosen(platform, dtype)):
        raise InputError(
            f"config.model.attention = {kernel!r}: this machine's devices are of kind {platform}; "
            "splash is for tpu, cudnn for gpu with bfloat16 products; auto: what suits"
        )


def check_mesh(config: Config, sizes: DecoderConfig, mesh: Mesh | AbstractMesh | None) -> None:
    """Batches and heads must divide over the mesh: no device idles or holds half a head.

    Fresh rows need not: how many there are follows from batch_size and replay.share.

    Raises:
      InputError: they do not.
    """
    if mesh is None:
        return
    shards, tensor = sharding.row_shards(mesh), mesh.shape["tensor"]
    samples = config.evaluation.samples
    rows = (
        ("micro_batch_size", static_of(config).micro_rows(shards), shards),
        ("score_batch_size", static_of(config).score_rows(shards), shards),
        ("evaluation.batch_size", config.evaluation.batch_size, shards * samples),
    )
    for field, value, unit in rows:
        if value % unit:
            more = f" and {samples} samples a problem" if unit > shards else ""
            raise InputError(
                f"config.{field} = {value}: must be a multiple of {unit} on a mesh that divides "
                f"rows over data x fsdp = {shards} devices{more}"
            )
    if sizes.kv_heads % tensor:
        raise InputError(
            f"config.mesh.tensor = {tensor}: must divide the model's {sizes.kv_heads} key heads"
        )


def plan(setup: Setup) -> dict[str, object]:
    """What the run will do, for people: printed before the first step."""
    c = setup.config
    groups = schedule.groups_until(c, c.steps)
    lines = method_plan(c) | {
        "parameters": parameters(setup.state),
        "training problems": f"{len(setup.train.problems):,} ({_epochs(setup, groups)})",
        "held-out problems": ", ".join(f"{s.name} {len(s.problems)}" for s in setup.suites),
    }
    if c.expert_rows:
        rows = f"1 of {c.group_size} of each group" if c.own_rows else "all"
        lines["rows of an expert"] = f"{rows}, traces of {c.expert.bank}; other problems left out"
    lines["reward"] = setup.scorer.text
    if setup.prefixes is not None:
        lines |= prefix_plan(c, setup.prefixes, len(setup.train.problems))
    if setup.validation:
        chosen_by = setup.validation[0]
        lines["settings may be chosen by"] = f"{chosen_by.name} {len(chosen_by.problems)}"
    lines |= tasks.plan(held_out(setup), setup.vocabulary.tokenizer, setup.train)
    dropped = sum(s.dropped for s in (setup.train, *held_out(setup)))
    if dropped:
        lines["problems dropped"] = f"{dropped:,} with prompts over {c.data.prompt_tokens} tokens"
    if setup.train.skipped:
        lines["training rows skipped"] = _some(setup.train.skipped)
    lines["device"] = sharding.devices_text(setup.mesh)
    return lines | wave_plan(c, setup.mesh)


def held_out(setup: Setup) -> list[ProblemSet]:
    """The suites, and the set that settings are chosen by."""
    return [*setup.suites, *setup.validation]


def method_plan(c: Config) -> dict[str, object]:
    """What the config alone says of a run."""
    updates = c.batch_size // c.mini_batch_size
    return {
        "method": _method(c),
        "steps": c.steps,
        "fresh rollouts, whole run": schedule.planned_rollouts(c),
        "rows a step": f"{c.batch_size} ({_share(c)})",
        "gradient passes a fresh row": _passes(c),
        "optimizer steps a pass": f"{updates} of {c.mini_batch_size} rows",
    }


def waves(config: Config, mesh: Mesh | AbstractMesh | None) -> dict[str, Waves]:
    """What is decoded at once in the sampling of each stage, and in evaluation."""
    e, data = config.evaluation, config.data
    asked = {
        f"sampling, {name} stage": (stage.fresh_groups, config.own_rows, config.prompt_slots)
        for name, stage in schedule.stages(config).items()
        if config.own_rows
    }
    asked["evaluation"] = max(e.batch_size // e.samples, 1), e.samples, data.prompt_tokens
    budget, shards = config.memory.decode_tokens, sharding.row_shards(mesh)
    return {
        phase: in_waves(groups, size, prompt + data.response_tokens, budget, shards)
        for phase, (groups, size, prompt) in asked.items()
    }


def wave_plan(config: Config, mesh: Mesh | AbstractMesh | None) -> dict[str, object]:
    """Of what is not decoded at once."""
    return {
        phase: f"{found.number} waves of {found.rows:,} rows"
        for phase, found in waves(config, mesh).items()
        if found.number > 1
    }


def parameters(state: TrainState) -> int:
    """Of the policy."""
    return sum(x.size for x in jax.tree.leaves(state.params))


def state_bytes(state: TrainState, mesh: Mesh | AbstractMesh | None = None) -> dict[str, int]:
    """What stays on a device of the mesh, by part; the state may be abstract."""
    parts = {
        "policy": state.params,
        "policy's optimizer": state.opt_state,
        "critic and its optimizer": (state.critic_params, state.critic_opt_state),
        "anchors": (state.base_params, state.prev_params),
        "replay": state.replay,
    }
    held = {
        name: sharding.device_bytes(part, mesh) if mesh else tree_bytes(part)
        for name, part in parts.items()
    }
    return {name: bytes_ for name, bytes_ in held.items() if bytes_}


def memory_plan(setup: Setup, programs: Programs, samplers: Samplers) -> dict[str, object]:
    """Bytes on one device: what stays, and what each compiled program takes on top."""
    kept = state_bytes(setup.state, setup.mesh)
    lines: dict[str, object] = {k: size_text(v) for k, v in kept.items()}
    temporary = {
        f"{phase}, {stage} stage": memory_of(program)
        for phase, by_stage in (("sampling", samplers.rollout), ("learning", programs.learn))
        for stage, program in by_stage.items()
    } | {"evaluation": memory_of(samplers.evaluate)}
    lines |= {f"{phase}: temporary": size_text(m.temporary) for phase, m in temporary.items() if m}
    peak = max(m.temporary for m in temporary.values() if m)
    lines["peak, about"] = size_text(sum(kept.values()) + peak)
    return lines


def _method(c: Config) -> str:
    o = c.objective
    if o.method != "mix_ppg":
        method = family.METHODS[o.method]
        param = method.param
        value = param.default if param and o.method_param is None else o.method_param
        return f"{method.title}{f', {param.name} {value:g}' if param else ''}"
    base = {"gae": "PPO", "group_normalized": "GRPO"}.get(o.advantage, o.advantage)
    mixes = c.replay.share > 0 or c.passes > 1
    return f"{'ReMix-' if mixes else ''}{base}"


def _some(messages: Sequence[str]) -> str:
    hidden = len(messages) - _SKIPPED_SHOWN
    more = [f"and {hidden:,} more"] if hidden > 0 else []
    return f"{len(messages):,} malformed: " + "; ".join([*messages[:_SKIPPED_SHOWN], *more])


def _share(c: Config) -> str:
    if c.replay.share == 0:
        return "all fresh"
    fresh = (
        f"{1 - c.replay.share:.0%} fresh, {c.replay.share:.0%} of the last {c.replay.window} steps"
    )
    return f"{fresh}{_until(c)}"


def _until(c: Config) -> str:
    ends = 0 < c.reincarnation_step < c.steps
    return f" until reincarnation after step {c.reincarnation_step}" if ends else ""


def _passes(c: Config) -> str:
    mixing = schedule.passes_per_row(c)
    if mixing == 1:
        return "1"
    ends = 0 < c.reincarnation_step < c.steps
    return f"{mixing:.2f} expected in the mix stage (m = {c.passes})" + (", then 1" if ends else "")


def _epochs(setup: Setup, prompts: int) -> str:
    return f"{prompts / len(setup.train.problems):.2f} epochs"


def tree_bytes(tree) -> int:
    """Of the arrays, or of their shapes."""
    leaves = (
        x for x in jax.tree.leaves(tree) if not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
    )
    return sum(x.size * x.dtype.itemsize for x in leaves)
