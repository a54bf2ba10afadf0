"""Operations and memory of the VAE, by walking its layers with nothing but their shapes.

The walk is that of `model/vae.py`, which it is tested against: a clip's first frame (its first latent) passes alone,
and the temporal resampling layers let it by; upsampling convolves the small picture with four folded 2x2 kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass
from math import ceil

from helios_cli.cost.shapes import VAEShape
from helios_cli.units import FRAMES_PER_CHUNK, FRAMES_PER_LATENT, PIECE_ELEMENTS, PIXELS_PER_CELL, latent_frames_for

PAST = 2
"""Frames that a causal convolution remembers."""


@dataclass(frozen=True)
class Pass:
    """One layer's work on some frames.

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


class _Walk:
    """The shape of the activations on their way: T frames of H rows, W columns and C channels."""

    def __init__(self, frames: int, height: int, width: int, channels: int, *, first: bool) -> None:
        self.T, self.H, self.W, self.C, self.first = frames, height, width, channels, first

    @property
    def positions(self) -> int:
        return self.T * self.H * self.W

    @property
    def elements(self) -> int:
        return self.positions * self.C

    def _done(self, flops: int, channels: int, remembered: int = 0, buffer: int = 0) -> Pass:
        self.C = channels
        return Pass(flops, self.elements, remembered, buffer)

    def pointwise(self, channels: int) -> Pass:
        return self._done(2 * self.positions * self.C * channels, channels)

    def causal(self, channels: int, kernel: int = 27) -> Pass:
        remembered = PAST * self.H * self.W * self.C
        flops = 2 * self.positions * kernel * self.C * channels
        return self._done(flops, channels, remembered, self.elements + remembered)

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
            yield Pass(0, self.elements)
        taps = 4 * 4  # four positions in the doubled pixel, 2x2 inputs each
        flops = 2 * self.T * (self.H + 1) * (self.W + 1) * taps * channels * (channels // 2)
        self.H, self.W = 2 * self.H, 2 * self.W
        arranged = self._done(flops, channels // 2)
        yield arranged
        yield Pass(0, arranged.elements)  # once more, its pixels in their places

    def downsample(self, over_time: bool) -> Iterator[Pass]:
        self.H, self.W = self.H // 2, self.W // 2
        yield self._done(2 * self.positions * 9 * self.C * self.C, self.C)
        if over_time and self.first:
            yield Pass(0, 0, self.H * self.W * self.C)
        elif over_time:
            self.T //= 2
            yield self._done(2 * self.positions * 3 * self.C * self.C, self.C, self.H * self.W * self.C)


@dataclass(frozen=True)
class _Layer:
    """A layer of the networks: its work on what `walk` brings, and how many times larger its output may be."""

    work: Callable[[_Walk], Iterator[Pass]]
    growth: int = 1


def _decoder(vae: VAEShape) -> list[_Layer]:
    """The layers between the first convolution and the last, each of which keeps to pieces of its own."""
    layers = [_Layer(lambda walk: walk.middle())]
    for width, over_time in zip(reversed(vae.widths), (*reversed(vae.temporal_downsample), None), strict=True):
        layers += [_Layer(lambda walk, width=width: walk.residual(width))] * (vae.num_res_blocks + 1)
        if over_time is not None:
            layers.append(_Layer(lambda walk, over_time=over_time: walk.upsample(over_time), 4 if over_time else 2))
    return layers


def _encoder(vae: VAEShape) -> list[_Layer]:
    layers = []
    for width, over_time in zip(vae.widths, (*vae.temporal_downsample, None), strict=True):
        layers += [_Layer(lambda walk, width=width: walk.residual(width))] * vae.num_res_blocks
        if over_time is not None:
            layers.append(_Layer(lambda walk, over_time=over_time: walk.downsample(over_time)))
    return [*layers, _Layer(lambda walk: walk.middle())]


def _decoding(vae: VAEShape, size: tuple[int, int], latents: int, *, first: bool) -> list[Pass]:
    """The layers' work on `latents` latent frames; `first` where they are a chunk's first one, alone."""
    walk = _latent_walk(vae, size, latents, first=first)
    passes = [walk.pointwise(vae.z_dim), walk.causal(vae.widths[-1])]
    passes += [done for layer in _decoder(vae) for done in layer.work(walk)]
    return [*passes, walk.causal(vae.out_channels)]


def _encoding(vae: VAEShape, size: tuple[int, int], frames: int, *, first: bool) -> list[Pass]:
    """The layers' work on `frames` frames; `first` where they are a clip's first one, alone."""
    walk = _Walk(frames, size[1], size[0], vae.in_channels, first=first)
    passes = [walk.causal(vae.base_dim)]
    passes += [done for layer in _encoder(vae) for done in layer.work(walk)]
    return [*passes, walk.causal(2 * vae.z_dim), walk.pointwise(2 * vae.z_dim)]


def _latent_walk(vae: VAEShape, size: tuple[int, int], latents: int, *, first: bool) -> _Walk:
    return _Walk(latents, size[1] // PIXELS_PER_CELL, size[0] // PIXELS_PER_CELL, vae.z_dim, first=first)


def decode_flops(vae: VAEShape, size: tuple[int, int], frames: int = FRAMES_PER_CHUNK) -> int:
    """Of the latents that a chunk's first `frames` frames need; up to a piece more of them is decoded."""
    latents = latent_frames_for(frames)
    return _flops(_decoding(vae, size, 1, first=True)) + (latents - 1) * _flops(_decoding(vae, size, 1, first=False))


def encode_flops(vae: VAEShape, size: tuple[int, int], frames: int) -> int:
    """Of a clip of 4k + 1 frames."""
    groups = latent_frames_for(frames) - 1
    return _flops(_encoding(vae, size, 1, first=True)) + groups * _flops(_encoding(vae, size, 4, first=False))


def _flops(passes: list[Pass]) -> int:
    return sum(done.flops for done in passes)


def decode_elements(vae: VAEShape, size: tuple[int, int], device: str) -> int:
    """Numbers held at most while a chunk is decoded, beside the weights."""
    latents = latent_frames_for(FRAMES_PER_CHUNK) - 1
    walk = _latent_walk(vae, size, latents, first=False)
    walk.pointwise(vae.z_dim)
    walk.causal(vae.widths[-1])
    held, buffer = _nested(_decoder(vae), walk, vae, PIECE_ELEMENTS[device])
    remembered = sum(done.remembered for done in _decoding(vae, size, latents, first=False))
    return held + buffer + remembered


def _nested(layers: list[_Layer], walk: _Walk, vae: VAEShape, limit: int, *, split: bool = False) -> tuple[int, int]:
    """Elements held at most, and of the largest buffer, from these layers on.

    A layer's input stays while the layers behind it work on a piece of its output. Pieces differ by a frame, and the
    smaller one may be split less further on: both are followed. `split`: there was a piece before this one, whose
    end result is still there.
    """
    held = walk.elements
    if not layers:
        buffer = walk.causal(vae.out_channels).buffer
        return (3 if split else 2) * held + walk.elements, buffer
    layer, *others = layers
    pieces = min(ceil(held * layer.growth / limit), walk.T)
    most = buffer = 0
    for frames in {walk.T // pieces, ceil(walk.T / pieces)}:
        ahead = copy(walk)
        ahead.T = frames
        done = list(layer.work(ahead))
        further, wider = _nested(others, ahead, vae, limit, split=split or pieces > 1)
        most = max(most, _working(done), further)
        buffer = max(buffer, wider, *(part.buffer for part in done))
    return held + most, buffer


def encode_elements(vae: VAEShape, size: tuple[int, int], device: str) -> int:
    """Numbers held at most while a clip of 33 frames is encoded, beside the weights."""
    group = FRAMES_PER_LATENT * size[0] * size[1] * vae.base_dim
    frames = FRAMES_PER_LATENT * max(1, PIECE_ELEMENTS[device] // group)
    walk = _Walk(min(frames, FRAMES_PER_CHUNK - 1), size[1], size[0], vae.in_channels, first=False)
    passes, most = [walk.causal(vae.base_dim)], 0
    for layer in _encoder(vae):
        held = walk.elements
        done = list(layer.work(walk))
        most = max(most, held + _working(done))
        passes += done
    passes.append(walk.causal(2 * vae.z_dim))
    standing = sum(done.remembered for done in passes) + max(done.buffer for done in passes)
    return most + standing + FRAMES_PER_CHUNK * vae.in_channels * size[0] * size[1]


def _working(done: list[Pass]) -> int:
    """Of a layer on one piece: the four largest of its results live at once."""
    return sum(sorted(part.elements for part in done)[-4:])
