"""Everything that changes while training, as one pytree, and the events that replace parts."""

import dataclasses
import functools
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from remix_jax import sharding, streams
from remix_jax.config import Config, Optimizer, compiled_part
from remix_jax.models import attention
from remix_jax.models.decoder import Decoder, DecoderConfig
from remix_jax.models.execution import Execution
from remix_jax.rl import replay
from remix_jax.schedule import stage_at, stages


class TrainState(flax.struct.PyTreeNode):
    """The state of a run after `step` steps. `None` where the config has no use for a part."""

    params: dict
    opt_state: optax.OptState
    critic_params: dict | None  # PPO only
    critic_opt_state: optax.OptState | None
    learning_rate: jax.Array  # of the policy; data, so that a change of it compiles nothing
    critic_learning_rate: jax.Array
    base_params: dict | None  # base anchor: the first policy, pi_T after reincarnation
    prev_params: dict | None  # precedent anchor: the policy at the start of the previous step
    replay: replay.ReplayState
    key: jax.Array
    step: jax.Array  # int32, finished steps
    fault_F: jax.Array  # bool by `fault_names`: what was first found not finite; updates stop then


class Learner(NamedTuple):
    """The functions that the state is advanced with: models, optimizers, the config."""

    config: Config  # with what no program reads left at its default: `config.compiled_part`
    policy: Decoder
    critic: Decoder | None
    optimizer: optax.GradientTransformation
    critic_optimizer: optax.GradientTransformation | None


@functools.cache
def make_optimizer(settings: Optimizer) -> optax.GradientTransformation:
    """AdamW up to the learning rate: the step applies that, and the bound on the norm."""
    return optax.chain(
        optax.scale_by_adam(
            b1=settings.beta1, b2=settings.beta2, mu_dtype=settings.first_moment_dtype or None
        ),
        optax.add_decayed_weights(settings.weight_decay),
    )


def make_learner(config: Config, policy: Decoder) -> Learner:
    """Models and optimizers of a run. The critic has the policy's body and a value head.

    Equal for runs that differ in seed, learning rate or length: they share compiled programs.
    """
    config = compiled_part(config)
    policy = Decoder(executed(policy.config, config))
    if not config.has_critic:
        return Learner(config, policy, None, make_optimizer(config.optimizer), None)
    critic = Decoder(policy.config, head="value")
    critic_optimizer = make_optimizer(config.critic.optimizer)
    return Learner(config, policy, critic, make_optimizer(config.optimizer), critic_optimizer)


def executed(sizes: DecoderConfig, config: Config) -> DecoderConfig:
    """A decoder's sizes with the way that the config wants it run, on the devices that are here."""
    model, memory = config.model, config.memory
    dtype = model.compute_dtype or model.dtype
    kernel = model.attention
    if kernel == "auto":
        kernel = attention.chosen(jax.default_backend(), dtype)
    execution = Execution(
        param_dtype=model.dtype,
        scan_layers=memory.scan_layers,
        remat=memory.remat,
        attention=kernel,
        logit_slots=memory.logit_slots,
        logit_entries=memory.logit_entries,
        decode_tokens=memory.decode_tokens,
    )
    return dataclasses.replace(sizes, dtype=dtype, execution=execution)


def init_state(learner: Learner, params: dict, config: Config) -> TrainState:
    """The state before the first step. `params` are kept; anchors and critic are copies.

    Args:
      config: of the run, for its seed and learning rates.
    """
    critic_params = critic_opt_state = None
    if learner.critic is not None and learner.critic_optimizer is not None:
        critic_params = init_critic(learner.critic, params)
        critic_opt_state = learner.critic_optimizer.init(critic_params)
    return TrainState(
        params=params,
        opt_state=learner.optimizer.init(params),
        critic_params=critic_params,
        critic_opt_state=critic_opt_state,
        learning_rate=jnp.asarray(config.optimizer.learning_rate, jnp.float32),
        critic_learning_rate=jnp.asarray(config.critic.optimizer.learning_rate, jnp.float32),
        base_params=anchor(learner, params) if config.has_base else None,
        prev_params=anchor(learner, params) if has_precedent(config) else None,
        replay=init_replay(config),
        key=streams.key(config.seed, "learning"),
        step=jnp.zeros((), jnp.int32),
        fault_F=jnp.zeros((len(fault_names(params, critic_params)),), bool),
    )


def place_state(learner: Learner, params: dict, config: Config, mesh: Mesh | None) -> TrainState:
    """`init_state` on a mesh, each array made where it will lie; `params` are donated."""
    if mesh is None:
        return init_state(learner, params, config)
    make = functools.partial(init_state, learner, config=config)
    where = sharding.shardings(jax.eval_shape(make, params), mesh)
    return jax.jit(make, out_shardings=where, donate_argnums=0)(params)


def init_critic(critic: Decoder, params: dict) -> dict:
    """The policy's body, copied, under a value head of zeros: the first value of any state is 0."""
    width = critic.config.width
    body = {name: leaf for name, leaf in params.items() if name != "lm_head"}
    dtype = params["final_norm"]["scale"].dtype
    head = {"kernel": jnp.zeros((width, 1), dtype), "bias": jnp.zeros((1,), dtype)}
    return {**copy(body), "value_head": head}


def init_replay(config: Config) -> replay.ReplayState:
    """A ring with room for this step's rows and those of the steps that any part looks back to."""
    first = stages(config)[stage_at(config, 1)]
    trained_in = config.replay.window + 1 if config.replay.share > 0 else 1
    imitated_in = config.imitation.window if config.imitation.weight > 0 else 1
    groups = max(max(trained_in, imitated_in) * first.fresh_groups, config.batch_groups)
    return replay.init(
        groups,
        config.group_size,
        config.prompt_slots,
        config.data.response_tokens,
        max_uses=trained_in * config.passes,
        with_advantage=config.stores_advantage,
    )


def has_precedent(config: Config) -> bool:
    """Whether the precedent anchor is ever used: KL-Convex on, and its weight ever below 1."""
    kl = config.kl
    return kl.coef > 0 and kl.convex and kl.drop > 0 and kl.floor < 1 and config.steps > kl.start


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def reincarnate(learner: Learner, state: TrainState) -> TrainState:
    """ReMix's reincarnation at the start of step T + 1 (arXiv 2507.06892).

    The base anchor becomes the current policy and the replay is emptied: its stored base
    log-probs belong to the old anchor, and the on-policy stage reads none of it. Moments, critic
    and the clock of KL-Convex go on; `reset_optimizer` starts the policy's moments anew.
    """
    opt_state = state.opt_state
    if learner.config.reset_optimizer:
        opt_state = learner.optimizer.init(state.params)
    state = state.replace(
        base_params=None if state.base_params is None else anchor(learner, state.params),
        opt_state=opt_state,
        replay=replay.clear(state.replay),
    )
    return sharding.by_rules(state)


def fault_names(params: dict, critic_params: dict | None) -> list[str]:
    """What each entry of `fault_F` speaks of: the two losses, then the gradient of every tensor."""
    names = ["policy loss", "value loss"]
    names += [f"gradient of policy {path}" for path in _paths(params)]
    return names + [f"gradient of critic {path}" for path in _paths(critic_params)]


def anchor(learner: Learner, params: dict) -> dict:
    """A copy of the policy in the dtype that anchors are kept in."""
    dtype = learner.config.memory.anchors_dtype
    return jax.tree.map(lambda x: jnp.array(x, dtype or x.dtype, copy=True), params)


def rest_anchors(config: Config, state: TrainState) -> TrainState:
    """The anchors in the host's pinned memory, if the config wants them there between uses."""
    return _move_anchors(state, "pinned_host") if config.memory.anchors_on_host else state


def fetch_anchors(config: Config, state: TrainState) -> TrainState:
    """The anchors back where programs read them."""
    return _move_anchors(state, "device") if config.memory.anchors_on_host else state


def _move_anchors(state: TrainState, kind: str) -> TrainState:
    def moved(tree):
        there = jax.tree.map(lambda x: x.sharding.with_memory_kind(kind), tree)
        return jax.device_put(tree, there)

    anchors = state.base_params, state.prev_params
    base, prev = (None if tree is None else moved(tree) for tree in anchors)
    return state.replace(base_params=base, prev_params=prev)


def copy(tree: dict) -> dict:
    """Buffers of one's own: a donated tree must not be anybody else's anchor."""
    return jax.tree.map(jnp.copy, tree)


def _paths(tree) -> list[str]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
