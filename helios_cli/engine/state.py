"""The state of a film after a chunk, from which it continues bit for bit: history, anchor, generator.

States outlive the process and are looked up by fingerprint. A change of their content raises
`recipe.fingerprint.NUMERICS_VERSION`, so that none is read in an older form.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from helios_cli.engine.gpu import to_host
from helios_cli.engine.history import History
from helios_cli.units import LATENTS_PER_CHUNK


@dataclass(frozen=True)
class State:
    """The state of a segment of film after one of its chunks.

    Attributes:
        latents: [1, C, 19, H, W] float32, the history; its last 9 are the chunk itself.
        anchor: [1, C, 1, H, W] float32.
        generator: uint8, state of the CPU generator.
        place: number of chunks of the segment that are done.
        copied: event of the copy of latents and anchor from a GPU, which `to_bytes` waits for; None if it is complete.
    """

    latents: Tensor
    anchor: Tensor
    generator: Tensor
    place: int
    copied: torch.cuda.Event | None = None

    @classmethod
    def of(cls, history: History, generator: torch.Generator, place: int) -> State:
        """Take the state without waiting for a GPU."""
        assert history.anchor is not None, "a chunk is done, so there is an anchor"
        (latents, anchor), copied = to_host(history.latents, history.anchor)
        return cls(latents, anchor, generator.get_state(), place, copied)

    @classmethod
    def from_bytes(cls, data: bytes | None) -> State | None:
        """Read a state; None for None and for data that is not a state."""
        if data is None:
            return None
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            found = load(data)
            return cls(found["latents"], found["anchor"], found["generator"], int(found["place"]))
        except (SafetensorError, KeyError):
            return None

    def to_bytes(self) -> bytes:
        from safetensors.torch import save  # only films that are kept need it

        if self.copied is not None:
            self.copied.synchronize()
        place = torch.tensor(self.place)
        return save({"latents": self.latents, "anchor": self.anchor, "generator": self.generator, "place": place})

    @property
    def chunk(self) -> Tensor:
        """The chunk's latents, [1, C, 9, H, W] float32."""
        return self.latents[:, :, -LATENTS_PER_CHUNK:].contiguous()

    def restore(self, device: torch.device) -> tuple[History, torch.Generator]:
        generator = torch.Generator("cpu")
        generator.set_state(self.generator)
        return History(self.latents.to(device), self.anchor.to(device)), generator
