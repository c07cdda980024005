"""One RL step of remix_jax against TRL's GRPOTrainer and torch `generate`, on the CPU.

    python -m experiments.benchmark [--sizes=tiny,small] [--repeats=3] [--cores=2] [--out=DIR]

Makes an environment for the peers and a random Qwen2 model directory of each size, which both sides
load with the same batch of prompts. Then it runs a process of one side and a process of the other
in turn, each warmed up, so that whatever else the machine does falls on both. A step is: generate
(every response at its full length), log-probabilities under the reference model, four mini-batch
updates with AdamW and a clipped gradient; float32 on both sides.

Each side is measured in every setting (one core or all; the C library's allocations on large pages
or not) in the first round, in its best ones afterwards; the tables set best against best, by
CPU-seconds and by wall time apart. On a busy machine only the CPU-seconds mean something.
"""

import dataclasses
import itertools
import json
import os
import pathlib
import platform
import subprocess
import sys
from typing import Any

from absl import flags

from experiments import benchmark_peers, benchmark_report, peers
from experiments.benchmark_peers import Size
from experiments.main import run
from remix_jax.errors import InputError

ROOT = pathlib.Path(__file__).resolve().parent.parent
PEERS_SCRIPT = pathlib.Path(benchmark_peers.__file__).resolve()
LARGE_PAGES = (ROOT / "launch" / "malloc.txt").read_text().strip()

SIZES = {
    "tiny": Size(
        name="tiny",
        width=64,
        layers=2,
        heads=4,
        kv_heads=2,
        ffn_width=192,
        vocab_size=64,
        prompt_len=8,
        response_len=48,
        rows=256,
        group_size=8,
        mini_batches=4,
    ),
    "small": Size(
        name="small",
        width=384,
        layers=8,
        heads=6,
        kv_heads=2,
        ffn_width=1024,
        vocab_size=64,
        prompt_len=8,
        response_len=128,
        rows=32,
        group_size=8,
        mini_batches=4,
    ),
}
STEPS = {"tiny": (3, 10), "small": (1, 3)}  # RL steps of a process: to warm up, to measure

_SIZES = flags.DEFINE_list("sizes", list(SIZES), f"which of {', '.join(SIZES)}")
_REPEATS = flags.DEFINE_integer("repeats", 3, "rounds of processes, sides in turn", lower_bound=1)
_CORES = flags.DEFINE_integer("cores", 2, "cores a process may use at most", lower_bound=1)
_OUT = flags.DEFINE_string("out", "runs/benchmark", "directory for results.json and results.md")


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a process is started with."""

    threads: int
    large_pages: bool

    @property
    def label(self) -> str:
        cores = "1 core" if self.threads == 1 else f"{self.threads} cores"
        return f"{cores}, large pages" if self.large_pages else cores


def settings(cores: int) -> list[Setting]:
    """Every setting that is tried, one core first."""
    return [
        Setting(threads, pages)
        for threads, pages in itertools.product(sorted({1, cores}), (False, True))
    ]


def chosen_sizes(names: list[str]) -> list[Size]:
    """The sizes of these names.

    Raises:
      InputError: there is none, or one of them does not exist.
    """
    unknown = [name for name in names if name not in SIZES]
    if unknown or not names:
        raise InputError(f"--sizes={','.join(names)}: must name some of {', '.join(SIZES)}")
    return [SIZES[name] for name in dict.fromkeys(names)]


def check_cores(cores: int) -> None:
    """Raises InputError where this process may not use as many cores."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if cores > (usable or 1):
        raise InputError(f"--cores={cores}: {usable} can be used here")


@dataclasses.dataclass(frozen=True)
class Workers:
    """Starts the processes that measure and keeps what they print."""

    peers: pathlib.Path  # the interpreter of the peers' environment
    out: pathlib.Path

    def make_model(self, size: Size) -> int:
        """Write the size's model directory, the same for both sides; its parameter count."""
        spec = {"task": "make-model", "size": dataclasses.asdict(size), "model": self.model(size)}
        result = self._run("trl", spec, Setting(1, False), f"{size.name}-model")
        return result["parameters"]

    def measure(self, side: str, size: Size, setting: Setting, turn: int) -> dict[str, Any]:
        """One process of a side ("remix_jax" or "trl"): what it measured."""
        warmup, steps = STEPS[size.name]
        spec = {
            "task": "measure",
            "size": dataclasses.asdict(size),
            "model": self.model(size),
            "threads": setting.threads,
            "warmup": warmup,
            "steps": steps,
            "decodes": steps,
        }
        pages = "-pages" if setting.large_pages else ""
        name = f"{size.name}-{turn}-{side}-{setting.threads}{pages}"
        return self._run(side, spec, setting, name)

    def model(self, size: Size) -> str:
        return str(self.out / f"model-{size.name}")

    def _run(self, side: str, spec: dict[str, Any], setting: Setting, name: str) -> dict[str, Any]:
        folder = self.out / "processes"
        folder.mkdir(parents=True, exist_ok=True)
        spec_file, result_file = folder / f"{name}.spec.json", folder / f"{name}.json"
        spec_file.write_text(json.dumps(spec, indent=2))
        # -P: the script's own folder must not stand in for packages that share a file's name.
        command = [str(self.peers), "-P", str(PEERS_SCRIPT)]
        if side == "remix_jax":
            command = [sys.executable, "-m", "experiments.benchmark_remix"]
        log = folder / f"{name}.log"
        with log.open("w") as sink:
            done = subprocess.run(
                [*command, str(spec_file), str(result_file)],
                env=_environment(setting),
                cwd=ROOT,
                stdout=sink,
                stderr=subprocess.STDOUT,
            )
        if done.returncode:
            lines = log.read_text().strip().splitlines() or ["it printed nothing"]
            raise RuntimeError(f"{side} failed ({log}): {lines[-1]}")
        return json.loads(result_file.read_text())


def _environment(setting: Setting) -> dict[str, str]:
    """The environment of a measuring process: the same for both sides."""
    environment = {k: v for k, v in os.environ.items() if k not in ("GLIBC_TUNABLES", "XLA_FLAGS")}
    environment |= {
        "OMP_NUM_THREADS": str(setting.threads),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax"),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONWARNINGS": "ignore",
    }
    if setting.large_pages:
        environment["GLIBC_TUNABLES"] = LARGE_PAGES
    return environment


def measure_size(workers: Workers, size: Size, repeats: int, cores: int) -> list[dict[str, Any]]:
    """All runs of a size: {"side", "setting", "result"} in the order they were made."""
    runs: list[dict[str, Any]] = []
    for turn in range(repeats):
        tried = settings(cores)
        for setting in tried:
            for side in benchmark_report.SIDES:
                if turn and setting.label not in benchmark_report.best_settings(size, runs, side):
                    continue
                result = workers.measure(side, size, setting, turn)
                runs.append({"side": side, "setting": setting.label, "result": result})
                line = benchmark_report.run_line(size, runs[-1])
                peers.say(f"{size.name} {turn + 1}/{repeats} {line}")
    return runs


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    model = platform.processor() or platform.machine()
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        names = [x for x in info.read_text().splitlines() if x.startswith("model name")]
        model = names[0].split(":", 1)[1].strip() if names else model
    load = [round(x, 2) for x in os.getloadavg()]
    return {"processor": model, "cores": os.cpu_count(), "load": load}


def benchmark(sizes: list[Size], repeats: int, cores: int, out: pathlib.Path) -> str:
    """Measures, writes results.json and results.md into `out`, returns the latter's text."""
    out.mkdir(parents=True, exist_ok=True)
    workers = Workers(peers.python(), out.resolve())
    record: dict[str, Any] = {"machine": machine(), "cores": cores, "sizes": {}}
    for size in sizes:
        parameters = workers.make_model(size)
        runs = measure_size(workers, size, repeats, cores)
        record["sizes"][size.name] = {
            "problem": dataclasses.asdict(size),
            "parameters": parameters,
            "runs": runs,
            "summary": benchmark_report.summarize(size, runs),
        }
    record["load_after"] = [round(x, 2) for x in os.getloadavg()]
    text = benchmark_report.markdown(record)
    (out / "results.json").write_text(json.dumps(record, indent=1) + "\n")
    (out / "results.md").write_text(text)
    return text


def main() -> None:
    sizes = chosen_sizes(_SIZES.value)
    check_cores(_CORES.value)
    try:
        print(benchmark(sizes, _REPEATS.value, _CORES.value, pathlib.Path(_OUT.value)))
    except RuntimeError as error:
        print(f"failed: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    run(main)
