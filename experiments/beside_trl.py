"""Our GRPO beside TRL's: one model directory, problems, reward, batch, rate; seeds of each.

    python -m experiments.beside_trl                                    the arithmetic task
    python -m experiments.beside_trl --config=MINE.py --seeds=3         any model and problems

Both train by GRPO with the config's settings: groups, mini-batches, clip, KL to the first model
(k3), entropy bonus, AdamW, the mean over a mini-batch's tokens. TRL's models are
evaluated by our evaluation. Two implementations of one algorithm draw other numbers, so what must
agree is the distribution: each one's curve lies within the range of the other's seeds. TRL's
rewards are read from completions by a rule of two lines, and ours grade all of them again.
"""

import dataclasses
import itertools
import json
import pathlib
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
from absl import flags
from flax.traverse_util import flatten_dict

from experiments import config_flag, main, peers, trials
from experiments.report import figures
from experiments.tables import Sheet, page, share
from experiments.trials import Trial
from remix_jax import config_rules, evaluation, files
from remix_jax.config import Config
from remix_jax.data import tasks
from remix_jax.errors import InputError
from remix_jax.models.hf_tokenizer import load_vocabulary
from remix_jax.rewards import Item, Scorer

PEER = pathlib.Path(__file__).resolve().with_name("beside_trl_peer.py")
CONFIG = pathlib.Path(__file__).resolve().parent / "configs" / "arithmetic_grpo.py"
OURS, TRL = "remix_jax", "TRL"
Curve = list[tuple[int, float]]  # (fresh rollouts, accuracy)


# What TRL's side is told of the config, what has no effect without replay and KL-Convex, and what
# must be as here; all else of these sections must be as by default.
TOLD = (
    *("kl.coef", "kl.weighted", "objective.clip", "objective.clip_high", "objective.entropy_coef"),
    *("objective.mask_truncated", "optimizer.learning_rate", "optimizer.grad_clip"),
    "sampling.temperature",
)
IDLE = ("replay.window", "replay.sampler", "kl.start", "kl.every", "kl.drop", "kl.floor")
NEEDED = {
    "passes": 1,
    "replay.share": 0.0,
    "kl.convex": False,
    "objective.advantage": "group_normalized",
}
SECTIONS = (
    *("sampling", "replay", "kl", "reward", "objective", "imitation", "prefix", "expert"),
    *("optimizer", "lora"),
)


def check(config: Config) -> None:
    """Raises InputError where the config is not what TRL's GRPOTrainer does."""
    given, default = (flatten_dict(dataclasses.asdict(c), sep=".") for c in (config, Config()))
    for path, value in given.items():
        known = path in NEEDED or path.partition(".")[0] in SECTIONS
        wanted = NEEDED.get(path, default[path])
        if known and path not in (*TOLD, *IDLE) and value != wanted:
            raise InputError(
                f"config.{path} = {value!r}: TRL's side is GRPO with {wanted!r} there; it is told "
                f"{', '.join(TOLD)}"
            )
    config_rules.validate(config)


def spec_of(config: Config, out: pathlib.Path, threads: int) -> dict[str, Any]:
    """What TRL's process reads: problems with one answer, and the settings."""
    vocabulary = load_vocabulary(config.model.path)
    found = tasks.load_set(config.data.train, config.data, vocabulary.tokenizer)
    pairs = zip(found.problems, found.prompts, strict=True)
    rows = [(str(p.answers[0]), ids) for p, ids in pairs if len(p.answers) == 1]
    every = config.evaluation.every or config.steps
    return {
        "model": str(pathlib.Path(config.model.path).expanduser().resolve()),
        "prompts": [vocabulary.tokenizer.decode(ids) for _, ids in rows],
        "ids": [list(map(int, ids)) for _, ids in rows],
        "answers": [answer for answer, _ in rows],
        "batch_size": config.batch_size,
        "mini_batch_size": config.mini_batch_size,
        "group_size": config.group_size,
        "response_tokens": config.data.response_tokens,
        "temperature": config.sampling.temperature,
        "kl_coef": config.kl.coef,
        "kl_weighted": config.kl.weighted,
        "entropy_coef": config.objective.entropy_coef,
        "clip": config.objective.clip,
        "clip_high": config.objective.clip_high or config.objective.clip,
        "mask_truncated": config.objective.mask_truncated,
        "grad_clip": config.optimizer.grad_clip,
        "learning_rate": config.rates[0],
        "steps": config.steps,
        "save_at": sorted({*range(every, config.steps + 1, every), config.steps}),
        "seed": config.seed,
        "threads": threads,
        "out": str(out.resolve()),
    }


def train_trl(config: Config, out: pathlib.Path, threads: int) -> dict[str, Any]:
    """One run of TRL's trainer, or what one of the same settings has left."""
    spec, spec_file, result = spec_of(config, out, threads), out / "spec.json", out / "result.json"
    text = json.dumps(spec)
    if not (result.exists() and spec_file.read_text() == text):
        out.mkdir(parents=True, exist_ok=True)
        spec_file.write_text(text)
        command = [str(peers.python()), "-P", str(PEER), str(spec_file), str(result)]
        with (out / "log.txt").open("w") as log:
            done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False)
        if done.returncode:
            last = ((out / "log.txt").read_text().strip().splitlines() or ["no message"])[-1]
            raise InputError(f"TRL's run failed ({out}/log.txt): {last}")
    return json.loads(result.read_text())


def accuracy_of(config: Config, model: pathlib.Path) -> float:
    """Held-out accuracy of a model directory, the mean of the sets, as a run measures it."""
    out = model.with_name(f"{model.name}_evaluated")
    if not (out / "results.json").exists():
        changed = dataclasses.replace(config.model, path=str(model))
        evaluation.evaluate(dataclasses.replace(config, model=changed), out)
    return json.loads((out / "results.json").read_text())["mean"]["pass@1"]


def regraded(config: Config, out: pathlib.Path) -> tuple[int, int]:
    """Completions of TRL's run, and those among them to which our reward gives another number."""
    rows = [row for _, row in files.json_lines(out / "completions.jsonl")]
    vocabulary = load_vocabulary(config.model.path)
    found = tasks.load_set(config.data.train, config.data, vocabulary.tokenizer)
    texts = map(vocabulary.tokenizer.decode, found.prompts)
    problem = dict(zip(texts, found.problems, strict=True))
    items = [
        Item(problem[r["prompt"]], r["prompt"], r["completion"], [], True, found.form) for r in rows
    ]
    scores = Scorer.of(config)(items)
    differ = sum(s.reward != r["reward"] for s, r in zip(scores, rows, strict=True))
    return len(rows), differ


def curves(data: Mapping[str, Any], what: str) -> dict[str, list[Curve]]:
    """Side -> a curve a seed: "held_out", or "training" in windows of `every` steps."""
    return {side: [run[what] for run in data["runs"][side]] for side in (OURS, TRL)}


def windows(values: Sequence[float], rows: int, every: int) -> Curve:
    """Means of `every` steps, each at the rollouts up to its end."""
    ends = range(every, len(values) + 1, every)
    return [(end * rows, statistics.mean(values[end - every : end])) for end in ends]


def ours(trial: Trial, metrics: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Curves and seconds of a run of ours."""
    steps, every = [m for m in metrics if m["step"] > 0], trial.config.evaluation.every
    held_out = [(m["rollouts"], m["eval/mean"]) for m in metrics if "eval/mean" in m]
    parts = [sum(m[f"seconds/{p}"] for p in ("sample", "grade", "learn")) for m in steps]
    training = windows([m["accuracy"] for m in steps], trial.config.batch_size, every or len(steps))
    return {"held_out": held_out, "training": training, "seconds": statistics.median(parts)}


def theirs(trial: Trial, out: pathlib.Path, threads: int, first: float) -> dict[str, Any]:
    """The same of a run of TRL's; `first` is the accuracy of the model that both start from."""
    config = trial.config
    found, rows = train_trl(config, out, threads), config.batch_size
    steps = sorted(int(path.name[4:]) for path in out.glob("step*") if path.name[4:].isdigit())
    held_out = [(0, first)] + [
        (step * rows, accuracy_of(config, out / f"step{step}")) for step in steps
    ]
    training = windows(found["rewards"], rows, config.evaluation.every or config.steps)
    graded, differ = regraded(config, out)
    return {
        "held_out": held_out,
        "training": training,
        "seconds": statistics.median(found["seconds"]),
        "completions": graded,
        "graded otherwise": differ,
        "versions": found["versions"],
    }


def sheet(data: Mapping[str, Any], what: str, title: str) -> Sheet:
    """Accuracy by rollouts: the median and range of each side, and whether either leaves the other.

    A side agrees where its median lies within the range of the other's seeds.
    """
    by_side = curves(data, what)
    header = ["rollouts", f"{OURS}, %", f"{TRL}, %", "medians within the other's range"]
    lines = []
    for points in zip(*itertools.chain(*by_side.values()), strict=True):
        values = [value for _, value in points]
        parts = [sorted(values[: len(by_side[OURS])]), sorted(values[len(by_side[OURS]) :])]
        middle = [statistics.median(part) for part in parts]
        inside = [b[0] <= m <= b[-1] for m, b in zip(middle, parts[::-1], strict=True)]
        cells = [
            f"{share(m)} [{share(p[0])}–{share(p[-1])}]" for m, p in zip(middle, parts, strict=True)
        ]
        agree = "both" if all(inside) else "one" if any(inside) else "none"
        lines.append([f"{points[0][0]:,}", *cells, agree])
    return Sheet(header, lines, title)


def draw(data: Mapping[str, Any]) -> dict[str, plt.Figure]:
    """Held-out and training accuracy of both, bands over seeds."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, (what, title) in zip(axes, WHAT.items(), strict=True):
        for index, (side, found) in enumerate(reversed(curves(data, what).items())):
            each = [([x for x, _ in curve], [y for _, y in curve]) for curve in found]
            label = f"{side} ({len(found)} seeds)"
            figures.draw_band(axis, each, figures.line_style(index), label)
        axis.set_title(title)
        figures.count_axis(axis)
        figures.share_axis(axis, "accuracy", whole=False)
    figures.labels_below(figure, axes, figures.BAND)
    return {"beside_trl": figure}


WHAT = {"held_out": "Held-out accuracy", "training": "Accuracy of the rollouts"}


def experiment() -> None:
    """The experiment behind the flags."""
    begin, out = time.perf_counter(), pathlib.Path(str(OUT.value)).expanduser()
    config = config_flag.value_of(CONFIG_FLAG)
    check(config)
    made = [
        Trial(f"ours/seed{seed}", dataclasses.replace(config, seed=config.seed + seed))
        for seed in range(SEEDS.value)
    ]
    done = trials.run(made, out, workers=1)
    runs: dict[str, list[dict[str, Any]]] = {OURS: [], TRL: []}
    for trial in made:
        runs[OURS].append(ours(trial, done[trial.name].metrics))
        first = runs[OURS][-1]["held_out"][0][1]
        folder = out / trial.name.replace("ours", "trl")
        runs[TRL].append(theirs(trial, folder, THREADS.value, first))
        print(f"{folder}: {share(runs[TRL][-1]['held_out'][-1][1])} %", flush=True)
    about = trials.about(config, time.perf_counter() - begin, workers=1)
    versions = runs[TRL][0]["versions"]
    about["TRL's side"] = ", ".join(f"{name} {number}" for name, number in versions.items())
    graded, differ = (sum(r[k] for r in runs[TRL]) for k in ("completions", "graded otherwise"))
    about["TRL's rewards"] = f"{differ} of {graded:,} completions get another one from our grader"
    for side, found in runs.items():
        each = sorted(run["seconds"] for run in found)
        text = f"{statistics.median(each):.2f} [{each[0]:.2f}–{each[-1]:.2f}]"
        about[f"seconds a step, {side}"] = text
    data = {"runs": runs, "about": about}
    sheets = [sheet(data, what, title) for what, title in WHAT.items()]
    text = page([line for each in sheets for line in each.markdown()], about)
    files.write_durably(out / "beside_trl.json", json.dumps(data, indent=2) + "\n")
    files.write_durably(out / "beside_trl.md", text)
    figures.render(draw, data, out)
    print(text)


if __name__ == "__main__":
    CONFIG_FLAG = config_flag.define(default=str(CONFIG))
    SEEDS = flags.DEFINE_integer("seeds", 3, "of each side", lower_bound=1)
    THREADS = flags.DEFINE_integer("threads", 1, "of torch", lower_bound=1)
    OUT = flags.DEFINE_string("out", "runs/beside_trl", "a directory a run, and the comparison")
    main.run(experiment)
