"""Collects a bank of traces: samples a model until each problem has one verified response.

python -m experiments.collect_traces --model=DIR --problems=SPEC --out=DIR --attempts=2500
python -m experiments.collect_traces --config=experiments/configs/NAME.py --out=DIR

With --config, model, problems, instruction, reward, sampling, widths, dtype and seed are those of
the config, and any flag given beside it goes before them. The same command continues a collection
that was killed; a higher --attempts goes on with what stayed unsolved. Where a right answer says
little about the way to it, --accept names a function that reads the response as well.
"""

import sys

from absl import flags

from experiments import config_flag, main
from experiments.collection import Effort, collect
from experiments.evaluate import replaced
from remix_jax.config import Config, Model
from remix_jax.errors import InputError
from remix_jax.sinks.console import Console

# Flag -> (section, field) of the config; an empty section is the config itself.
FIELDS = {
    "model": ("model", "path"),
    "problems": ("data", "train"),
    "instruction": ("data", "instruction"),
    "temperature": ("sampling", "temperature"),
    "top_k": ("sampling", "top_k"),
    "top_p": ("sampling", "top_p"),
    "min_p": ("sampling", "min_p"),
    "prompt_tokens": ("data", "prompt_tokens"),
    "response_tokens": ("data", "response_tokens"),
    "dtype": ("model", "dtype"),
    "seed": ("", "seed"),
}


def config_of(values: flags.FlagValues, given: Config | None = None) -> Config:
    """The config that the flags ask for, and --config where they are silent.

    Raises:
      InputError: no model or no problems.
    """
    config = given or Config(model=Model(dtype="bfloat16"))
    for flag, (section, field) in FIELDS.items():
        if (value := values[flag].value) is not None:
            config = replaced(config, section, **{field: value})
    for flag, value in (("model", config.model.path), ("problems", config.data.train)):
        if not value:
            raise InputError(f"--{flag} is required, or a --config")
    return config


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """The flags that say what is collected, and how."""
    for name, text in (
        ("out", "directory of the bank: new, or one to be continued"),
        ("model", "Hugging Face model directory"),
        ("problems", "spec of a set (docs/tasks.md)"),
        ("instruction", "appended to each problem"),
    ):
        flags.DEFINE_string(name, None, text, values)
    for name, text in (
        ("temperature", "above 0; 1"),
        ("top_p", "1: off"),
        ("min_p", "0: off"),
    ):
        flags.DEFINE_float(name, None, text, flag_values=values)
    for name, text in (
        ("top_k", "0: off"),
        ("prompt_tokens", "longer prompts are dropped and counted; 766"),
        ("response_tokens", "tokens of the longest response; 8192"),
        ("seed", "of the draws; 0"),
    ):
        flags.DEFINE_integer(name, None, text, flag_values=values)
    flags.DEFINE_enum("dtype", None, ["float32", "bfloat16"], "of the weights; bfloat16", values)
    effort = Effort()
    for name, number, text in (
        ("attempts", effort.attempts, "most responses to a problem"),
        ("batch_size", effort.batch_size, "responses decoded at once"),
        ("group_size", effort.group_size, "responses to one prompt of a batch"),
    ):
        flags.DEFINE_integer(name, number, text, flag_values=values)
    accept = "FILE.py:FUNCTION(problem, response) -> bool, asked of every right answer"
    flags.DEFINE_string("accept", effort.accept, accept, values)


def run(given: Config | None) -> None:
    """The collection behind the flags."""
    v = flags.FLAGS
    effort = Effort(v.attempts, v.batch_size, v.group_size, v.accept)
    try:
        collect(config_of(v, given), effort, v.out, Console(0))
    except KeyboardInterrupt:
        print("stopped; the same command continues after the last whole batch", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    CONFIG = config_flag.define()
    define_flags()
    main.run(
        lambda: run(config_flag.value_of(CONFIG) if flags.FLAGS["config"].value else None),
        required=["out"],
    )
