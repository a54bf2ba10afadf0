"""The placement of weights while a film renders."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Mode = Literal["none", "model", "stream"]

AHEAD = 2
"""The blocks that are read ahead of the one that computes."""

HOST_SLOTS = AHEAD + 1
"""The streamed blocks in host memory at a time; on a CPU one of them computes."""

DEVICE_SLOTS = 2
"""The streamed blocks on a GPU at a time: one computes, one arrives."""

GPU_READERS = 8
"""The most threads that read for a GPU: one copies a few gigabytes a second from the page cache, the bus takes tens.

For a CPU one thread reads faster than it computes.
"""

PIECE_BYTES = 8 * 2**20
"""The bytes read and converted at a time: large enough for a disk, small enough for a core's cache."""

PROMPT_MATRICES = ("attn2.to_k.weight", "attn2.to_v.weight")
"""The matrices of a transformer's block that see prompts alone: once each, for its keys and values in every call."""

FOLDED_BYTES = 3 * PIECE_BYTES
"""The memory in which LoRA files are folded into a piece: it in float32, and the rows of LoRA matrices for it."""


@dataclass(frozen=True)
class Placement:
    """The placement of a model, which changes no computed value.

    Attributes:
        mode: "none": transformer and VAE stay on the device; the text encoder leaves before they are loaded. "model":
            each of the three is on the device only while it works. "stream": blocks of transformer and text encoder
            are read from their files when needed.
        resident: ("stream") Blocks of the transformer that stay on the device.
        turns: ("stream") Transformer and VAE are never on the device together.
        cached_bytes: ("stream") Bytes of the streamed files kept in the page cache; None lets the kernel decide.
        transformer_ahead_bytes, vae_ahead_bytes: ("model") Bytes of each that may be read while another part works.
        text_beside: ("none") Whether the text encoder is loaded next to transformer and VAE for a command's next film.
            None (no plan has it) decides at run time by the free memory.
        decode_beside: Chunks are decoded while the next one is denoised, where `chunks_beside` says so.
        graphs: ("none") A GPU replays recorded model calls, which takes a call's memory once more.
        prompt_matrices: (not "stream") PROMPT_MATRICES stay with the transformer. Otherwise they are read block by
            block when a prompt comes, and are gone once its keys and values are there.
    """

    mode: Mode = "none"
    resident: int = 0
    turns: bool = False
    cached_bytes: int | None = None
    transformer_ahead_bytes: int = field(default=0, compare=False)  # may change without unloading anything
    vae_ahead_bytes: int = field(default=0, compare=False)
    text_beside: bool | None = None
    decode_beside: bool = True
    graphs: bool = True
    prompt_matrices: bool = True

    @property
    def reads_for_prompts(self) -> bool:
        """Return whether PROMPT_MATRICES are read when a prompt comes."""
        return self.mode == "stream" or not self.prompt_matrices

    @property
    def takes_turns(self) -> bool:
        return self.turns or self.mode == "model"

    def chunks_beside(self, kind: str, *, is_apart: bool, on_cores: int) -> int:
        """Return how many chunks of a film are decoded at a time while the next one is denoised.

        That is one on a device of `kind` "cuda", and where the VAE has a device of its own; on a CPU those that cores
        are left for (`machine.chunks_beside`). It is none where transformer and VAE take turns.
        """
        if self.takes_turns or not self.decode_beside:
            return 0
        if kind == "cuda" or is_apart:
            return 1
        return on_cores if kind == "cpu" else 0


RESIDENT = Placement()


def streamed_blocks(count: int, resident: int) -> tuple[int, ...]:
    """Return the streamed ones of `count` blocks, evenly spread, so that they arrive while resident ones compute."""
    streamed = max(0, count - resident)
    return tuple(place * count // streamed for place in range(streamed))
