"""Metrics of a step, from the sums that its updates leave and from its batch."""

import jax.numpy as jnp

from remix_jax.learner.state import Static
from remix_jax.rl import masked
from remix_jax.types import Batch, FreshRows


def of_batch(batch: Batch, with_expert: bool) -> dict:
    """How many rows of each origin the batch holds."""
    own_B = batch.valid_B & ~batch.expert_B
    found = {
        "n_fresh": (own_B & (batch.age_B == 0)).sum(),
        "n_replayed": (own_B & (batch.age_B > 0)).sum(),
    }
    if with_expert:
        found["n_expert"] = (batch.valid_B & batch.expert_B).sum()
    return found


def of_sampler(fresh: FreshRows) -> dict:
    """How far top_k, top_p and min_p move the sampler from the full vocabulary."""
    gap_BT = fresh.sampled_logp_BT - fresh.behav_logp_BT
    return {"truncation_gap": masked.mean(gap_BT, fresh.mask_BT)}


def of_updates(static: Static, sums: dict, has_precedent: bool) -> dict:
    """Means of the step from the sums [updates, ...]: over tokens; of losses, over updates.

    Without a precedent the base took its part: what was summed is no KL to it.
    """
    total = {k: v.max(axis=0) if k.startswith("max_") else v.sum(axis=0) for k, v in sums.items()}
    tokens_A, tokens = total["tokens_A"], total["tokens_A"].sum()
    names = [k for k in sums if k.startswith("loss") or k.endswith("norm")]
    metrics = {name: sums[name].mean() for name in names}
    for name in ("entropy", "kl_base", "kl_prev"):
        if name in total and (has_precedent or name != "kl_prev"):
            metrics[name] = masked.divide(total[name], tokens)

    ages = range(tokens_A.shape[0])
    passes = sums["loss"].shape[0] * static.mini_batch_size / static.batch_size
    for suffix, group in [("", list(ages)), *((f"/age{age}", [age]) for age in ages)]:
        part = {k: v[jnp.array(group)] for k, v in total.items() if k.endswith("_A")}
        metrics |= {name + suffix: value for name, value in _ratios(part).items()}
    metrics |= {f"rows/age{age}": total["rows_A"][age] / passes for age in ages}
    return metrics


def _ratios(total) -> dict:
    """What the importance ratios of some ages [A] look like."""
    tokens, ratio = total["tokens_A"].sum(), total["ratio_A"].sum()
    squared = total["ratio_squared_A"].sum()
    return {
        "ratio_mean": masked.divide(ratio, tokens),
        "ratio_max": total["max_ratio_A"].max(),
        "clip_share": masked.divide(total["clipped_A"].sum(), tokens),
        "ess": masked.divide(jnp.square(ratio), tokens * squared),
    }
