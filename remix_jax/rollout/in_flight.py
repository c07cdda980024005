"""Partial rollouts: rows that one step leaves unfinished and the next goes on with.

A step of the mix stage ends when as many groups are finished as it learns from; `sampling.carry`
others stay in flight. Their rows keep the log-probs of the policies that wrote each token, which is
what a ratio per token needs (Mix-PPG's denominator), and are counted when they are learned from.
Partial rollouts are those of Kimi k1.5 (arXiv 2501.12599) and APRIL (arXiv 2509.18521).
"""

from typing import Any, NamedTuple

import jax
import numpy as np

from remix_jax.config import Config
from remix_jax.models.sampling import Begun, Prompts, Sampled
from remix_jax.rollout.draws import Draw
from remix_jax.schedule import Stage


class Landed(NamedTuple):
    """What a step learns from, and what stays in flight."""

    sampled: Sampled  # of the groups that the step learns from, oldest first
    draw: Draw  # these groups
    lag_B: np.ndarray  # of its rows, steps since the first token
    in_flight: tuple[Begun, np.ndarray]  # the rows that stay, and the step that began each
    places: list[Any]  # of these groups' problems and prefixes
    new_tokens: int  # drawn in this step, of all rows


def resumed(prompts: Prompts, held: tuple[Begun, Any], groups: int, config: Config) -> Prompts:
    """The prompts in flight, the rows carried over first, with what these have already.

    Args:
      held: the rows carried over.
      groups: how many the step learns from.
    """
    missing = len(prompts.active_B) - len(held[1])
    begun = jax.tree.map(
        lambda x: np.pad(np.asarray(x), ((0, missing),) + ((0, 0),) * (x.ndim - 1)), held[0]
    )
    done_B = begun.ended_B | (begun.length_B >= config.data.response_tokens)
    active_B = np.asarray(prompts.active_B) & ~done_B
    return prompts._replace(active_B=active_B, begun=begun, groups=np.array(groups, np.int32))


def landed(
    sampled: Sampled,
    draw: Draw,
    prompts: Prompts,
    held: tuple[Begun, Any],
    wanted: int,
    stage: Stage,
    config: Config,
    step: int,
) -> Landed:
    """Divides the rows in flight after a step's sampling.

    Args:
      draw: all groups in flight.
      prompts, held: what was sampled from, and the rows carried over.
      wanted: groups that the step learns from: the first that are finished.
    """
    G, T = config.own_rows, config.data.response_tokens
    host: Any = Sampled(*jax.device_get(tuple(sampled)))
    assert prompts.begun is not None
    gained_B = host.response_len_B - np.asarray(prompts.begun.length_B)
    gained_B = np.where(gained_B < 0, host.response_len_B, gained_B)  # those that began anew
    finished_Q = (host.ended_B | (host.response_len_B >= T)).reshape(-1, G).all(axis=1)
    first_B = np.pad(np.asarray(held[1]), (0, len(host.ended_B) - len(held[1])))
    first_B = np.where((first_B == 0) & (host.response_len_B > 0), step, first_B)
    number = np.arange(len(draw.problems))
    taken = number[finished_Q[: len(number)]][:wanted]
    stays = np.setdiff1d(number, taken)

    def rows(groups_Q, room):
        """Of these groups, and then as many of an empty one as there is room for."""
        empty = len(host.ended_B) // G - 1
        every = np.concatenate([groups_Q, np.full(room - len(groups_Q), empty)]).astype(np.int64)
        return (every[:, None] * G + np.arange(G)[None]).reshape(-1)

    taken_B, stays_B = rows(taken, stage.fresh_groups), rows(stays, config.sampling.carry)
    of_rows = {name: x[taken_B] for name, x in host._asdict().items() if "steps" not in name}
    begun = Begun(
        host.tokens_BS[stays_B, -T:],
        host.behav_logp_BT[stays_B],
        host.sampled_logp_BT[stays_B],
        host.response_len_B[stays_B],
        host.ended_B[stays_B],
    )
    of_groups = draw._replace(
        problems=[draw.problems[i] for i in taken],
        prompts=[draw.prompts[i] for i in taken],
        prefixes=[draw.prefixes[i] for i in taken],
    )
    return Landed(
        sampled=host._replace(**of_rows),
        draw=of_groups,
        lag_B=np.where(first_B[taken_B] > 0, step - first_B[taken_B], 0).astype(np.int32),
        in_flight=(begun, first_B[stays_B].astype(np.int32)),
        places=[draw.places[i] for i in stays],
        new_tokens=int(gained_B.sum()),
    )
