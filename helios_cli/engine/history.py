"""The model's history: the last 19 latent frames and the anchor. Its size does not depend on the film's length."""

from __future__ import annotations

import torch
from torch import Tensor

from helios_cli.engine.gpu import sent_to
from helios_cli.units import HISTORY_LATENTS, LONG_TERM, MID_TERM, SHORT_TERM


class History:
    """The latents of one segment of film, oldest first; empty slots are zero latents.

    The tensors are contiguous and never changed in place, so that they can be kept and restored as they are.

    Attributes:
        latents: [1, C, 19, H, W] float32.
        anchor: [1, C, 1, H, W] float32, or None until the first chunk of a film from text alone is done.
    """

    def __init__(self, latents: Tensor, anchor: Tensor | None = None) -> None:
        self.latents, self.anchor = latents, anchor

    @classmethod
    def empty(cls, channels: int, height: int, width: int, device: torch.device) -> History:
        return cls(torch.zeros(1, channels, HISTORY_LATENTS, height, width, device=device))

    def to(self, device: torch.device) -> History:
        """Return the history on `device`."""
        if self.anchor is None:
            return History(*sent_to(device, self.latents)())
        return History(*sent_to(device, self.latents, self.anchor)())

    def terms(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return long [1, C, 16, H, W], mid [.., 2, ..], short [.., 2, ..]; short is anchor and newest frame."""
        long, mid, newest = self.latents.split([LONG_TERM, MID_TERM, SHORT_TERM], dim=2)
        anchor = torch.zeros_like(newest) if self.anchor is None else self.anchor
        return long, mid, torch.cat([anchor, newest], dim=2)

    def push(self, latents_1CTHW: Tensor) -> None:
        """Append clean latents, and drop frames older than the last 19."""
        self.latents = torch.cat([self.latents, latents_1CTHW.float()], dim=2)[:, :, -HISTORY_LATENTS:].contiguous()

    def remember(self, chunk_1CTHW: Tensor, *, reanchor: bool = False) -> None:
        """Append a generated chunk. Its first frame becomes the anchor if there is none yet, or with `reanchor`."""
        if self.anchor is None or reanchor:
            self.anchor = chunk_1CTHW[:, :, :1].float().contiguous()
        self.push(chunk_1CTHW)
