"""The ladder of `--speed`: choices that make films faster at a loss, by name. A flag of their own goes before.

    exact      none of them: what is bit-equal, or sums in another order, as always
    fast       those that round more: fp8 products, and attention in 8 bits where it is faster
    fastest    also those that compute less: the history's keys and values once a chunk, and every second step

What a choice is worth depends on the device and the model, so that each says where it makes sense: elsewhere it is left
out, and `helios plan` says so.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

SpeedChoice = Literal["exact", "fast", "fastest"]

RUNGS: tuple[SpeedChoice, ...] = ("exact", "fast", "fastest")


class Lever(NamedTuple):
    """A choice of the ladder.

    Attributes:
        key: field of `RenderOptions`, and its flag.
        value: what the ladder sets it to, in place of `exact`.
        rung: the first rung that has it.
        loss: the PSNR of latents against the film without it, in dB, as it was measured with the embedded model's
            weights (README, Measurements).
    """

    key: str
    value: Any
    exact: Any
    rung: SpeedChoice
    loss: str


LEVERS = (
    Lever("quant", "fp8+attention", "none", "fast", "37 to 46 dB"),
    Lever("reuse_steps", 2, 1, "fastest", "42 to 60 dB"),
    Lever("reuse_history", True, False, "fastest", "27 to 38 dB"),
)
"""A further choice is another line."""


def chosen(speed: SpeedChoice | None, key: str) -> Any:
    """Return what the ladder chooses for a field of `RenderOptions`; None where it chooses nothing."""
    place = RUNGS.index(speed or "exact")
    return next((one.value for one in LEVERS if one.key == key and RUNGS.index(one.rung) <= place), None)


KEYS = frozenset(lever.key for lever in LEVERS)
