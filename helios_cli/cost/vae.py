"""Operations and memory of the VAE, counted by walking its layers with nothing but shapes.

The walk is that of `model/vae.py`, which it is tested against: a clip's first frame (its first latent) passes alone,
and the temporal resampling layers skip it; upsampling convolves the small picture with four folded 2x2 kernels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import ceil
from typing import NamedTuple

from helios_cli.architecture import VAEConfig
from helios_cli.device import Device
from helios_cli.units import (
    FRAMES_PER_CHUNK,
    FRAMES_PER_LATENT,
    LARGE_PIECE_BYTES,
    LARGE_PIECE_ELEMENTS,
    PIECE_ELEMENTS,
    PIXELS_PER_CELL,
    latent_frames_for,
)

PAST = 2
"""Frames that a causal convolution remembers."""


class Pass(NamedTuple):
    """One operation on some frames.

    Attributes:
        flops: of its products.
        elements: of its output.
        remembered: elements that it keeps for the clip's next frames.
        buffer: elements of its padded input, in a space that all layers share.
    """

    flops: int
    elements: int
    remembered: int = 0
    buffer: int = 0


@dataclass
class Walk:
    """T frames of H rows, W columns and C channels on their way through the layers, and the passes so far.

    `first` is true for the first frame (the first latent) of a clip.
    """

    T: int
    H: int
    W: int
    C: int
    first: bool
    passes: list[Pass] = field(default_factory=list)

    @property
    def positions(self) -> int:
        return self.T * self.H * self.W

    @property
    def elements(self) -> int:
        return self.positions * self.C

    def add(self, flops: int, channels: int, remembered: int = 0, buffer: int = 0) -> None:
        self.C = channels
        self.passes.append(Pass(flops, self.elements, remembered, buffer))

    def pointwise(self, channels: int) -> None:
        self.add(2 * self.positions * self.C * channels, channels)

    def pictures(self, channels: int, taps: int) -> None:
        """A convolution of each frame, which is as large as before."""
        self.add(2 * self.positions * taps * self.C * channels, channels)

    def double(self, channels: int) -> None:
        """Twice the rows and columns, with four folded 2x2 kernels."""
        taps = 4 * 4  # four positions in the doubled pixel, 2x2 inputs each
        flops = 2 * self.T * (self.H + 1) * (self.W + 1) * taps * self.C * channels
        self.H, self.W = 2 * self.H, 2 * self.W
        self.add(flops, channels)
        self.add(0, channels)  # once more, its pixels in their places

    def causal(self, channels: int, kernel: int = 27) -> None:
        remembered = PAST * self.H * self.W * self.C
        self.add(2 * self.positions * kernel * self.C * channels, channels, remembered, self.elements + remembered)

    def residual(self, channels: int) -> None:
        inner = self.C
        if inner != channels:  # the shortcut
            self.pointwise(channels)
            self.C = inner
        self.causal(channels)
        self.causal(channels)

    def middle(self) -> None:
        channels, cells = self.C, self.H * self.W
        self.residual(channels)
        self.pointwise(3 * channels)
        self.add(4 * self.T * cells * cells * channels, channels)
        self.pointwise(channels)
        self.residual(channels)

    def upsample(self, over_time: bool) -> None:
        channels = self.C
        if over_time and not self.first:
            self.causal(2 * channels, kernel=3)
            self.T *= 2
            self.add(0, channels)
        self.double(channels // 2)

    def downsample(self, over_time: bool) -> None:
        self.H, self.W = self.H // 2, self.W // 2
        self.add(2 * self.positions * 9 * self.C * self.C, self.C)
        frame = self.H * self.W * self.C
        if over_time and self.first:
            self.passes.append(Pass(0, 0, frame))
        elif over_time:
            self.T //= 2
            self.add(2 * self.positions * 3 * self.C * self.C, self.C, frame)


def decoder_levels(vae: VAEConfig, size: tuple[int, int]) -> list[tuple[int, int, int]]:
    """Return (rows, columns, channels) of the frames that residual blocks of each level of the decoder make."""
    width, height = (pixels // PIXELS_PER_CELL for pixels in size)
    return [(height << level, width << level, channels) for level, channels in enumerate(reversed(vae.widths))]


Layer = tuple[Callable[[Walk], None], int]
"""The work of a layer, and how many times larger than its input its output may be."""


def _decoder(vae: VAEConfig) -> list[Layer]:
    """Return the layers between the first convolution and the last, each of which keeps to pieces of its own."""
    layers: list[Layer] = [(Walk.middle, 1)]
    for width, over_time in zip(reversed(vae.widths), (*reversed(vae.temporal_downsample), None), strict=True):
        layers += [(functools.partial(Walk.residual, channels=width), 1)] * (vae.num_res_blocks + 1)
        if over_time is not None:
            layers.append((functools.partial(Walk.upsample, over_time=over_time), 4 if over_time else 2))
    return layers


def _encoder(vae: VAEConfig) -> list[Layer]:
    layers: list[Layer] = []
    for width, over_time in zip(vae.widths, (*vae.temporal_downsample, None), strict=True):
        layers += [(functools.partial(Walk.residual, channels=width), 1)] * vae.num_res_blocks
        if over_time is not None:
            layers.append((functools.partial(Walk.downsample, over_time=over_time), 1))
    return [*layers, (Walk.middle, 1)]


def _begin_decoding(vae: VAEConfig, size: tuple[int, int], latents: int, *, first: bool) -> Walk:
    walk = Walk(latents, size[1] // PIXELS_PER_CELL, size[0] // PIXELS_PER_CELL, vae.z_dim, first)
    walk.pointwise(vae.z_dim)
    walk.causal(vae.widths[-1])
    return walk


def _decoding(vae: VAEConfig, size: tuple[int, int], latents: int, *, first: bool) -> list[Pass]:
    """Decode `latents` latent frames; `first` if they are a chunk's first one, alone."""
    walk = _begin_decoding(vae, size, latents, first=first)
    for work, _ in _decoder(vae):
        work(walk)
    walk.causal(vae.out_channels)
    return walk.passes


def _encoding(vae: VAEConfig, size: tuple[int, int], frames: int, *, first: bool) -> list[Pass]:
    """Encode `frames` frames; `first` if they are a clip's first one, alone."""
    walk = Walk(frames, size[1], size[0], vae.in_channels, first)
    walk.causal(vae.base_dim)
    for work, _ in _encoder(vae):
        work(walk)
    walk.causal(2 * vae.z_dim)
    walk.pointwise(2 * vae.z_dim)
    return walk.passes


def decode_flops(vae: VAEConfig, size: tuple[int, int], frames: int = FRAMES_PER_CHUNK) -> int:
    """Count the decoding of the latents of a chunk's first `frames` frames; up to a piece more of them is decoded."""
    others = latent_frames_for(frames) - 1
    first, other = (sum(done.flops for done in _decoding(vae, size, 1, first=first)) for first in (True, False))
    return first + others * other


def encode_flops(vae: VAEConfig, size: tuple[int, int], frames: int) -> int:
    """Count the encoding of a clip of 4k + 1 frames."""
    groups = latent_frames_for(frames) - 1
    first = sum(done.flops for done in _encoding(vae, size, 1, first=True))
    return first + groups * sum(done.flops for done in _encoding(vae, size, FRAMES_PER_LATENT, first=False))


def piece_elements_on(device: Device, vram: int | None) -> int:
    """Return the elements that a layer of the decoder works on at a time on a device.

    They follow from its whole memory and from --vram, and not from what is free: GPUs may convolve pieces of another
    size by another algorithm, and frames should not depend on what else runs.
    """
    usual = PIECE_ELEMENTS["cpu" if device.kind == "cpu" else "cuda"]
    room = min((given for given in (device.total_bytes, vram) if given is not None), default=0)
    return LARGE_PIECE_ELEMENTS if device.kind == "cuda" and room >= LARGE_PIECE_BYTES else usual


@functools.cache
def decode_elements(vae: VAEConfig, size: tuple[int, int], limit: int) -> int:
    """Count the numbers held at most while a chunk is decoded in pieces of `limit` elements, without the weights."""
    latents = latent_frames_for(FRAMES_PER_CHUNK) - 1
    walk = _begin_decoding(vae, size, latents, first=False)

    def last(piece: Walk, *, split: bool) -> tuple[int, int]:
        held = (3 if split else 2) * piece.elements  # with a piece before this one, whose result is still held
        piece.causal(vae.out_channels)
        return held + piece.elements, piece.passes[-1].buffer

    held, buffer = nested(_decoder(vae), walk, last, limit)
    return held + buffer + sum(done.remembered for done in _decoding(vae, size, latents, first=False))


def nested(
    layers: list[Layer], walk: Walk, last: Callable[..., tuple[int, int]], limit: int, *, split: bool = False
) -> tuple[int, int]:
    """Return the elements held at most from these layers on, and those of the largest buffer.

    A layer's input stays while the layers behind it work on a piece of its output. Pieces differ by a frame, and the
    smaller one may be split less further on: both are followed. `last` returns the same for the work on a piece behind
    all layers; with `split` there was a piece before this one.
    """
    if not layers:
        return last(walk, split=split)
    held = walk.elements
    (work, growth), *others = layers
    pieces = min(ceil(held * growth / limit), walk.T)
    most = buffer = 0
    for frames in {walk.T // pieces, ceil(walk.T / pieces)}:
        ahead = replace(walk, T=frames, passes=[])
        work(ahead)
        passes = ahead.passes
        further, wider = nested(others, replace(ahead, passes=[]), last, limit, split=split or pieces > 1)
        most = max(most, _working(passes), further)
        buffer = max(buffer, wider, *(part.buffer for part in passes))
    return held + most, buffer


@functools.cache
def encode_elements(vae: VAEConfig, size: tuple[int, int], device: str) -> int:
    """Count the numbers held at most while a clip of 33 frames is encoded, without the weights."""
    group = FRAMES_PER_LATENT * size[0] * size[1] * vae.base_dim
    frames = FRAMES_PER_LATENT * max(1, PIECE_ELEMENTS[device] // group)
    walk = Walk(min(frames, FRAMES_PER_CHUNK - 1), size[1], size[0], vae.in_channels, first=False)
    walk.causal(vae.base_dim)
    most = 0
    for work, _ in _encoder(vae):
        held, before = walk.elements, len(walk.passes)
        work(walk)
        most = max(most, held + _working(walk.passes[before:]))
    walk.causal(2 * vae.z_dim)
    kept = sum(done.remembered for done in walk.passes) + max(done.buffer for done in walk.passes)
    return most + kept + FRAMES_PER_CHUNK * vae.in_channels * size[0] * size[1]


def _working(passes: list[Pass]) -> int:
    """Sum the four largest results of a layer on one piece, which live at once."""
    return sum(sorted(part.elements for part in passes)[-4:])
