"""Where weights are while a film renders."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Mode = Literal["none", "model", "stream"]
MODES: tuple[Mode, ...] = ("none", "model", "stream")

AHEAD = 2
"""Blocks that are read ahead of the one that computes."""

HOST_SLOTS = AHEAD + 1
"""Blocks in host memory at a time; on a CPU one of them is computing."""

DEVICE_SLOTS = 2
"""Blocks on a GPU at a time, beside those that stay there: one computes, one arrives."""


@dataclass(frozen=True)
class Placement:
    """How a model is placed; it changes no value that is computed.

    Attributes:
        mode: "none": transformer and VAE stay on the device, the text encoder is gone before they come. "model": each
            of the three is there only while it works. "stream": blocks of transformer and text encoder come from their
            files as they are needed.
        resident: of "stream": blocks of the transformer that stay on the device.
        turns: of "stream": transformer and VAE are never on the device together.
        cached_bytes: of "stream": how much of the streamed files is left in the kernel's page cache, so that what is
            left stays there; None leaves it to the kernel.
        transformer_ahead_bytes, vae_ahead_bytes: of "model": how much of each may be read while another part works.
        text_beside: of "none": whether the text encoder comes beside transformer and VAE where they are there already,
            as they are when a command's next film begins. None, which no plan has: if there is memory free for it then.
        decode_beside: a GPU decodes a chunk while it denoises the next one, unless transformer and VAE take turns.
        graphs: of "none": a GPU replays recorded model calls, which takes a call's memory once more.
    """

    mode: Mode = "none"
    resident: int = 0
    turns: bool = False
    cached_bytes: int | None = None
    transformer_ahead_bytes: int = field(default=0, compare=False)  # nothing has to go when it becomes another
    vae_ahead_bytes: int = field(default=0, compare=False)
    text_beside: bool | None = None
    decode_beside: bool = True
    graphs: bool = True

    @property
    def takes_turns(self) -> bool:
        return self.turns or self.mode == "model"

    @property
    def overlaps(self) -> bool:
        """Whether a GPU decodes a chunk of an only film while it denoises the next one."""
        return self.decode_beside and not self.takes_turns


RESIDENT = Placement()


@dataclass(frozen=True)
class Wish:
    """What the user says of memory: `--offload`, `--vram`, `--ram`. None is what is free."""

    offload: str = "auto"
    vram: int | None = None
    ram: int | None = None

    @property
    def is_default(self) -> bool:
        return self == NO_WISH


NO_WISH = Wish()


def streamed_blocks(count: int, resident: int) -> tuple[int, ...]:
    """Those of `count` blocks that do not stay, evenly spread: while the others compute, the next ones arrive."""
    streamed = max(0, count - resident)
    return tuple(place * count // streamed for place in range(streamed))
