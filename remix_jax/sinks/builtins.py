"""The builtin trackers. Their packages are imported when a run asks for them (`sink.trackers`)."""

import json
import math
import os
import shutil
import time

from remix_jax.sinks.sink import Metrics, Rows, Run

# Metrics by the question they answer, for trackers that show a group a section.
GROUPS = {
    "1_learning": (
        *("reward", "accuracy", "format_rate", "zero_variance", "eval/", "validation/"),
        *("truncated_rate", "response_length", "grader_"),
    ),
    "2_stability": ("ratio_", "clip_share", "ess", "kl_", "entropy", "sampler_", "truncation_"),
    "3_optimizer": ("loss", "grad_norm", "critic_", "explained_variance", "learning_rate"),
    "4_replay": ("rows/", "n_", "rollouts"),
    "5_cost": ("seconds", "tokens", "flops", "learn_tokens", "mfu/"),
}
# In TensorBoard also drawn against fresh rollouts, where steps of two methods cost differently.
BY_ROLLOUTS = ("reward", "accuracy", "eval/mean")
_FLUSH_SECONDS, _SHOWN = 30.0, 2  # TensorBoard: between flushes; samples shown of a step


def tag(name: str) -> str:
    """`group/name` of a metric; figures by age of the rows are of the replay's group."""
    groups = [group for group, starts in GROUPS.items() if name.startswith(starts)]
    return f"{'4_replay' if '/age' in name else (*groups, '6_other')[0]}/{name}"


def numbers(metrics: Metrics) -> dict[str, float]:
    """The finite numbers among the metrics of a step."""
    found = {name: v for name, v in metrics.items() if isinstance(v, int | float)}
    return {name: float(value) for name, value in found.items() if math.isfinite(value)}


def table(rows: Rows) -> dict[str, list]:
    """Samples as columns and data, all as text."""
    columns = list(dict.fromkeys(name for row in rows for name in row if name != "tokens"))
    return {"columns": columns, "data": [[str(row.get(n, "")) for n in columns] for row in rows]}


class TensorBoard:
    """In `tensorboard/` of the run: scalars by step and, a few, by fresh rollouts; texts.

    What was there is replaced by the run's history: no step is missing or doubled after a kill.
    """

    def __init__(self, run: Run) -> None:
        import tensorboardX

        folder = run.workdir / "tensorboard"
        shutil.rmtree(folder, ignore_errors=True)
        # Flushed by `write`: a full disk is seen there, not lost in the writer's own thread.
        self._writer = tensorboardX.SummaryWriter(str(folder), max_queue=1 << 20, flush_secs=86400)
        self._flushed = time.monotonic()
        self._writer.add_text("config", f"```\n{json.dumps(run.config, indent=1)}\n```", 0)
        start = time.time() - (run.history[-1].get("seconds", 0.0) if run.history else 0.0)
        for record in run.history:  # at the moments of a run without pauses
            self._add(record["step"], record, start + record.get("seconds", 0.0))

    def write(self, step: int, metrics: Metrics) -> None:
        """On the disk at most `_FLUSH_SECONDS` later."""
        self._add(step, metrics, time.time())
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self._writer.flush()
            self._flushed = time.monotonic()

    def samples(self, step: int, rows: Rows) -> None:
        """The first few as texts, without the numbers of their tokens."""
        for i, row in enumerate(rows[:_SHOWN]):
            shown = (f"{name}: {value}" for name, value in row.items() if name != "tokens")
            lines = "\n".join(shown)
            self._writer.add_text(f"sample_{i}", f"```\n{lines}\n```", step)

    def close(self) -> None:
        self._writer.flush()
        self._writer.close()

    def _add(self, step: int, metrics: Metrics, at: float) -> None:
        for name, value in numbers(metrics).items():
            if name != "step":
                self._writer.add_scalar(tag(name), value, step, at)
            if name in BY_ROLLOUTS and "rollouts" in metrics:
                curve, rollouts = f"by_rollouts/{name.replace('/', '_')}", int(metrics["rollouts"])
                self._writer.add_scalar(curve, value, rollouts, at)


class WandB:
    """Weights & Biases; project, entity and mode by its own variables WANDB_PROJECT and so on.

    One run of it for one run here, also across continuations; so with the trackers below.
    """

    def __init__(self, run: Run) -> None:
        import wandb

        known, self._table = run.known_as("wandb"), wandb.Table
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "remix_jax"),
            name=run.name,
            config=run.config,
            dir=str(run.workdir),
            id=known,
            resume="allow" if known else None,
        )
        run.remember("wandb", self._run.id)
        # A figure of its own as axis: W&B takes no step twice, and a continued run repeats some.
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, metrics: Metrics) -> None:
        figures = {tag(name): value for name, value in numbers(metrics).items()}
        self._run.log({"step": step} | figures)

    def samples(self, step: int, rows: Rows) -> None:
        self._run.log({"step": step, "samples": self._table(**table(rows))})

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """trackio, local by default; TRACKIO_PROJECT, TRACKIO_SPACE_ID as trackio reads them."""

    def __init__(self, run: Run) -> None:
        import trackio

        known, self._table = run.known_as("trackio"), trackio.Table
        self._run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", "remix_jax"),
            name=known or run.name,
            config=run.config,
            resume="allow" if known else "never",
            embed=False,
        )
        run.remember("trackio", self._run.name)

    def write(self, step: int, metrics: Metrics) -> None:
        self._run.log(numbers(metrics), step=step)

    def samples(self, step: int, rows: Rows) -> None:
        self._run.log({"samples": self._table(**table(rows))}, step=step)

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """MLflow; the server by MLFLOW_TRACKING_URI, the experiment by MLFLOW_EXPERIMENT_NAME."""

    def __init__(self, run: Run) -> None:
        import mlflow
        from mlflow.entities import Metric

        self._client, self._metric = mlflow.MlflowClient(), Metric
        known = run.known_as("mlflow")
        if known is None:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "remix_jax")
            found = self._client.get_experiment_by_name(name)
            experiment = found.experiment_id if found else self._client.create_experiment(name)
            known = self._client.create_run(experiment, run_name=run.name).info.run_id
            run.remember("mlflow", known)
            self._client.log_dict(known, run.config, "config.json")
        self._id = known
        self._client.update_run(known, status="RUNNING")

    def write(self, step: int, metrics: Metrics) -> None:
        now, figures = int(1000 * time.time()), numbers(metrics)
        logged = [self._metric(name, value, now, step) for name, value in figures.items()]
        self._client.log_batch(self._id, logged)

    def samples(self, step: int, rows: Rows) -> None:
        text = "".join(json.dumps(row, default=str) + "\n" for row in rows)
        self._client.log_text(self._id, text, f"samples/step-{step:06d}.jsonl")

    def close(self) -> None:
        self._client.set_terminated(self._id)
