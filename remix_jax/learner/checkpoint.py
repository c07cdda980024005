"""The state of a run on disk. The only importer of orbax."""

import json
import pathlib
from typing import Any

import orbax.checkpoint as ocp

from remix_jax.learner.state import TrainState


class Checkpoints:
    """The newest few states of a run, in `directory`; a context manager.

    A checkpoint is the whole TrainState and a small dict of the host's counters, written to a
    temporary name and renamed when complete.
    """

    def __init__(self, directory: pathlib.Path, keep: int) -> None:
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, create=True, enable_async_checkpointing=False
        )
        self._manager = ocp.CheckpointManager(directory.absolute(), options=options)

    def save(self, step: int, state: TrainState, host: dict[str, Any]) -> None:
        """Returns when it is on disk; a step that is already there is left as it is."""
        if step in self._manager.all_steps():
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), host=ocp.args.JsonSave(host)
            ),
        )

    def restore(self, like: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest state with its host counters, placed as `like` is; None if there is none."""
        step = self._manager.latest_step()
        if step is None:
            return None
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(like), host=ocp.args.JsonRestore()
            ),
        )
        return restored["state"], restored["host"]

    def close(self) -> None:
        """Ends the manager's threads."""
        self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def differing_fields(saved: str, config: str) -> list[str]:
    """Dotted names of the fields in which two config.json texts differ."""

    def flatten(node, prefix=""):
        if not isinstance(node, dict):
            return {prefix[:-1]: node}
        return {k: v for name in node for k, v in flatten(node[name], f"{prefix}{name}.").items()}

    old, new = flatten(json.loads(saved)), flatten(json.loads(config))
    return sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k))
