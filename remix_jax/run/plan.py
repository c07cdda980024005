"""The plan of a run, for people: what it will do, and the memory it will need."""

from collections.abc import Sequence

import jax
from jax.sharding import AbstractMesh, Mesh

from remix_jax import schedule, sharding
from remix_jax.config import Config
from remix_jax.data import tasks
from remix_jax.data.tasks import ProblemSet
from remix_jax.learner.programs import Memory, Programs
from remix_jax.learner.state import TrainState
from remix_jax.models.sampling import Waves, in_waves
from remix_jax.rl import family
from remix_jax.rollout.draws import prefix_plan
from remix_jax.rollout.sampler import Samplers, evaluation_task, memory_of, rollout_task
from remix_jax.run.setup import Setup
from remix_jax.text import size_text

_SKIPPED_SHOWN = 5  # malformed rows in the plan


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
    tasks = {
        f"sampling, {name} stage": rollout_task(config, stage, (), 0)
        for name, stage in schedule.stages(config).items()
        if config.own_rows
    }
    tasks["evaluation"] = evaluation_task(config, (), 0)
    budget, shards = config.memory.decode_tokens, sharding.row_shards(mesh)
    return {
        phase: in_waves(task.prompts, task.group_size, task.slots, budget, shards)
        for phase, task in tasks.items()
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
    held = {name: sharding.tree_bytes(part, mesh) for name, part in parts.items()}
    return {name: bytes_ for name, bytes_ in held.items() if bytes_}


def memory_plan(setup: Setup, programs: Programs, samplers: Samplers) -> dict[str, object]:
    """Bytes on one device: what stays, and what each compiled program takes on top."""
    kept = state_bytes(setup.state, setup.mesh)
    lines: dict[str, object] = {k: size_text(v) for k, v in kept.items()}
    found = _memories(programs, samplers)
    lines |= {f"{phase}: temporary": size_text(m.temporary) for phase, m in found.items()}
    lines["peak, about"] = size_text(peak(setup, programs, samplers))
    return lines


def peak(setup: Setup, programs: Programs, samplers: Samplers) -> int:
    """The most bytes that one device will hold, about."""
    kept = sum(state_bytes(setup.state, setup.mesh).values())
    return kept + max(m.temporary for m in _memories(programs, samplers).values())


def _memories(programs: Programs, samplers: Samplers) -> dict[str, Memory]:
    """Of each phase that says so."""
    found = {
        f"{phase}, {stage} stage": memory_of(program)
        for phase, by_stage in (("sampling", samplers.rollout), ("learning", programs.learn))
        for stage, program in by_stage.items()
    } | {"evaluation": memory_of(samplers.evaluate)}
    return {phase: memory for phase, memory in found.items() if memory}


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
