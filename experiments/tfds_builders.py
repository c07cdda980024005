"""TFDS builders: problem files -> array_record, read again through `as_data_source`.

    DeepScaler(config=SourceConfig(name="math_train", source=FILE), data_dir=DIR,
               file_format="array_record").download_and_prepare()

Nothing is fetched and TensorFlow is never imported. Rows are checked on their way in, by
`load_problems`, and keep their order; `load_problems` reads the prepared directory as well. The
builders live in an importable module because TFDS asks for the folder of the module's package.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterator

import tensorflow_datasets as tfds

from experiments import benchmark_sets
from remix_jax.data.problems import load_problems

FEATURES = {"problem": tfds.features.Text(), "id": tfds.features.Text()}


@dataclasses.dataclass(eq=False)
class SourceConfig(tfds.core.BuilderConfig):
    """Where the rows come from; `name` becomes that of the problem set."""

    source: str = ""  # problem file
    skip_malformed: bool = False  # leave malformed rows out instead of refusing the file


class _Problems(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """What both builders share: rows of problem, id and answers."""

    VERSION = tfds.core.Version(benchmark_sets.PREPARED_VERSION)

    def _info(self) -> tfds.core.DatasetInfo:
        # A column has one type, an answer is a text or a number: each is stored as JSON.
        answers = tfds.features.Sequence(tfds.features.Text())
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(FEATURES | {"answers_json": answers}),
            disable_shuffling=True,
        )

    def _rows(self, source: pathlib.Path, skip_malformed: bool) -> Iterator[tuple[int, dict]]:
        for i, problem in enumerate(load_problems(source, [] if skip_malformed else None)):
            answers = [json.dumps(answer) for answer in problem.answers]
            yield i, {"problem": problem.problem, "id": problem.id, "answers_json": answers}


class DeepScaler(_Problems):
    """Training problems in the format of DeepScaleR: rows of `problem` and `answer`."""

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        config = self.builder_config
        yield from self._rows(pathlib.Path(config.source), config.skip_malformed)


class MathBenchmarks(_Problems):
    """AIME 2024, AMC 2023, MATH500, Minerva and OlympiadBench, from files in the manual folder."""

    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in benchmark_sets.BENCHMARKS]  # noqa: RUF012
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Put the sets' files there: aime.json, amc.json, and so on."

    def _split_generators(self, dl_manager):
        name = self.builder_config.name
        return {"test": self._generate_examples(benchmark_sets.locate(dl_manager.manual_dir, name))}

    def _generate_examples(self, source):
        yield from self._rows(source, skip_malformed=False)


def prepare(builder: tfds.core.DatasetBuilder, scratch: str, manual: str | None = None) -> int:
    """Writes the builder's rows under its data directory and gives their number.

    Args:
      builder: one of the above, with file_format "array_record".
      scratch: a folder TFDS may leave its empty download folders in.
      manual: the folder of the benchmark files, for `MathBenchmarks`.
    """
    tfds.disable_progress_bar()
    settings = tfds.download.DownloadConfig(manual_dir=manual)
    builder.download_and_prepare(download_dir=scratch, download_config=settings)
    return sum(split.num_examples for split in builder.info.splits.values())
