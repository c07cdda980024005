"""One token a row: what distribution it is drawn from, and the draw."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from remix_jax.models.products import MASKED
from remix_jax.sharding import in_use


@dataclasses.dataclass(frozen=True)
class SamplerSettings:
    """softmax(logits / temperature), cut by top-k, then top-p, then min-p, and renormalised.

    Each cut works on what the one before left, renormalised; the most probable token always stays,
    and equals of the last one kept stay with it. temperature 0 is greedy: no cut applies, and
    log-probs are those of temperature 1.
    """

    temperature: float = 1.0
    top_k: int = 0  # keep the k most probable tokens; 0: off
    top_p: float = 1.0  # keep the fewest most probable tokens whose probabilities reach p; 1: off
    min_p: float = 0.0  # keep tokens of at least min_p times the largest probability; 0: off

    @property
    def truncates(self) -> bool:
        """Whether any cut is on."""
        return self.temperature > 0 and (self.top_k > 0 or self.top_p < 1 or self.min_p > 0)


def draw(
    logits_BV: jax.Array, keys_B: jax.Array, settings: SamplerSettings
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One token a row [B] int32, its log-prob over the full vocabulary, and as really drawn.

    `logits_BV` are the model's, before the temperature; `keys_B` is not used when greedy.
    """
    if settings.temperature not in (0.0, 1.0):
        logits_BV = logits_BV / settings.temperature
    kept_BV = logits_BV
    if settings.truncates:
        kept_BV = jnp.where(logits_BV >= cut(logits_BV, settings), logits_BV, -jnp.inf)
    score_BV = kept_BV
    if settings.temperature > 0:
        # Gumbel-max, not a search in cumulative sums: a token that is cut away (-inf) can never
        # win, no sum over the vocabulary rounds away the tail, and a vocabulary spread over devices
        # needs no scan. The noise costs a CPU about a tenth of a step of a tiny model.
        noise = functools.partial(jax.random.gumbel, shape=logits_BV.shape[1:])
        score_BV = kept_BV + jax.vmap(noise)(keys_B)

    # A CPU has vector instructions for the one, and a vocabulary divided over devices needs it.
    others = _by_elements if in_use() is not None else _in_one_pass
    token_B, logit_B, log_total_B = jax.lax.platform_dependent(
        score_BV, logits_BV, cpu=_by_elements, default=others
    )
    logp_B = logit_B - log_total_B
    if not settings.truncates:
        return token_B, logp_B, logp_B
    return token_B, logp_B, logit_B - jax.nn.logsumexp(kept_BV, axis=-1)


def _by_elements(score_BV, logits_BV):
    """The first token of the largest score, its logit, and log sum exp of all logits, [B]."""
    vocabulary_1V = jnp.arange(logits_BV.shape[1], dtype=jnp.int32)[None]
    best_BV = score_BV == score_BV.max(axis=-1, keepdims=True)
    token_B = jnp.where(best_BV, vocabulary_1V, logits_BV.shape[1] - 1).min(axis=-1)
    hit_BV = vocabulary_1V == token_B[:, None]
    logit_B = jnp.where(hit_BV, logits_BV, 0.0).sum(axis=-1)
    return token_B, logit_B, jax.nn.logsumexp(logits_BV, axis=-1)


def _in_one_pass(score_BV, logits_BV):
    """The same in one reduction: logits are read once, and scores never written."""
    ids_BV = jax.lax.broadcasted_iota(jnp.int32, logits_BV.shape, 1)
    ones_BV = jnp.ones_like(logits_BV)

    def both(one, other):
        """The better (score, token, logit), and the sums of exp(logit - largest) together."""
        better = (one[0] > other[0]) | ((one[0] == other[0]) & (one[1] < other[1]))
        best = [jnp.where(better, x, y) for x, y in zip(one[:3], other[:3], strict=True)]
        largest = jnp.maximum(one[3], other[3])
        parts = (total * jnp.exp(of - largest) for _, _, _, of, total in (one, other))
        return *best, largest, sum(parts)

    nothing = -np.inf, logits_BV.shape[1], 0.0, MASKED, 0.0
    given = score_BV, ids_BV, logits_BV, logits_BV, ones_BV
    start = tuple(jnp.asarray(x, of.dtype) for x, of in zip(nothing, given, strict=True))
    _, token_B, logit_B, largest_B, total_B = jax.lax.reduce(given, start, both, (1,))
    return token_B, logit_B, largest_B + jnp.log(total_B)


def cut(logits_BV: jax.Array, settings: SamplerSettings) -> jax.Array:
    """The least logit [B, 1] that top-k, then top-p, then min-p keep (temperature applied)."""
    least_B1 = jnp.full_like(logits_BV[:, :1], -jnp.inf)
    ranked_BW = logits_BV
    if settings.top_k > 0:
        ranked_BW = jax.lax.top_k(logits_BV, min(settings.top_k, logits_BV.shape[1]))[0]
        least_B1 = ranked_BW[:, -1:]
    elif settings.top_p < 1:
        ranked_BW = jnp.sort(logits_BV, axis=-1, descending=True)
    if settings.top_p < 1:
        probability_BW = jax.nn.softmax(ranked_BW, axis=-1)
        before_BW = jnp.cumsum(probability_BW, axis=-1) - probability_BW
        before_BW = before_BW.at[:, 0].set(0.0)
        kept_BW = jnp.where(before_BW < settings.top_p, ranked_BW, jnp.inf)
        least_B1 = kept_BW.min(axis=-1, keepdims=True)
    if settings.min_p > 0:
        best_B1 = logits_BV.max(axis=-1, keepdims=True)
        least_B1 = jnp.maximum(least_B1, best_B1 + jnp.log(settings.min_p))
    return least_B1
