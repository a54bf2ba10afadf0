"""Films of a model that was trained with absolute positions, to see what relative ones are for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from helios_cli.engine import render
from helios_cli.engine.calls import Steps
from helios_cli.engine.denoise import Denoiser, grid_of
from helios_cli.units import LATENTS_PER_CHUNK, PIXELS_PER_CELL


class AbsoluteDenoiser(Denoiser):
    """Counts a film's latent frames on from chunk to chunk."""

    def chunk(self, index: int, *args, **kwargs) -> Steps[Tensor]:
        """As `Denoiser.chunk`."""
        size = (self.shape[-1] * PIXELS_PER_CELL, self.shape[-2] * PIXELS_PER_CELL)
        stages = self.scheduler.stages
        grids = [grid_of(size, self.dit.config.patch_size, stages - 1 - stage) for stage in range(stages)]
        self.ropes = [self.dit.rope(grids[-1], grid, LATENTS_PER_CHUNK * index) for grid in grids]
        return (yield from super().chunk(index, *args, **kwargs))


@contextmanager
def absolute_positions() -> Iterator[None]:
    """Within, films are rendered with absolute positions."""
    render.Denoiser = AbsoluteDenoiser
    try:
        yield
    finally:
        render.Denoiser = Denoiser
