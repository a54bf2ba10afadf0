"""Operations and memory of the preview decoder, counted by walking its layers as `cost.vae` does.

The walk is that of `model/taehv.py`, which it is tested against: every latent takes the same way, also the first of a
chunk, whose first three frames are dropped at the end.
"""

from __future__ import annotations

import functools

from helios_cli.architecture import TAEHVConfig
from helios_cli.cost.vae import Layer, Walk, nested
from helios_cli.units import (
    FRAMES_PER_CHUNK,
    FRAMES_PER_LATENT,
    LATENTS_PER_CHUNK,
    PIECE_ELEMENTS,
    PIXELS_PER_CELL,
    latent_frames_for,
)

TAPS = 9


def _block(walk: Walk) -> None:
    """A memory block: a frame and the one before it side by side, three convolutions."""
    channels = walk.C
    walk.add(0, 2 * channels, remembered=walk.H * walk.W * channels)
    for _ in range(3):
        walk.pictures(channels, TAPS)


def _end(walk: Walk, channels: int, growth: int) -> None:
    """The end of a level."""
    inner = walk.C
    walk.pointwise(growth * inner)
    walk.T, walk.C = growth * walk.T, inner
    if growth > 1:
        walk.add(0, inner)  # frames in their places
    walk.double(channels)


def _layers(config: TAEHVConfig) -> list[Layer]:
    layers: list[Layer] = []
    for width, channels, growth in config.levels:
        layers += [(_block, 2)] * config.blocks
        layers.append((functools.partial(_end, channels=channels, growth=growth), 4 * growth * channels // width))
    return layers


def _begin(config: TAEHVConfig, size: tuple[int, int], latents: int) -> Walk:
    rows, columns = size[1] // PIXELS_PER_CELL, size[0] // PIXELS_PER_CELL
    walk = Walk(latents, rows, columns, config.latent_channels, first=False)
    walk.pictures(config.widths[0], TAPS)
    return walk


def decode_flops(size: tuple[int, int], frames: int = FRAMES_PER_CHUNK) -> int:
    """Count the decoding of the latents of a chunk's first `frames` frames; up to a piece more of them is decoded."""
    config = TAEHVConfig()
    walk = _begin(config, size, latent_frames_for(frames))
    for work, _ in _layers(config):
        work(walk)
    walk.T -= FRAMES_PER_LATENT - 1  # of the first latent, dropped
    walk.pictures(config.out_channels, TAPS)
    return sum(done.flops for done in walk.passes)


@functools.cache
def decode_elements(size: tuple[int, int], device: str) -> int:
    """Count the numbers held at most while a chunk is decoded, without the weights."""
    config = TAEHVConfig()
    walk = _begin(config, size, LATENTS_PER_CHUNK)

    def last(piece: Walk, *, split: bool) -> tuple[int, int]:
        held = piece.elements
        piece.pictures(config.out_channels, TAPS)
        return held + 2 * piece.elements, 0  # the pictures twice: as they are made, and in float32

    held, _ = nested(_layers(config), walk, last, PIECE_ELEMENTS[device])
    whole = _begin(config, size, LATENTS_PER_CHUNK)
    for work, _ in _layers(config):
        work(whole)
    return held + sum(done.remembered for done in whole.passes)
