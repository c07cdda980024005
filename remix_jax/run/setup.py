"""What a run needs before its first step, loaded and checked."""

import functools
from typing import NamedTuple

import jax
from jax.sharding import AbstractMesh, Mesh

from remix_jax import config_rules, sharding
from remix_jax.config import Config
from remix_jax.data import tasks
from remix_jax.data.tasks import ProblemSet
from remix_jax.errors import InputError
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
from remix_jax.models.hf_tokenizer import Vocabulary, load_vocabulary
from remix_jax.rewards import Scorer
from remix_jax.rollout.draws import Prefixes, load_prefixes
from remix_jax.rollout.rollouts import Traces, with_traces


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
