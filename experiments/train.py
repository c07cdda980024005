"""Trains one policy: python -m experiments.train --config=experiments/configs/NAME.py --workdir=DIR

Any field of the config can be overridden: --config.replay.share=0.3 --config.seed=1
With --dry_run the config is checked and its plan printed, with --show_sharding where every array
lies; model and problems need not be there, nor the devices if config.mesh gives all sizes.
With --strict it stops, with exit code 3, where a rule of docs/metrics.md holds.
--trackers=tensorboard,wandb sends the figures there (docs/trackers.md).
--profile=5,2 traces steps 5 and 6 into DIR/profile, for TensorBoard's profiler or Perfetto.
"""

import pathlib
from typing import Any

from absl import flags

from experiments import config_flag, main
from launch import dry_run, placement
from remix_jax.errors import InputError
from remix_jax.run import loop
from remix_jax.sinks import sink
from remix_jax.sinks.console import Console

CONFIG = config_flag.define()
WORKDIR = flags.DEFINE_string("workdir", None, "directory of the run: new, or of the same run")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "print the plan of the run and end")
SHOW_SHARDING = flags.DEFINE_bool("show_sharding", False, "print where arrays lie and end")
TRACKERS = flags.DEFINE_list(
    "trackers",
    [sink.DEFAULT],
    f"where figures go beside console and files: {', '.join(sink.TRACKERS)}, or file.py:function",
)
STRICT = flags.DEFINE_bool("strict", False, "stop where the run says that it is not well")
PROFILE = flags.DEFINE_string("profile", None, "START,STEPS: trace these steps into the workdir")

JOIN = main.define_processes()

# config.json of the presets' models, for plans made before the models are there.
ARCHITECTURES = pathlib.Path(__file__).resolve().parent / "configs" / "architectures"


def train() -> None:
    """The experiment behind the flags."""
    config = config_flag.value_of(CONFIG)
    if DRY_RUN.value:
        dry_run.print_plans(config, Console(config.steps), ARCHITECTURES)
        return
    if SHOW_SHARDING.value:
        placement.print_placement(config, Console(config.steps), ARCHITECTURES)
        return
    if WORKDIR.value is None:
        raise InputError("--workdir is required")
    JOIN()
    profile = main.profile_window(PROFILE.value, config.steps)
    how: Any = {"profile": profile, "trackers": TRACKERS.value, "strict": STRICT.value}
    main.leave(loop.run(config, WORKDIR.value, preset=config_flag.preset(), **how))


if __name__ == "__main__":
    main.run(train, required=["config"])
