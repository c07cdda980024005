"""The policy of a config: how it is run, and its parameters."""

import dataclasses

import jax
from jax.sharding import Mesh

from remix_jax.config import Config
from remix_jax.config import Lora as LoraFields
from remix_jax.errors import InputError
from remix_jax.models import attention, huggingface, lora, peft
from remix_jax.models.decoder import Decoder, DecoderConfig, Execution
from remix_jax.models.lora import Lora


def load(config: Config, mesh: Mesh | None = None) -> tuple[Decoder, dict]:
    """The policy that a config names: its adapters are among the parameters if model.adapter is.

    Raises:
      InputError: as `huggingface.load` and `peft.load`.
    """
    loaded, params = huggingface.load(config.model.path, dtype=config.model.dtype, mesh=mesh)
    policy = Decoder(executed(loaded.config, config))
    if config.memory.frozen_dtype:
        params = lora.quantized(params)
    if config.model.adapter:
        adapters = peft.load(policy, config.model.adapter, config.model.path, mesh)
        params = lora.joined(params, adapters)
    return policy, lora.held(policy.config, params)


def as_saved(config: Config) -> Config:
    """The config that reads config.model.path as it is: a run with adapters, unless it names a
    directory of them (model.adapter), has none to read."""
    if config.model.adapter:
        return config
    memory = dataclasses.replace(config.memory, frozen_dtype="")
    return dataclasses.replace(config, lora=LoraFields(), memory=memory)


def executed(sizes: DecoderConfig, config: Config, platform: str = "") -> DecoderConfig:
    """A decoder's sizes and the way that the config wants it run; platform as of `make_learner`."""
    model, memory = config.model, config.memory
    dtype = model.compute_dtype or model.dtype
    suited = attention.chosen(platform or jax.default_backend(), dtype)
    execution = Execution(
        param_dtype=model.dtype,
        frozen_dtype=memory.frozen_dtype,
        scan_layers=memory.scan_layers,
        remat=memory.remat,
        attention=suited if model.attention == "auto" else model.attention,
        logit_slots=memory.logit_slots,
        logit_entries=memory.logit_entries,
    )
    rank, alpha, targets = config.lora.rank, config.lora.alpha, config.lora.targets
    adapters = Lora(rank, alpha, targets) if rank else None
    return dataclasses.replace(sizes, dtype=dtype, lora=adapters, execution=execution)


def plain(sizes: DecoderConfig) -> DecoderConfig:
    """The model without adapters, its parameters float32 to be trained."""
    execution = dataclasses.replace(sizes.execution, param_dtype="float32", frozen_dtype="")
    return dataclasses.replace(sizes, lora=None, execution=execution)


def check_trainable(config: Config) -> None:
    """Raises InputError unless the parameters are float32, to be trained, or adapters are."""
    if config.model.dtype != "float32" and not config.lora.rank:
        raise InputError(
            f"config.model.dtype = {config.model.dtype!r}: a step of 1e-6 is lost in a weight of "
            "0.02; leave it float32 and set config.model.compute_dtype=bfloat16, which computes "
            "products in bfloat16 over float32 parameters; or train adapters (config.lora.rank)"
        )
