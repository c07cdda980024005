"""TensorBoard, in `tensorboard/` of the run."""

import json
import shutil
import time

import tensorboardX

from remix_jax.sinks.sink import Metrics, Rows, Run, numbers, tag

FOLDER = "tensorboard"
# Also drawn against fresh rollouts, where steps of two methods cost differently.
BY_ROLLOUTS = ("reward", "accuracy", "eval/mean")
_FLUSH_SECONDS, _SHOWN = 30.0, 2  # between flushes; samples shown of a step


class TensorBoard:
    """Scalars by step and, a few, by fresh rollouts; samples and config as text.

    What was there is replaced by the run's history: no step is missing or doubled after a kill.
    """

    def __init__(self, run: Run) -> None:
        folder = run.workdir / FOLDER
        shutil.rmtree(folder, ignore_errors=True)
        # Flushed by `write`: a full disk is seen there, not lost in the writer's own thread.
        self._writer = tensorboardX.SummaryWriter(str(folder), max_queue=1 << 20, flush_secs=86400)
        self._flushed = time.monotonic()
        self._writer.add_text("config", f"```\n{json.dumps(run.config, indent=1)}\n```", 0)
        start = time.time() - (run.history[-1].get("seconds", 0.0) if run.history else 0.0)
        for record in run.history:  # at the moments of a run without pauses
            self._add(record["step"], record, start + record.get("seconds", 0.0))

    def write(self, step: int, metrics: Metrics) -> None:
        """Scalars, by step and some by rollouts; on the disk at most `_FLUSH_SECONDS` later."""
        self._add(step, metrics, time.time())
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self._writer.flush()
            self._flushed = time.monotonic()

    def samples(self, step: int, rows: Rows) -> None:
        for i, row in enumerate(rows[:_SHOWN]):
            lines = "\n".join(f"{name}: {value}" for name, value in row.items())
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
