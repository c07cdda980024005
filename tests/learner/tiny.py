"""A learner small enough to check by hand: 1 layer, 11 tokens, batches of 8 rows."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from remix_jax import types
from remix_jax.config import Config
from remix_jax.learner.policy import executed
from remix_jax.learner.state import Learner, TrainState, init_state, make_learner
from remix_jax.learner.step import learn, step_inputs
from remix_jax.models import lora, packing, scoring
from remix_jax.models.decoder import Decoder, DecoderConfig, abstract_params
from remix_jax.schedule import Stage, fresh_groups, stage_at, stages

P, T, V = 5, 6, 11

POLICY = Decoder(
    DecoderConfig(
        architecture="qwen2",
        vocab_size=V,
        width=16,
        layers=1,
        heads=4,
        kv_heads=2,
        head_dim=4,
        ffn_width=24,
        rope_theta=1e4,
        rope_scaling=None,
        norm_eps=1e-6,
        tied_embeddings=True,
        qkv_bias=True,
        qk_norm=False,
        max_positions=64,
    )
)
DEEPER = Decoder(dataclasses.replace(POLICY.config, layers=2))


def make_config(**changes) -> Config:
    """ReMix-PPO with batches of 8 rows; keyword arguments replace fields or whole sections."""
    config = Config(
        steps=20,
        batch_size=8,
        mini_batch_size=4,
        micro_batch_size=4,
        score_batch_size=8,
        reincarnation_step=10,
    )
    config.data.prompt_tokens, config.data.response_tokens = P, T
    config.kl.start, config.kl.every, config.kl.coef = 1, 1, 0.1
    config.objective.entropy_coef = 0.01
    config.optimizer.learning_rate = config.critic.optimizer.learning_rate = 1e-2
    for name, value in changes.items():
        section, _, field = name.rpartition("__")
        setattr(getattr(config, section) if section else config, field, value)
    return config


def grouped(**changes) -> Config:
    """The same with GRPO as base: groups of 2."""
    return make_config(objective__advantage="group_normalized", group_size=2, **changes)


def start(
    config: Config, scale: float = 0.3, policy: Decoder = POLICY
) -> tuple[Learner, TrainState]:
    """A learner and its first state; weights of visible size, so that every path matters."""
    tokens = jnp.zeros((1, 2), jnp.int32)
    params = policy.init(jax.random.key(7), tokens, tokens, tokens)["params"]
    flat, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(8), len(flat))
    noise = [scale * jax.random.normal(k, x.shape) for k, x in zip(keys, flat, strict=True)]
    params = tree.unflatten([x + n for x, n in zip(flat, noise, strict=True)])
    learner = make_learner(config, policy)
    if config.lora.rank:
        params = lora.joined(params, adapters(learner.policy))
    state = init_state(learner, params, config.seed)
    if state.critic_params is not None:
        head = jax.random.normal(
            jax.random.key(9), state.critic_params["value_head"]["kernel"].shape
        )
        critic = state.critic_params | {"value_head": {"kernel": 0.3 * head, "bias": jnp.ones(1)}}
        state = state.replace(critic_params=critic)
    return learner, state


def adapters(policy: Decoder, scale: float = 0.1) -> dict:
    """Adapters of a model that change something: B is noise."""
    flat = flatten_dict(lora.init(abstract_params(policy), jax.random.key(1)))
    for i, (path, x) in enumerate(sorted(flat.items())):
        if path[-1] == "lora_b":
            flat[path] = scale * jax.random.normal(jax.random.key(100 + i), x.shape)
    return unflatten_dict(flat)


def fresh_rows(
    config: Config,
    state: TrainState,
    step: int,
    wider: tuple[int, int] = (0, 0),
    policy: Decoder = POLICY,
):
    """The fresh rows of a step: ragged, random, with true log-probs; `wider` adds padding slots."""
    rng = np.random.default_rng([config.seed, step])
    stage = stage_of(config, step)
    n = stage.fresh_groups * config.group_size
    real = fresh_groups(config, step) * config.group_size
    tokens_BS = rng.integers(0, V, (n, P + T))
    tokens_BS = np.pad(tokens_BS, ((0, 0), wider))
    prompt_len_B, response_len_B = rng.integers(1, P + 1, n), rng.integers(1, T + 1, n)
    reward_B = rng.integers(0, 2, n)
    rows = types.empty_rows(n, P + wider[0], T + wider[1]).replace(
        tokens_BS=jnp.asarray(tokens_BS, jnp.int32),
        prompt_len_B=jnp.asarray(prompt_len_B, jnp.int32),
        response_len_B=jnp.asarray(response_len_B, jnp.int32),
        reward_B=jnp.asarray(reward_B, jnp.float32),
        success_B=jnp.asarray(reward_B > 0),
        group_B=jnp.asarray(100 * step + np.arange(n) // config.group_size, jnp.int32),
        valid_B=jnp.asarray(np.arange(n) < real),
    )
    policy = Decoder(executed(policy.config, config))
    logp_BT = score(policy, state.whole(state.params), rows, config.sampling.temperature)
    logp_BT = jnp.where(rows.mask_BT > 0, logp_BT, 0.0)
    return rows.replace(behav_logp_BT=logp_BT, sampled_logp_BT=logp_BT - 0.01)


@functools.partial(jax.jit, static_argnums=(0, 3))
def score(policy, params, rows, temperature):
    """Log-probs [B, T] of the response tokens, each row in a pass by itself."""
    held = packing.alone(rows)
    scores = scoring.score_responses(policy, params, held, temperature)
    return packing.to_rows(scores.logp_BT, held)


def stage_of(config: Config, step: int) -> Stage:
    return stages(config)[stage_at(config, step)]


def numbers(config: Config, value: float) -> dict[str, float]:
    """Parameters of the config's method, all of them the same."""
    return dict.fromkeys(step_inputs(config, 1).method_params_M, value)


def advance(learner, state, config, step, rows=None, expert=None, shown=()):
    """One learning phase."""
    rows = fresh_rows(config, state, step) if rows is None else rows
    stage = stage_of(config, step)
    inputs = step_inputs(config, step, shown)
    return learn(state, rows, inputs, expert, learner=learner, stage=stage)


def host(tree):
    """A copy of a pytree as NumPy, keys as their data."""

    def fetch(x):
        is_key = jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
        return np.array(jax.random.key_data(x) if is_key else x)

    return jax.tree.map(fetch, tree)


def assert_learned_alike(tree, expected, atol: float):
    """Equal up to rounding, which Adam turns into a whole step of 1e-2 where a gradient is nothing
    else: of 1,000 numbers at most one may differ by more than `atol`, none by a fifth of a step."""
    tree, expected = host(tree), host(expected)
    chex.assert_trees_all_close(tree, expected, atol=2e-3)
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True)
    far = [(abs(x - y) > atol).ravel() for x, y in pairs if x.dtype == "float32"]
    assert np.concatenate(far).mean() < 1e-3, f"{np.concatenate(far).mean():.2%}"
