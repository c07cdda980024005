"""Everything that changes while training, as one pytree, and the events that replace parts."""

import dataclasses
import functools
import operator
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from remix_jax import sharding, streams
from remix_jax.config import Config
from remix_jax.learner.policy import check_trainable, executed, plain
from remix_jax.models import lora
from remix_jax.models.decoder import Decoder, abstract_params
from remix_jax.models.sampling import Begun
from remix_jax.rl import optimizers, replay
from remix_jax.schedule import stage_at, stages


class TrainState(flax.struct.PyTreeNode):
    """The state of a run after `step` steps; None where the config has no use for a part.

    With adapters (config.lora) `params`, both anchors and the critic are adapters and a value head,
    all of the same `frozen` weights, which no step changes.
    """

    params: dict
    opt_state: optax.OptState
    critic_params: dict | None  # PPO only
    critic_opt_state: optax.OptState | None
    base_params: dict | None  # base anchor: the first policy, pi_T after reincarnation
    prev_params: dict | None  # precedent anchor: the policy at the start of the previous step
    replay: replay.ReplayState
    in_flight: (
        tuple[Begun, jax.Array] | None
    )  # rows of `sampling.carry`, and the step that began each
    key: jax.Array
    step: jax.Array  # int32, finished steps
    fault_F: jax.Array  # bool by `fault_names`: what was first found not finite; updates stop then
    frozen: dict | None = None  # without adapters

    def whole(self, params: dict) -> dict:
        """The parameters of a model: those given, with the frozen weights that they adapt."""
        return lora.joined(self.frozen, params)


def _of(path: str):
    """A field that is the config's, under a dotted name."""
    return dataclasses.field(metadata={"path": path})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Static:
    """What compiled programs read of a config: constants of theirs, true for every run they serve.

    Seeds, learning rates, lengths and the method's parameters are not among them: they are data,
    and runs that differ in those alone share their programs.
    """

    batch_size: int = _of("batch_size")
    group_size: int = _of("group_size")
    own_rows: int = _of("own_rows")  # of a group
    mini_batch_size: int = _of("mini_batch_size")
    micro_batch_size: int = _of("micro_batch_size")
    score_batch_size: int = _of("score_batch_size")
    micro_batch_tokens: int = _of("memory.micro_batch_tokens")
    prompt_slots: int = _of("prompt_slots")
    response_slots: int = _of("data.response_tokens")
    temperature: float = _of("sampling.temperature")
    correct_truncation: bool = _of("sampling.correct_truncation")
    correction: str = _of("sampling.correction")
    correction_cap: float = _of("sampling.correction_cap")
    window: int = _of("replay.window")
    sampler: str = _of("replay.sampler")
    carry: int = _of("sampling.carry")
    ring_groups: int
    max_uses: int  # of a row, as the ledger counts them
    stores_advantage: bool = _of("stores_advantage")
    method: str = _of("objective.method")
    advantage: str = _of("objective.advantage")
    clip: float = _of("objective.clip")
    clip_high: float = _of("objective.clip_high")
    dual_clip: float = _of("objective.dual_clip")
    aggregation: str = _of("objective.aggregation")
    mask_truncated: bool = _of("objective.mask_truncated")
    entropy_coef: float = _of("objective.entropy_coef")
    gamma: float = _of("objective.gamma")
    lam: float = _of("objective.lam")
    whiten: bool = _of("objective.whiten")
    kl_coef: float = _of("kl.coef")
    kl_estimator: str = _of("kl.estimator")
    kl_weighted: bool = _of("kl.weighted")
    kl_in_reward: bool = _of("kl.in_reward")
    kl_schedule: tuple[int, int, float, float] | None  # start, every, drop, floor; None: always 1
    imitation_weight: float = _of("imitation.weight")
    imitation_window: int = _of("imitation.window")
    value_clip: float = _of("critic.value_clip")
    value_coef: float = _of("critic.value_coef")
    reset_optimizer: bool = _of("reset_optimizer")
    has_base: bool = _of("has_base")
    has_precedent: bool = _of("has_precedent")
    anchors_dtype: str = _of("memory.anchors_dtype")

    def micro_rows(self, busy_slots: int, shards: int = 1) -> int:
        """Buffers of a backward pass on `shards` devices, a buffer as long as a row.

        At most as many as the config allows, by number or by a budget of tokens, dividing a
        mini-batch; and no more than `busy_slots` ask for, as passes end with the last used buffer.
        """
        most = self.micro_batch_size
        if self.micro_batch_tokens:
            most = min(self.fitting_rows(shards), self.mini_batch_size)
            most = next(n for n in range(most, 0, -1) if self.mini_batch_size % n == 0)
        return self._busy(most, self.mini_batch_size, busy_slots, shards)

    def score_rows(self, busy_slots: int, shards: int = 1, rows: int = 0) -> int:
        """Buffers of a forward pass without gradient over `rows` (0: a batch), likewise."""
        rows = rows or self.batch_size
        return min(self._busy(self.fitting_rows(shards), rows, busy_slots, shards), rows)

    def fitting_rows(self, shards: int = 1) -> int:
        """Full rows that the config allows in a forward pass without gradient."""
        fitting = self.micro_batch_tokens // (self.prompt_slots + self.response_slots)
        return shards * fitting or self.score_batch_size

    def _busy(self, most: int, rows: int, busy_slots: int, shards: int) -> int:
        least = -(-busy_slots * shards // (self.prompt_slots + self.response_slots))
        fitting = (n for n in range(shards, most + 1, shards) if n >= least)
        return min(fitting, key=lambda n: (-rows % n, n), default=most)


def static_of(config: Config) -> Static:
    """The part of a config that compiled programs read."""
    kl, trained_in = config.kl, config.replay.window + 1 if config.replay.share > 0 else 1
    imitated_in = config.imitation.window if config.imitation.weight > 0 else 1
    first = stages(config)[stage_at(config, 1)]
    paths = {f.name: f.metadata["path"] for f in dataclasses.fields(Static) if f.metadata}
    return Static(
        **{name: operator.attrgetter(path)(config) for name, path in paths.items()},
        # Room for this step's rows and those of the steps that any part looks back to.
        ring_groups=max(max(trained_in, imitated_in) * first.fresh_groups, config.batch_groups),
        max_uses=trained_in * config.passes,
        kl_schedule=(kl.start, kl.every, kl.drop, kl.floor) if kl.convex else None,
    )


class Learner(NamedTuple):
    """The functions that the state is advanced with: models, optimizers, their constants."""

    static: Static
    policy: Decoder
    critic: Decoder | None
    optimizer: optax.GradientTransformationExtraArgs
    critic_optimizer: optax.GradientTransformationExtraArgs
    busy_slots: int  # of a device, from which a pass of more gains nothing


def make_learner(config: Config, policy: Decoder, platform: str = "") -> Learner:
    """Models and optimizers of a run; the critic has the policy's body and a value head.

    Args:
      platform: of the devices that it is planned for; empty: of those that are here.

    Raises:
      InputError: as `check_trainable`; or adapters that the model cannot have.
    """
    check_trainable(config)
    policy = Decoder(executed(policy.config, config, platform))
    if policy.config.lora:
        shapes = abstract_params(Decoder(plain(policy.config)))
        policy.config.lora.check(shapes, policy.config.execution.scan_layers)
    critic = None
    if config.has_critic:
        whole = policy.config.lora is None or config.lora.critic == "full"
        critic = Decoder(plain(policy.config) if whole else policy.config, head="value")
    optimizer, critic_optimizer = (
        optimizers.make(o.name, o.beta1, o.beta2, o.weight_decay, o.first_moment_dtype, o.grad_clip)
        for o in (config.optimizer, config.critic.optimizer)
    )
    busy = busy_slots(policy.config.width, platform)
    return Learner(static_of(config), policy, critic, optimizer, critic_optimizer, busy)


def busy_slots(width: int, platform: str = "") -> int:
    """Slots of a device from which a pass of more gains nothing, with a model of that width.

    A CPU spends some milliseconds on a pass besides its products, which grow with the square of the
    width (experiments.benchmark_packing); other devices read the weights.
    """
    platform = platform or jax.default_backend()
    return 40_000_000 // width**2 if platform == "cpu" else 16_384


def init_state(learner: Learner, params: dict, seed: int) -> TrainState:
    """The state before the first step. `params` are kept; anchors and critic are copies.

    The critic is the policy's body under a value head of zeros: the first value of any state is 0.
    Adapters that `params` do not have begin as `lora.init` says.
    """
    s, adapters = learner.static, learner.policy.config.lora
    frozen, whole = None, params
    if adapters:
        frozen, params = lora.split(params)
        if not params:
            params = lora.init(abstract_params(learner.policy), streams.key(seed, "adapters"))
        whole = lora.joined(frozen, params)
    critic_params = critic_opt_state = None
    if learner.critic:
        width = learner.policy.config.width
        head = {"kernel": jnp.zeros((width, 1)), "bias": jnp.zeros((1,))}
        body = params
        if not learner.critic.config.lora:
            body = lora.merged(adapters, whole, "float32")
            body = {name: leaf for name, leaf in body.items() if name != "lm_head"}
        critic_params = {**copy(body), "value_head": head}
        critic_opt_state = learner.critic_optimizer.init(critic_params)
    sizes = (s.group_size, s.prompt_slots, s.response_slots)
    return TrainState(
        params=params,
        opt_state=learner.optimizer.init(params),
        critic_params=critic_params,
        critic_opt_state=critic_opt_state,
        base_params=copy(params, s.anchors_dtype) if s.has_base else None,
        prev_params=copy(params, s.anchors_dtype) if s.has_precedent else None,
        replay=replay.init(
            s.ring_groups, *sizes, s.max_uses, s.stores_advantage, bool(s.correction)
        ),
        in_flight=nothing_in_flight(s.carry * s.own_rows, s.response_slots) if s.carry else None,
        key=streams.key(seed, "learning"),
        step=jnp.zeros((), jnp.int32),
        fault_F=jnp.zeros((len(fault_names(params, critic_params)),), bool),
        frozen=frozen,
    )


def nothing_in_flight(rows: int, slots: int) -> tuple[Begun, jax.Array]:
    """So many rows without a token."""

    def zeros(dtype, *shape):
        return jnp.zeros((rows, *shape), dtype)

    logps = zeros(jnp.float32, slots), zeros(jnp.float32, slots)
    begun = Begun(zeros(jnp.int32, slots), *logps, zeros(jnp.int32), zeros(bool))
    return begun, zeros(jnp.int32)


def abstract_state(learner: Learner) -> TrainState:
    """Shapes and dtypes of the first state; nothing is allocated."""
    held = functools.partial(lora.held, learner.policy.config)
    params = jax.eval_shape(held, abstract_params(learner.policy))
    return jax.eval_shape(functools.partial(init_state, learner, seed=0), params)


def place_state(learner: Learner, params: dict, seed: int, mesh: Mesh | None) -> TrainState:
    """`init_state` on a mesh, each array made where it will lie; `params` are donated."""
    if mesh is None:
        return init_state(learner, params, seed)
    make = functools.partial(init_state, learner, seed=seed)
    where = sharding.shardings(jax.eval_shape(make, params), mesh)
    return jax.jit(make, out_shardings=where, donate_argnums=0)(params)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def reincarnate(learner: Learner, state: TrainState) -> TrainState:
    """ReMix's reincarnation at the start of step T + 1 (arXiv 2507.06892).

    The base anchor becomes the current policy and the replay is emptied: its stored base
    log-probs belong to the old anchor, and the on-policy stage reads none of it. Moments, critic
    and the clock of KL-Convex go on; `reset_optimizer` starts the policy's moments anew.
    """
    s, params = learner.static, state.params
    state = state.replace(
        base_params=copy(params, s.anchors_dtype) if s.has_base else None,
        opt_state=learner.optimizer.init(params) if s.reset_optimizer else state.opt_state,
        replay=replay.clear(state.replay),
    )
    return sharding.by_rules(state)


def fault_names(params: dict, critic_params: dict | None) -> list[str]:
    """What each entry of `fault_F` speaks of: the two losses, then the gradient of every tensor."""
    trees = (("policy", params), ("critic", critic_params))
    return ["policy loss", "value loss"] + [
        f"gradient of {name} {sharding.path_text(path)}"
        for name, tree in trees
        for path, _ in jax.tree_util.tree_leaves_with_path(tree)
    ]


def move_anchors(config: Config, state: TrainState, kind: str) -> TrainState:
    """The anchors in "pinned_host" memory or on the "device", unless they rest on devices anyway.

    What they took before is freed: the state that was given must not be used again.
    """
    if not config.memory.anchors_on_host:
        return state

    def moved(tree):
        there = jax.tree.map(lambda x: x.sharding.with_memory_kind(kind), tree)
        copies = jax.device_put(tree, there)
        for x in jax.tree.leaves(tree):  # whoever still holds the old state must not keep them
            x.delete()
        return copies

    return state.replace(base_params=moved(state.base_params), prev_params=moved(state.prev_params))


def copy(tree: dict, dtype: str = "") -> dict:
    """A copy in buffers of its own, as either may be donated; in `dtype` if it names one."""
    return jax.tree.map(lambda x: jnp.array(x, dtype or None, copy=True), tree)
