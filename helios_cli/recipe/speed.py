"""The ladder of `--speed`: choices that make films faster at a loss, by name. A flag of their own goes before.

    exact      none of them: what is bit-equal, or sums in another order, as always
    fast       those that round more: fp8 products
    fastest    also those that compute less: the history's keys and values once a chunk, and every second step

What a choice is worth depends on the device and the model, so that each says where it makes sense: elsewhere it is left
out, and `helios plan` says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

SpeedChoice = Literal["exact", "fast", "fastest"]

RUNGS: tuple[SpeedChoice, ...] = ("exact", "fast", "fastest")


@dataclass(frozen=True)
class Lever:
    """A choice of the ladder.

    Attributes:
        key: field of `RenderOptions`, and its flag.
        value: what the ladder sets it to.
        rung: the first rung that has it.
        loss: what was measured of it, PSNR of latents against the film without it.
    """

    key: str
    value: Any
    rung: SpeedChoice
    loss: str


LEVERS = (
    Lever("quant", "fp8", "fast", "latents at 37 to 46 dB (tiny)"),
    Lever("reuse_history", True, "fastest", "latents at 27 to 38 dB (tiny), less from chunk to chunk"),
    Lever("reuse_steps", 2, "fastest", "latents at 54 to 56 dB (tiny's weights in 20,20,20 steps)"),
)
"""In the order in which films lose. A choice that is new (of attention, for example) is another line."""


def chosen(speed: SpeedChoice | None, key: str) -> Any:
    """Return what the ladder chooses for a field of `RenderOptions`; None where it chooses nothing."""
    place = RUNGS.index(speed or "exact")
    return next((one.value for one in LEVERS if one.key == key and RUNGS.index(one.rung) <= place), None)


KEYS = frozenset(lever.key for lever in LEVERS)
