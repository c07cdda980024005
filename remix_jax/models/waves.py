"""Which rows are decoded together, so that their cache fits and every device has as many."""

import math
from typing import NamedTuple


class Waves(NamedTuple):
    """`number` waves, one after the other, of `groups` groups each; the last may not be full."""

    number: int
    groups: int
    group_size: int  # rows that share a prefill: a group, or a part of one that has no room

    @property
    def rows(self) -> int:
        """Of a wave, empty slots included."""
        return self.groups * self.group_size


def in_waves(groups: int, group_size: int, slots: int, budget: int, shards: int = 1) -> Waves:
    """The fewest waves that a budget of cache allows, as equal as can be.

    Rows of a wave divide evenly over the devices: else what is drawn for them would be moved
    between devices at every token. Prompts do too where there are enough of them: else
    their prefilled cache would have to be gathered to be given to their rows.

    Args:
      groups, group_size: rows to each of so many prompts.
      slots: of a row's cache, prompt and response.
      budget: slots that one device holds; 0: all rows at once.
      shards: devices that rows are divided over.

    Raises:
      ValueError: the budget has no room for a row.
    """
    if budget == 0:
        return Waves(1, _rounded_up(groups, _unit(groups, group_size, shards)), group_size)
    on_device = budget // slots
    if on_device == 0:
        raise ValueError(f"{budget} slots have no room for a row of {slots}")
    # Spread over the devices, a part of n rows puts n / gcd(n, shards) rows on each at least.
    divisors = (n for n in range(group_size, 0, -1) if group_size % n == 0)
    part = next(n for n in divisors if n // math.gcd(n, shards) <= on_device)
    parts, most = groups * group_size // part, on_device * shards // part
    most -= most % _unit(most, part, shards)
    number = -(-parts // most)
    each = -(-parts // number)
    return Waves(number, _rounded_up(each, _unit(each, part, shards)), part)


def _unit(groups: int, group_size: int, shards: int) -> int:
    """What the groups of a wave are a multiple of."""
    return shards if groups >= shards else shards // math.gcd(shards, group_size)


def _rounded_up(n: int, unit: int) -> int:
    return n + -n % unit
