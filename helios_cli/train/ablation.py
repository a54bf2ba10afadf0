"""Rendering with a model that was trained without one of the method's parts, to see what that part does."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from helios_cli.engine import chunks
from helios_cli.engine.denoise import Denoiser
from helios_cli.engine.events import StepDone
from helios_cli.engine.history import History
from helios_cli.train.settings.flow import HistorySettings
from helios_cli.units import LATENTS_PER_CHUNK, PIXELS_PER_CELL, grid_of


class AbsoluteDenoiser(Denoiser):
    """Numbers a film's latent frames on from chunk to chunk."""

    def chunk(self, index: int, *args, **kwargs) -> Generator[StepDone, None, Tensor]:
        size = (self.shape[-1] * PIXELS_PER_CELL, self.shape[-2] * PIXELS_PER_CELL)
        stages = self.scheduler.stages
        grids = [grid_of(size, self.dit.config.patch_size, stages - 1 - stage) for stage in range(stages)]
        self.ropes = [self.dit.rope(grids[-1], grid, LATENTS_PER_CHUNK * index) for grid in grids]
        return (yield from super().chunk(index, *args, **kwargs))


class AnchorlessHistory(History):
    """Leaves the anchor's place empty in every chunk, as it is in a film's first chunk."""

    def terms(self) -> tuple[Tensor, Tensor, Tensor]:
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
"""The ablations by the part that is left out."""


@contextmanager
def as_trained(history: HistorySettings) -> Iterator[None]:
    """Within, films are rendered as a model trained with these settings expects it."""
    with ExitStack() as ablations:
        if not history.anchor:
            ablations.enter_context(without_anchor())
        if history.positions == "absolute":
            ablations.enter_context(absolute_positions())
        yield
