"""Joins the processes that train as one: as the flags say, or as a cluster's environment tells."""

import os
from collections.abc import Mapping

import jax

from remix_jax.errors import InputError
from remix_jax.text import one_line

# Seconds without a sign of life after which a process counts as dead; then all others end.
HEARTBEAT = 30


def start(coordinator: str | None, count: int | None, index: int | None, given: bool) -> None:
    """Joins the other processes, if there are any to join. Before JAX's first use of a device.

    Args:
      coordinator: host:port where process 0 listens; None: as the cluster says.
      count, index: how many processes, and which this one is; with a coordinator only.
      given: join even where nothing in the environment tells of other processes.

    Raises:
      InputError: the numbers do not belong together, or the others cannot be found.
    """
    if coordinator is None and (count, index) != (None, None):
        raise InputError("--num_processes and --process_id need --coordinator=HOST:PORT")
    if coordinator and (count is None or index is None or not 0 <= index < count):
        raise InputError(
            f"--coordinator={coordinator}: needs --num_processes=N and --process_id from 0 to "
            f"N - 1, not {count} and {index}"
        )
    if not (coordinator or given or in_cluster(os.environ)):
        return
    # On CPUs a collective blocks a thread of XLA's pool until all others are there; with a thread a
    # core, those that wait can leave none to what they wait for, and all processes hang.
    os.environ.setdefault("NPROC", str(max(os.cpu_count() or 1, 16)))
    own = None if coordinator else local_devices(os.environ)
    try:
        jax.distributed.initialize(
            coordinator,
            count,
            index,
            own,
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=HEARTBEAT,
        )
    except (ValueError, RuntimeError) as error:
        raise InputError(f"the other processes were not found ({one_line(error)})") from None


def in_cluster(environment: Mapping[str, str]) -> bool:
    """Whether the environment tells of other processes: a Slurm step of several, a TPU pod."""
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "") if "SLURM_PROCID" in environment else ""
    several = tasks.isdecimal() and int(tasks) > 1
    return several or "," in environment.get("TPU_WORKER_HOSTNAMES", "")


def local_devices(environment: Mapping[str, str]) -> list[int] | None:
    """All GPUs of a node for the one task that Slurm starts there; None: as JAX decides.

    Left alone, JAX gives each task under Slurm a single GPU.
    """
    one_a_node = environment.get("SLURM_STEP_TASKS_PER_NODE", "").partition("(")[0] == "1"
    gpus = environment.get("SLURM_GPUS_ON_NODE", "")
    return list(range(int(gpus))) if one_a_node and gpus.isdecimal() else None
