"""Root keys of random streams."""

import jax
import numpy as np

from remix_jax import streams


def test_streams_of_neighbouring_seeds_and_purposes_do_not_meet():
    """Neither the roots nor the keys of the first steps, which are folded in."""
    keys = [streams.key(seed, purpose) for seed in range(9) for purpose in streams.PURPOSES]
    roots = jax.numpy.stack(keys)
    steps = jax.vmap(lambda root: jax.vmap(lambda t: jax.random.fold_in(root, t))(np.arange(50)))
    data = np.concatenate(
        [jax.random.key_data(roots), jax.random.key_data(steps(roots)).reshape(-1, 2)]
    )
    assert len(np.unique(data, axis=0)) == len(data) == 9 * len(streams.PURPOSES) * 51
