"""The compiler of the suite: most of its time goes to programs that run once."""

import atexit
import importlib.metadata
import os
import shutil
import tempfile


def on_devices(count: int) -> dict[str, str]:
    """The environment of a process with that many CPU devices and XLA's fastest compilation."""
    flags = f"--xla_force_host_platform_device_count={count}"
    if importlib.metadata.version("jaxlib") < "0.11":  # later ones do not know all of these
        flags += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
        flags += " --xla_llvm_force_inline_before_split=false"
    return {"XLA_FLAGS": flags, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}


def shared_programs() -> dict[str, str]:
    """The environment in which the workers and the commands that they start compile a program once.

    The first process makes the directory, and removes it at its end.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return {}
    directory = tempfile.mkdtemp(prefix="programs-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return {
        "JAX_COMPILATION_CACHE_DIR": directory,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
