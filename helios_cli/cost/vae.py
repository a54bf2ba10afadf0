"""Operations and memory of the VAE, by walking its layers with nothing but their shapes.

The walk is that of `model/vae.py`, which it is tested against: a clip's first frame (its first latent) passes alone, the
temporal resampling layers let it by; upsampling convolves the small picture with four folded 2x2 kernels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from helios_cli.cost.shapes import VAEShape
from helios_cli.units import FRAMES_PER_CHUNK, PIXELS_PER_CELL, latent_frames_for

PIECE_ELEMENTS = {"cpu": 2**23, "cuda": 2**27}
"""Activations that a layer works on at a time, as `model.vae` has it."""

LIVE_PIECES = 4
"""Tensors of that size that live at once."""

PAST = 2
"""Frames that a causal convolution remembers."""


@dataclass(frozen=True)
class Pass:
    """One layer's work on some frames.

    Attributes:
        flops: of its products.
        elements: of its output.
        remembered: elements that it keeps for the clip's next frames.
    """

    flops: int
    elements: int
    remembered: int = 0


class _Walk:
    """The shape of the activations on their way: T frames of H rows, W columns and C channels."""

    def __init__(self, frames: int, height: int, width: int, channels: int, *, first: bool) -> None:
        self.T, self.H, self.W, self.C, self.first = frames, height, width, channels, first

    @property
    def positions(self) -> int:
        return self.T * self.H * self.W

    def _done(self, flops: int, channels: int, remembered: int = 0) -> Pass:
        self.C = channels
        return Pass(flops, self.positions * channels, remembered)

    def pointwise(self, channels: int) -> Pass:
        return self._done(2 * self.positions * self.C * channels, channels)

    def causal(self, channels: int, kernel: int = 27) -> Pass:
        remembered = PAST * self.H * self.W * self.C
        return self._done(2 * self.positions * kernel * self.C * channels, channels, remembered)

    def residual(self, channels: int) -> Iterator[Pass]:
        inner = self.C
        if inner != channels:
            shortcut = self.pointwise(channels)
            self.C = inner
            yield Pass(shortcut.flops, shortcut.elements)
        yield self.causal(channels)
        yield self.causal(channels)

    def attention(self) -> Iterator[Pass]:
        channels, cells = self.C, self.H * self.W
        yield self.pointwise(3 * channels)
        yield self._done(4 * self.T * cells * cells * channels, channels)
        yield self.pointwise(channels)

    def middle(self) -> Iterator[Pass]:
        yield from self.residual(self.C)
        yield from self.attention()
        yield from self.residual(self.C)

    def upsample(self, over_time: bool) -> Iterator[Pass]:
        channels = self.C
        if over_time and not self.first:
            yield self.causal(2 * channels, kernel=3)
            self.T, self.C = 2 * self.T, channels
        taps = 4 * 4  # four positions in the doubled pixel, 2x2 inputs each
        flops = 2 * self.T * (self.H + 1) * (self.W + 1) * taps * channels * (channels // 2)
        self.H, self.W = 2 * self.H, 2 * self.W
        yield self._done(flops, channels // 2)

    def downsample(self, over_time: bool) -> Iterator[Pass]:
        self.H, self.W = self.H // 2, self.W // 2
        yield self._done(2 * self.positions * 9 * self.C * self.C, self.C)
        if over_time and self.first:
            yield Pass(0, 0, self.H * self.W * self.C)
        elif over_time:
            self.T //= 2
            yield self._done(2 * self.positions * 3 * self.C * self.C, self.C, self.H * self.W * self.C)


def decoding(vae: VAEShape, size: tuple[int, int], latents: int, *, first: bool) -> list[Pass]:
    """The layers' work on `latents` latent frames; `first` where they are a chunk's first one, alone."""
    walk = _Walk(latents, size[1] // PIXELS_PER_CELL, size[0] // PIXELS_PER_CELL, vae.z_dim, first=first)
    passes = [walk.pointwise(vae.z_dim), walk.causal(vae.widths[-1]), *walk.middle()]
    for width, over_time in zip(reversed(vae.widths), (*reversed(vae.temporal_downsample), None), strict=True):
        for _ in range(vae.num_res_blocks + 1):
            passes += walk.residual(width)
        if over_time is not None:
            passes += walk.upsample(over_time)
    return [*passes, walk.causal(vae.out_channels)]


def encoding(vae: VAEShape, size: tuple[int, int], frames: int, *, first: bool) -> list[Pass]:
    """The layers' work on `frames` frames; `first` where they are a clip's first one, alone."""
    walk = _Walk(frames, size[1], size[0], vae.in_channels, first=first)
    passes = [walk.causal(vae.base_dim)]
    for width, over_time in zip(vae.widths, (*vae.temporal_downsample, None), strict=True):
        for _ in range(vae.num_res_blocks):
            passes += walk.residual(width)
        if over_time is not None:
            passes += walk.downsample(over_time)
    return [*passes, *walk.middle(), walk.causal(2 * vae.z_dim), walk.pointwise(2 * vae.z_dim)]


def decode_flops(vae: VAEShape, size: tuple[int, int], frames: int = FRAMES_PER_CHUNK) -> int:
    """Of the latents that a chunk's first `frames` frames need; up to a piece more of them is decoded."""
    latents = latent_frames_for(frames)
    return _flops(decoding(vae, size, 1, first=True)) + (latents - 1) * _flops(decoding(vae, size, 1, first=False))


def encode_flops(vae: VAEShape, size: tuple[int, int], frames: int) -> int:
    """Of a clip of 4k + 1 frames."""
    groups = latent_frames_for(frames) - 1
    return _flops(encoding(vae, size, 1, first=True)) + groups * _flops(encoding(vae, size, 4, first=False))


def _flops(passes: list[Pass]) -> int:
    return sum(layer.flops for layer in passes)


def decode_elements(vae: VAEShape, size: tuple[int, int], device: str) -> int:
    """Numbers held while a chunk is decoded, beside the weights: live pieces, and what the convolutions remember."""
    later = decoding(vae, size, 1, first=False)
    whole = decoding(vae, size, latent_frames_for(FRAMES_PER_CHUNK) - 1, first=False)
    return _held(later, whole, device)


def encode_elements(vae: VAEShape, size: tuple[int, int], device: str) -> int:
    """Numbers held while a clip of 33 frames is encoded."""
    later = encoding(vae, size, 4, first=False)
    whole = encoding(vae, size, FRAMES_PER_CHUNK - 1, first=False)
    return _held(later, whole, device)


def _held(least: list[Pass], most: list[Pass], device: str) -> int:
    """A piece is no larger than `PIECE_ELEMENTS`, unless a single group of frames is, nor than everything."""
    widest = max(layer.elements for layer in least)
    everything = max(layer.elements for layer in most)
    piece = min(max(PIECE_ELEMENTS[device], widest), everything)
    return LIVE_PIECES * piece + sum(layer.remembered for layer in least)
