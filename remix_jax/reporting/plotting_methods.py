"""How methods look in figures: one colour, marker and line each, the same in every figure."""

from typing import Any

from remix_jax.reporting import comparison_numbers as numbers
from remix_jax.run.figures import AMBER, BLUE, GREEN, ORANGE, PURPLE, SKY

REFERENCE = "#4D4D4D"
OTHERS = (BLUE, ORANGE, GREEN, PURPLE, AMBER, SKY)
MARKERS = ("s", "^", "D", "v", "P", "X", "o")


def line_style(place: int) -> dict[str, Any]:
    """The first is grey and dashed, the others coloured: told apart without colour as well."""
    if place == 0:
        return {"color": REFERENCE, "marker": "o", "linestyle": "--"}
    turn, colour = divmod(place - 1, len(OTHERS))
    return {
        "color": OTHERS[colour],
        "marker": MARKERS[(place - 1) % len(MARKERS)],
        "linestyle": ("-", "-.", ":")[turn % 3],
    }


def method_style(data: numbers.Data, name: str) -> dict[str, Any]:
    """The style of a method by its place in its family, so that PPO's and GRPO's look alike."""
    family = numbers.families(data)[numbers.reference(data, name)]
    return line_style(family.index(name))
