"""GePPO (Queeney et al. 2021), B = 2: all rows of four policies, weighed .4, .3, .2, .1."""

from experiments.configs.family import base
from remix_jax.config import Config


def get_config() -> Config:
    """A quarter of each batch is fresh, the rest is all that the last three steps collected."""
    return base.of(
        "geppo",
        critic=True,
        objective__advantage="vtrace",
        replay__share=0.75,
        replay__window=3,
        passes=1,
    )
