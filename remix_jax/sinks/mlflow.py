"""MLflow; the server by MLFLOW_TRACKING_URI, the experiment by MLFLOW_EXPERIMENT_NAME."""

import json
import os
import time

import mlflow
from mlflow.entities import Metric

from remix_jax.sinks.sink import Metrics, Rows, Run, numbers


class MLflow:
    """One run of MLflow for one run here, also across continuations: its id lies in the workdir."""

    def __init__(self, run: Run) -> None:
        self._client = mlflow.MlflowClient()
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
        now = int(1000 * time.time())
        found = numbers(metrics)
        self._client.log_batch(self._id, [Metric(k, v, now, step) for k, v in found.items()])

    def samples(self, step: int, rows: Rows) -> None:
        text = "".join(json.dumps(row, default=str) + "\n" for row in rows)
        self._client.log_text(self._id, text, f"samples/step-{step:06d}.jsonl")

    def close(self) -> None:
        self._client.set_terminated(self._id)
