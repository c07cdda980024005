"""Trains one policy: python -m experiments.train --config=experiments/configs/NAME.py --workdir=DIR

Any field of the config can be overridden: --config.replay.share=0.3 --config.seed=1
"""

from absl import flags

from experiments import main
from remix_jax.learner import loop

CONFIG = main.define_config()
WORKDIR = flags.DEFINE_string("workdir", None, "directory of the run: new, or of the same run")


def train() -> None:
    """The experiment behind the flags."""
    assert WORKDIR.value is not None  # required
    loop.run(main.config_of(CONFIG), WORKDIR.value)


if __name__ == "__main__":
    main.run(train, required=["config", "workdir"])
