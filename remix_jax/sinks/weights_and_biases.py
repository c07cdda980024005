"""Weights & Biases; project, entity and mode by its own variables WANDB_PROJECT and so on."""

import os

import wandb

from remix_jax.sinks.sink import Metrics, Rows, Run, numbers, tag


class WandB:
    """One run of W&B for one run here, also across continuations: its id lies in the workdir."""

    def __init__(self, run: Run) -> None:
        known = run.known_as("wandb")
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
        columns = list(dict.fromkeys(name for row in rows for name in row))
        data = [[str(row.get(name, "")) for name in columns] for row in rows]
        self._run.log({"step": step, "samples": wandb.Table(columns=columns, data=data)})

    def close(self) -> None:
        self._run.finish()
