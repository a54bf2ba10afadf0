"""What a film needs to go on after a chunk, bit for bit: the history, the anchor, the generator.

States outlive the process and are found by fingerprint: a change of what they hold raises
`recipe.fingerprint.NUMERICS_VERSION`, so that none is met in an older form.
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
    """Where a segment of film stands after one of its chunks.

    Attributes:
        latents: [1, C, 19, H, W] float32, the history; its last 9 are the chunk itself.
        anchor: [1, C, 1, H, W] float32.
        generator: uint8, state of the CPU generator.
        place: chunks of the segment that are done.
        copied: latents and anchor are still on their way from a GPU until this has come, which `to_bytes` waits for.
    """

    latents: Tensor
    anchor: Tensor
    generator: Tensor
    place: int
    copied: torch.cuda.Event | None = None

    @classmethod
    def of(cls, history: History, generator: torch.Generator, place: int) -> State:
        """Waits for no GPU."""
        (latents, anchor), copied = to_host(history.latents, history.anchor)
        return cls(latents, anchor, generator.get_state(), place, copied)

    @classmethod
    def from_bytes(cls, data: bytes | None) -> State | None:
        """None for None, and for what is no state."""
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
        from safetensors.torch import save  # which a film that is not kept can do without

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
