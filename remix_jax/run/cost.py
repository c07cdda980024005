"""What a step costs in floating-point operations, by the shapes of its programs."""

from remix_jax.config import Config, Stage
from remix_jax.learner.state import Learner
from remix_jax.models import flops
from remix_jax.rl import family
from remix_jax.rl.schedules import kl_convex_weight


def step_flops(
    learner: Learner, config: Config, stage: Stage, new_tokens: float, kl_weight: float
) -> float:
    """FLOPs of one step: sampling, scoring under every policy that the step asks, all passes.

    Held-out evaluation is not part of it.

    Args:
      config: of the run; `learner` gives the models.
      stage: which programs the step runs.
      new_tokens: really decoded, of all rows.
      kl_weight: lambda of the step; below 1 the precedent is scored as well.
    """
    policy, slots = learner.policy.config, (config.prompt_slots, config.data.response_tokens)
    fresh, replayed = (
        groups * config.group_size for groups in (stage.fresh_groups, stage.replay_groups)
    )
    total = sampling_flops(learner, config, stage, new_tokens)
    trained = stage.passes * config.batch_size
    scored = replayed + (fresh if config.has_base else 0)
    if config.kl.coef > 0 and kl_weight < 1:
        scored += config.batch_size
    if family.METHODS[config.objective.method].forward:  # once more before each mini-batch
        scored += trained
    total += flops.scored(policy, scored, *slots, "token")
    total += flops.trained(policy, trained, *slots, "token")
    if config.imitation.weight > 0:  # as many rows more in every mini-batch
        total += flops.trained(policy, trained, *slots, "token")
    if learner.critic is not None:
        total += flops.scored(policy, config.batch_size, *slots, "value")
        total += flops.trained(policy, trained, *slots, "value")
    return total


def base_weight(config: Config, step: int) -> float:
    """lambda of a step (from 1), the `kl_weight` of `step_flops`; 1 without KL-Convex."""
    kl = config.kl
    if not kl.convex:
        return 1.0
    return float(kl_convex_weight(step, kl.start, kl.every, kl.drop, kl.floor))


def sampling_flops(learner: Learner, config: Config, stage: Stage, new_tokens: float) -> float:
    """The part of `step_flops` that makes the fresh rows."""
    if not config.own_rows:
        return 0.0
    own, groups = stage.fresh_groups * config.own_rows, stage.fresh_groups
    return flops.sampled(learner.policy.config, groups, own, config.prompt_slots, new_tokens)
