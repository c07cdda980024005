"""One token a row: what distribution it is drawn from, and the draw."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

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

    def first_of_the_largest(score_BV, logits_BV):
        token_B = jnp.argmax(score_BV, axis=-1).astype(jnp.int32)
        return token_B, jnp.take_along_axis(logits_BV, token_B[:, None], axis=-1)[:, 0]

    def elementwise(score_BV, logits_BV):
        """The same; a CPU has vector instructions for it, and a divided vocabulary needs them."""
        vocabulary_1V = jnp.arange(logits_BV.shape[1], dtype=jnp.int32)[None]
        best_BV = score_BV == score_BV.max(axis=-1, keepdims=True)
        token_B = jnp.where(best_BV, vocabulary_1V, logits_BV.shape[1] - 1).min(axis=-1)
        hit_BV = vocabulary_1V == token_B[:, None]
        return token_B, jnp.where(hit_BV, logits_BV, 0.0).sum(axis=-1)

    others = elementwise if in_use() is not None else first_of_the_largest
    token_B, logit_B = jax.lax.platform_dependent(
        score_BV, logits_BV, cpu=elementwise, default=others
    )
    logp_B = logit_B - jax.nn.logsumexp(logits_BV, axis=-1)
    if not settings.truncates:
        return token_B, logp_B, logp_B
    return token_B, logp_B, logit_B - jax.nn.logsumexp(kept_BV, axis=-1)


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
