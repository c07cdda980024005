"""Collects a bank of traces: samples a model until each problem has one verified response.

python -m experiments.collect_traces --model=DIR --problems=FILE --out=DIR --attempts=2500
python -m experiments.collect_traces --config=experiments/configs/NAME.py --out=DIR

With --config, model, problems, instruction, sampling, widths, dtype and seed are those of the
config, and any flag given beside it goes before them. The same command continues a collection that
was killed; a higher --attempts goes on with what stayed unsolved. Where a right answer says little
about the way to it, --accept names a function that reads the response as well.
"""

import sys

from absl import flags

from experiments import config_flag, main
from remix_jax.config import Config
from remix_jax.errors import InputError
from remix_jax.rollout import collection
from remix_jax.sinks.console import Console

# Flag -> the config's field that stands in for it where there is a config.
FROM_CONFIG = {
    "model": "model.path",
    "problems": "data.train",
    "instruction": "data.instruction",
    "temperature": "sampling.temperature",
    "top_k": "sampling.top_k",
    "top_p": "sampling.top_p",
    "min_p": "sampling.min_p",
    "prompt_tokens": "data.prompt_tokens",
    "response_tokens": "data.response_tokens",
    "seed": "seed",
    "dtype": "model.dtype",
}
OWN = ("attempts", "batch_size", "group_size", "accept")


def settings_of(values, config: Config | None) -> collection.Settings:
    """The settings that the flags ask for, or the config where a flag is silent.

    Raises:
      InputError: no model or no problems.
    """
    given = {}
    for flag, path in FROM_CONFIG.items():
        value = values[flag].value
        if config is not None and not values[flag].present:
            value = config
            for name in path.split("."):
                value = getattr(value, name)
        if value is None:
            raise InputError(f"--{flag} is required, or a --config")
        given[flag] = value
    return collection.Settings(**given, **{flag: values[flag].value for flag in OWN})


def collect() -> None:
    """The collection behind the flags."""
    config = config_flag.value_of(CONFIG) if flags.FLAGS["config"].value is not None else None
    assert OUT.value is not None  # required
    try:
        collection.collect(settings_of(flags.FLAGS, config), OUT.value, Console(0))
    except KeyboardInterrupt:
        print("stopped; the same command continues after the last whole batch", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    CONFIG = config_flag.define()
    OUT = flags.DEFINE_string("out", None, "directory of the bank: new, or one to be continued")
    flags.DEFINE_string("model", None, "Hugging Face model directory")
    flags.DEFINE_string("problems", None, "problem file, or a prepared TFDS directory")
    flags.DEFINE_string("instruction", "", "appended to each problem")
    flags.DEFINE_float("temperature", 1.0, "above 0")
    flags.DEFINE_integer("top_k", 0, "0: off")
    flags.DEFINE_float("top_p", 1.0, "1: off")
    flags.DEFINE_float("min_p", 0.0, "0: off")
    flags.DEFINE_integer("prompt_tokens", 766, "longer prompts are dropped and counted")
    flags.DEFINE_integer("response_tokens", 8192, "tokens of the longest response")
    flags.DEFINE_integer("seed", 0, "of the draws")
    flags.DEFINE_enum("dtype", "bfloat16", ["float32", "bfloat16"], "of the weights")
    flags.DEFINE_integer("attempts", 2500, "most responses to a problem")
    flags.DEFINE_integer("batch_size", 256, "responses decoded at once")
    flags.DEFINE_integer("group_size", 8, "responses to one prompt of a batch")
    flags.DEFINE_string(
        "accept", "", "MODULE:FUNCTION(problem, response) -> bool, asked of every right answer"
    )
    main.run(collect, required=["out"])
