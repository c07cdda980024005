"""Prepares problem files as TFDS array_record directories, without TensorFlow:

python -m experiments.prepare_data --out=DIR --train=FILE --name=deepscaler
python -m experiments.prepare_data --out=DIR --benchmarks=aime24,math500 --data=DIR_OF_THEIR_FILES

The directories that it prints can stand wherever a config or a flag takes a problem file.
"""

import contextlib
import io
import pathlib
import tempfile

from absl import flags

from experiments import benchmark_sets, main
from remix_jax.data.problems import load_problems
from remix_jax.errors import InputError

OUT = flags.DEFINE_string("out", None, "directory that takes the prepared data")
TRAIN = flags.DEFINE_string("train", None, "training problems: .json, .jsonl or .parquet")
NAME = flags.DEFINE_string("name", "deepscaler", "what the training problems are to be called")
BAD_ROWS = flags.DEFINE_enum(
    "on_bad_row", "refuse", ["refuse", "skip"], "what a malformed training row does"
)
BENCHMARKS = flags.DEFINE_list("benchmarks", [], ", ".join(benchmark_sets.BENCHMARKS))
DATA = flags.DEFINE_string("data", None, "directory of the benchmarks' files")


def prepare_data() -> None:
    """The work behind the flags."""
    out = pathlib.Path(OUT.value or "").expanduser().resolve()
    if TRAIN.value is None and not BENCHMARKS.value:
        raise InputError("nothing to prepare: give --train=FILE or --benchmarks=NAMES")
    if BENCHMARKS.value and not DATA.value:
        raise InputError("--benchmarks needs --data=DIR, where their files are")
    data = pathlib.Path(DATA.value or "").expanduser().resolve()
    if TRAIN.value is not None:
        _train(out, pathlib.Path(TRAIN.value).expanduser().resolve(), NAME.value)
    for name in BENCHMARKS.value:
        _benchmark(out, data, name)


def _train(out: pathlib.Path, source: pathlib.Path, name: str) -> None:
    from experiments.tfds_builders import DeepScaler, SourceConfig

    skip = BAD_ROWS.value == "skip"
    skipped: list[str] | None = [] if skip else None
    load_problems(source, skipped)  # says what is wrong before TFDS begins
    for message in skipped or ():
        print(f"skipped: {message}")
    config = SourceConfig(name=name, source=str(source), skip_malformed=skip)
    _write(DeepScaler(config=config, data_dir=str(out), file_format="array_record"))


def _benchmark(out: pathlib.Path, data: pathlib.Path, name: str) -> None:
    from experiments.tfds_builders import MathBenchmarks

    load_problems(benchmark_sets.locate(data, name))
    builder = MathBenchmarks(config=name, data_dir=str(out), file_format="array_record")
    _write(builder, str(data))


def _write(builder, manual: str | None = None) -> None:
    from experiments.tfds_builders import prepare

    if pathlib.Path(builder.data_dir).exists():
        raise InputError(f"{builder.data_dir}: exists; remove it, or give another --out or --name")
    quiet = contextlib.redirect_stdout(io.StringIO())  # TFDS speaks of downloads; there are none
    with tempfile.TemporaryDirectory() as scratch, quiet:
        rows = prepare(builder, scratch, manual)
    print(f"{builder.data_dir}: {rows:,} problems")


if __name__ == "__main__":
    main.run(prepare_data, required=["out"])
