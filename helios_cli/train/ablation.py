"""Films of a model that was trained without one of the method's parts, to see what that part is for."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from helios_cli.engine import chunks
from helios_cli.engine.denoise import Denoiser
from helios_cli.engine.events import StepDone
from helios_cli.engine.history import History
from helios_cli.train import tables
from helios_cli.units import LATENTS_PER_CHUNK, PIXELS_PER_CELL, grid_of


class AbsoluteDenoiser(Denoiser):
    """Counts a film's latent frames on from chunk to chunk."""

    def chunk(self, index: int, *args, **kwargs) -> Generator[StepDone, None, Tensor]:
        """As `Denoiser.chunk`."""
        size = (self.shape[-1] * PIXELS_PER_CELL, self.shape[-2] * PIXELS_PER_CELL)
        stages = self.scheduler.stages
        grids = [grid_of(size, self.dit.config.patch_size, stages - 1 - stage) for stage in range(stages)]
        self.ropes = [self.dit.rope(grids[-1], grid, LATENTS_PER_CHUNK * index) for grid in grids]
        return (yield from super().chunk(index, *args, **kwargs))


class AnchorlessHistory(History):
    """Tells no chunk of the first frame."""

    def terms(self) -> tuple[Tensor, Tensor, Tensor]:
        """As `History.terms`; the anchor's place is empty, as in a film's first chunk."""
        long, mid, short = super().terms()
        return long, mid, torch.cat([torch.zeros_like(short[:, :, :1]), short[:, :, 1:]], dim=2)


@contextmanager
def absolute_positions() -> Iterator[None]:
    """Within, films are rendered with absolute positions."""
    chunks.Denoiser = AbsoluteDenoiser
    try:
        yield
    finally:
        chunks.Denoiser = Denoiser


@contextmanager
def without_anchor() -> Iterator[None]:
    """Within, films are rendered without an anchor."""
    chunks.History = AnchorlessHistory
    try:
        yield
    finally:
        chunks.History = History


WITHOUT = {"anchor": without_anchor, "relative": absolute_positions}
"""By what is taken away."""


@contextmanager
def as_taught(history: tables.History) -> Iterator[None]:
    """Within, films are rendered as a model that was taught with these settings expects it."""
    with ExitStack() as taken:
        if not history.anchor:
            taken.enter_context(without_anchor())
        if history.positions == "absolute":
            taken.enter_context(absolute_positions())
        yield
