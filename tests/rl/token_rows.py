"""Rows of tokens for the rl tests: ragged, holed and empty masks, garbage where the mask is 0."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from remix_jax.rl import masked, off_policy
from remix_jax.types import Batch, batch_of, empty_rows, kept_rows
from tests import reference

MASK_BT = np.array(
    [
        [1, 1, 1, 1, 1, 1, 1, 1, 1],  # full
        [1, 1, 1, 1, 1, 0, 0, 0, 0],  # padding
        [0, 0, 1, 1, 0, 1, 1, 0, 0],  # prefix, hole, padding
        [0, 0, 0, 0, 1, 0, 0, 0, 0],  # one token
        [0, 0, 0, 0, 0, 0, 0, 0, 0],  # none
        [1, 0, 1, 0, 1, 0, 1, 0, 1],  # holes
        [0, 1, 1, 1, 1, 1, 1, 1, 1],  # ends at the last slot
    ],
    dtype=np.float64,
)
"""At least one row of every kind."""

GARBAGE = 1e30
"""Size of the values under mask 0; finite in float32, not so its square."""

POLICIES = ("logp", "behav_logp", "prox_logp", "base_logp", "prev_logp")


def make_rows(seed=0, spread=0.6, dtype=np.float64):
    """A dict of [B, T] arrays: log-probs of five policies, adv (both signs, a 0), reward, ..."""
    rng = np.random.default_rng(seed)
    shape = MASK_BT.shape
    behav_logp_BT = -rng.exponential(1.0, shape) - 0.05
    rows = {name: behav_logp_BT + spread * rng.normal(size=shape) for name in POLICIES}
    rows["behav_logp"] = behav_logp_BT
    rows["prox_logp"][:2] = behav_logp_BT[:2]  # two fresh rows
    rows["adv"] = rng.normal(size=shape)
    rows["adv"][0, 0] = 0.0
    for name in ("reward", "value", "old_value", "returns"):
        rows[name] = rng.normal(size=shape)
    garbage_BT = GARBAGE * rng.choice([-1.0, 1.0], size=(len(rows), *shape))
    rows = {
        name: np.where(MASK_BT == 1, x_BT, garbage)
        for (name, x_BT), garbage in zip(rows.items(), garbage_BT, strict=True)
    }
    rows["mask"] = MASK_BT
    return {name: x_BT.astype(dtype) for name, x_BT in rows.items()}


def without_garbage(rows):
    """The same rows with 0 wherever the mask is 0."""
    return {name: np.where(rows["mask"] == 1, x, 0).astype(x.dtype) for name, x in rows.items()}


def padded(rows, columns=3, extra_rows=2, garbage=GARBAGE):
    """The same rows between masked columns (left and right) and above masked rows."""
    out = {}
    for name, x_BT in rows.items():
        fill = 0.0 if name == "mask" else garbage
        widths = ((0, extra_rows), (1, columns - 1)) if columns else ((0, extra_rows), (0, 0))
        out[name] = np.pad(x_BT, widths, constant_values=fill)
    return out


TERMS = off_policy.Terms(0.2, None, None, window=3, aggregation="token-mean", params={})


def batch(mask_BT, **columns) -> Batch:
    """Rows of these columns as the learner hands them to a loss."""
    n, slots = mask_BT.shape
    columns |= {"response_len_B": np.full(n, slots), "valid_B": np.ones(n, bool)}
    arrays = {name: jnp.asarray(x) for name, x in columns.items()}
    rows = kept_rows(empty_rows(n, 1, slots)).replace(loss_mask_BT=jnp.asarray(mask_BT))
    return off_policy.zero_unknown(batch_of(rows, **arrays))


def call(equation, logp_BT, mask_BT, options=None, **known):
    """A function of `off_policy` on numbers of `Terms` and columns; `options` are its own."""
    terms = TERMS._replace(**{name: known.pop(name) for name in TERMS._fields if name in known})
    logp_BT = masked.zero_masked(jnp.asarray(logp_BT), mask_BT)
    return equation(logp_BT, batch(mask_BT, **known), terms, **(options or {}))


def eager(function):
    """The transformation that is none, beside jax.jit."""
    return function


@functools.cache
def _all_modes(token_loss, compiled):
    """Kept by identity of its arguments, so that one function is compiled once for many tests."""

    def all_modes(mask_BT, x_BT, *others):
        loss_BT, pull_back = jax.vjp(lambda x_BT: token_loss(x_BT, *others), x_BT)
        results = []
        for mode in reference.MODES:
            loss, grad_BT = jax.value_and_grad(masked.aggregate)(loss_BT, mask_BT, mode)
            results.append((loss, pull_back(grad_BT)[0]))
        return results

    return compiled(all_modes)


def losses_and_gradients(token_loss, arguments, mask_BT, compiled=jax.jit):
    """aggregate(token_loss(*arguments)) and its gradient with respect to the first argument.

    [4] and [4, B, T], in the order of reference.MODES. Everything is an argument of the compiled
    function: nothing folds into a constant that would be computed otherwise in a run.
    """
    results = _all_modes(token_loss, compiled)(mask_BT, *arguments)
    return np.array([loss for loss, _ in results]), np.array([grad for _, grad in results])


def expected_losses_and_gradients(token_loss_BT, derivative_BT, mask_BT):
    """The same four by the equations, from token losses and their derivatives."""
    live_BT = mask_BT == 1
    weights = [reference.aggregation_weights(mask_BT, mode) for mode in reference.MODES]
    losses = [np.sum(w_BT[live_BT] * token_loss_BT[live_BT]) for w_BT in weights]
    grads = [np.where(live_BT, w_BT * derivative_BT, 0.0) for w_BT in weights]
    return np.array(losses), np.array(grads)


def assert_gradient_close(actual, expected, rtol):
    """max |difference| <= rtol max |gradient|, the measure for gradients in single precision."""
    scale = np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=rtol * scale)
