"""Evaluates a model on any sets of problems, as it was trained or as flags say.

python -m experiments.evaluate --model=DIR --data=DIR --out=DIR \\
    --benchmarks=aime24,amc23,math500,minerva,olympiad_bench
python -m experiments.evaluate --model=runs/mine --sets=test.jsonl --out=DIR
python -m experiments.evaluate --model=DIR --sets=reasoning_gym:chain_sum?size=200 --out=DIR

Of a model directory: greedy Pass@1 by the paper's protocol. Of a run's directory (or its export):
with the instruction, form of answers, reward, lengths and decoding of its config; --config=FILE
gives a config as well. Any flag goes before both. The paper's sampled protocol:
--temperature=0.1 --samples=aime24:32,amc23:32. The same command continues an evaluation that was
killed. All devices take part; --mesh=1,-1,4 divides each matrix over 4 of them. On several
machines: the same command on each, with --coordinator or --distributed (launch/README.md).
"""

import dataclasses
import os
import pathlib
import sys
from collections.abc import Sequence

from absl import flags

from experiments import config_flag, main
from experiments.benchmark_sets import BENCHMARKS, locate
from remix_jax import config as configs
from remix_jax import evaluation, processes
from remix_jax.config import Config, Data, Evaluation, Mesh, Model
from remix_jax.data import tasks
from remix_jax.data.problems import INSTRUCTION
from remix_jax.errors import InputError
from remix_jax.learner.policy import as_saved
from remix_jax.sinks.console import Console

# Flag -> (section, field) of the config; an empty section is the config itself.
FIELDS = {
    "instruction": ("data", "instruction"),
    "system_prompt": ("data", "system_prompt"),
    "answer": ("data", "answer"),
    "prompt_tokens": ("data", "prompt_tokens"),
    "response_tokens": ("data", "response_tokens"),
    "temperature": ("evaluation", "temperature"),
    "top_p": ("evaluation", "top_p"),
    "batch_size": ("evaluation", "batch_size"),
    "limit": ("evaluation", "limit"),
    "dtype": ("model", "dtype"),
    "seed": ("", "seed"),
}


def trained(directory: str | pathlib.Path) -> tuple[str, Config | None]:
    """(model directory, config it was trained with) of a run's directory or its export.

    Of any other directory: itself, and None.

    Raises:
      InputError: a run without an export, or whose config is of another version.
    """
    given = pathlib.Path(directory).expanduser()
    for run, export in ((given, given / "export"), (given.parent, given)):
        path = run / "config.json"
        text = path.read_text() if path.is_file() else ""
        if '"objective"' not in text or export.name != "export":
            continue
        if not export.is_dir():
            raise InputError(f"{given}: the run has left no model yet (no export/)")
        config = configs.from_json(text, path)
        config.model.adapter = ""  # the export is merged
        return str(export), as_saved(config)
    return str(directory), None


def papers_protocol() -> Config:
    """What a model is evaluated by where nothing says how it was trained."""
    return Config(
        model=Model(dtype="bfloat16"),
        data=Data(instruction=INSTRUCTION, prompt_tokens=2048, response_tokens=8192),
        evaluation=Evaluation(batch_size=64),
    )


def config_of(values: flags.FlagValues, given: Config | None = None) -> Config:
    """The config that the flags ask for: theirs, else --config's, else the run's, else the paper's.

    Args:
      given: that of --config.

    Raises:
      InputError: they contradict each other or name what is not there.
    """
    named = values.model or (given.model.path if given else "")
    if not named:
        raise InputError("--model is required, or a --config that names one")
    model, config = trained(named)
    known = given or config
    config = known or papers_protocol()
    names, sets = values.benchmarks, list(values.sets)
    if not names and not sets:
        names, sets = ([], list(config.data.suites)) if known else (list(BENCHMARKS), [])
    specs = [f"{locate(values.data, name)}?name={name}" for name in names] + sets
    specs, number = with_samples(specs, values.samples)
    config = replaced(config, "model", path=model)
    config = replaced(config, "data", suites=tuple(specs))
    if number:
        config = replaced(config, "evaluation", samples=number)
    for flag, (section, field) in FIELDS.items():
        if (value := values[flag].value) is not None:
            config = replaced(config, section, **{field: value})
    if values.dtype is not None:
        config = replaced(config, "model", compute_dtype="")
    if values.reward is not None:
        config = replaced(config, "reward", functions=tuple(values.reward), weights=())
    if values.mesh:
        config = dataclasses.replace(config, mesh=mesh_of(values.mesh))
    return config


def replaced(config: Config, section: str, **values) -> Config:
    """A config with other fields in a section."""
    if not section:
        return dataclasses.replace(config, **values)
    changed = dataclasses.replace(getattr(config, section), **values)
    return dataclasses.replace(config, **{section: changed})


def with_samples(specs: Sequence[str], text: Sequence[str]) -> tuple[list[str], int]:
    """Specs with their samples, and those of all others (0: as the config has it).

    Args:
      text: N for all sets, or NAME:N for some.

    Raises:
      InputError: neither form, or a name that is not evaluated.
    """
    shown = ",".join(text)
    pairs = [part.rpartition(":") for part in text]
    named = all(name for name, _, _ in pairs) or len(pairs) == 1
    if not named or not all(n.isdigit() for _, _, n in pairs):
        raise InputError(f"--samples={shown}: expected a number, or NAME:NUMBER,NAME:NUMBER")
    if not pairs or not pairs[0][0]:
        return list(specs), int(pairs[0][2]) if pairs else 0
    given = {name: n for name, _, n in pairs}
    names = [tasks.parse(spec).name for spec in specs]
    for name in given:
        if name not in names:
            raise InputError(f"--samples={shown}: {name!r} is none of {', '.join(names)}")
    return [
        f"{spec}{'&' if '?' in spec else '?'}samples={given[name]}" if name in given else spec
        for spec, name in zip(specs, names, strict=True)
    ], 1


def mesh_of(text: Sequence[str]) -> Mesh:
    """Sizes of data, fsdp and tensor from a flag.

    Raises:
      InputError: they are not three whole numbers.
    """
    try:
        data, fsdp, tensor = map(int, text)
    except ValueError:
        raise InputError(f"--mesh={','.join(text)}: expected DATA,FSDP,TENSOR, as 1,-1,1") from None
    return Mesh(data, fsdp, tensor)


def evaluate(given: Config | None) -> None:
    """The evaluation behind the flags."""
    values = flags.FLAGS
    config = config_of(values, given)
    JOIN()
    try:
        with open(os.devnull, "w") as nowhere:  # of several processes the first one speaks
            file = None if processes.is_first() else nowhere
            console = Console(0, file=file)
            found = evaluation.evaluate(config, values.out, console)
        for name, of_set in found.get("sets", {}).items():
            known = BENCHMARKS.get(name)
            if known and of_set["problems"] != known.problems:
                had = of_set["problems"]
                console.event(f"{name} had {had} problems, the paper's set has {known.problems}")
    except KeyboardInterrupt:
        print("stopped; the same command continues after the last whole batch", file=sys.stderr)
        sys.exit(130)


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """The flags that `config_of` reads, and --out."""
    for name, default, text in (
        ("model", None, "Hugging Face model directory, or that of a run"),
        ("data", "data", "directory of the benchmarks' files: aime.json, amc.json, ..."),
        ("out", None, "directory of the evaluation: new, or of the same one"),
        ("instruction", None, "appended to each problem"),
        ("system_prompt", None, "in place of the rows' own"),
        ("answer", None, "form of the answers: boxed, hash"),
    ):
        flags.DEFINE_string(name, default, text, values)
    for name, empty, text in (
        ("sets", [], "specs of sets (docs/tasks.md); a comma within one is %2C"),
        ("benchmarks", [], f"of {', '.join(BENCHMARKS)}"),
        ("samples", [], "responses a problem: N, or NAME:N,NAME:N (else 1)"),
        ("reward", None, "functions of the reward (docs/rewards.md)"),
        ("mesh", [], "devices on data,fsdp,tensor; -1: the rest"),
    ):
        flags.DEFINE_list(name, empty, text, values)
    for name, text in (
        ("prompt_tokens", "longer prompts are dropped: wrong; 2048"),
        ("response_tokens", "tokens of the longest response; 8192"),
        ("batch_size", "responses decoded at once; 64"),
        ("limit", "first problems of each set, for a quick look; 0: all"),
        ("seed", "of the draws; 0"),
    ):
        flags.DEFINE_integer(name, None, text, flag_values=values)
    flags.DEFINE_float("temperature", None, "0: greedy", flag_values=values)
    flags.DEFINE_float("top_p", None, "1: off", flag_values=values)
    dtypes = ["float32", "bfloat16"]
    flags.DEFINE_enum("dtype", None, dtypes, "of the weights; bfloat16", values)


if __name__ == "__main__":
    CONFIG = config_flag.define()
    JOIN = main.define_processes()
    define_flags()
    main.run(
        lambda: evaluate(config_flag.value_of(CONFIG) if flags.FLAGS["config"].value else None),
        required=["out"],
    )
