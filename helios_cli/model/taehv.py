"""TAEHV: a small decoder of the Wan VAE's latents, as published in `taew2_1.safetensors`, for previews.

It makes other pictures than the VAE, which are close to them, in a fraction of the operations. What is unusual:
- Each latent goes through the same layers; the only way from one to the next is through memory blocks, which see the
  input that they had one frame earlier. So a clip can be decoded in pieces that hand that over (`CausalState`).
- It decodes the latents that the transformer makes, normalised per channel, and knows no mean or deviation.
- Every latent gives four frames. A clip's first latent stands for one, so its first three are dropped: a chunk of nine
  latents has 33 frames, as the VAE's.
- Parameter names are those of the file, places in a list of layers, so it loads one to one. The encoder is not used.

A level ends with a doubling of rows and columns, a 1x1 convolution that makes further frames, and a 3x3 convolution
to the next level's channels. The first two can change places, so the 1x1 convolution runs on the small picture, and the
other two are one `upsample_conv`.

Frames come in [-1, 1], as the VAE's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from helios_cli.architecture import TAEHVConfig
from helios_cli.model.causal import CausalState, in_pieces, summed
from helios_cli.model.convolution import channels_last, convolve_pictures, pointwise, upsample_conv
from helios_cli.units import FRAMES_PER_LATENT

LIMIT = 3.0
"""The size of a latent's value beyond which the network does not see it grow."""


class MemoryBlock(nn.Module):
    """Three 3x3 convolutions of a frame and the one before it, added to the frame."""

    growth = 2  # of a frame with its neighbour, side by side

    def __init__(self, channels: int) -> None:
        super().__init__()
        inputs = (2 * channels, channels, channels)
        # The places between them are those of ReLUs.
        self.conv = nn.ModuleDict({str(2 * i): nn.Conv2d(count, channels, 3) for i, count in enumerate(inputs)})

    def forward(self, x_BTHWC: Tensor, state: CausalState) -> Tensor:
        y = self._with_neighbours(x_BTHWC, state)
        first, second, third = self.conv.values()
        y = convolve_frames(second, convolve_frames(first, y).relu_()).relu_()
        return convolve_frames(third, y).add_(x_BTHWC).relu_()

    def _with_neighbours(self, x_BTHWC: Tensor, state: CausalState) -> Tensor:
        """Return each frame with the one before it in further channels; zeros before a clip's first."""
        before = state.remembered(self)
        channels = x_BTHWC.shape[-1]
        y = x_BTHWC.new_empty(*x_BTHWC.shape[:-1], 2 * channels)
        y[..., :channels] = x_BTHWC
        y[:, 1:, ..., channels:] = x_BTHWC[:, :-1]
        y[:, :1, ..., channels:] = 0 if before is None else before
        state.remember(self, x_BTHWC, past=1)
        return y


@dataclass(frozen=True)
class LevelEnd:
    """Twice the rows and columns, `growth_in_time` times the frames, and the next level's channels."""

    more_frames: MoreFrames
    conv: Any
    growth_in_time: int

    @property
    def growth(self) -> int:
        return 4 * self.growth_in_time * self.conv.out_channels // self.conv.in_channels

    def __call__(self, x_BTHWC: Tensor, state: CausalState) -> Tensor:
        frames = pointwise(self.more_frames.conv, x_BTHWC).unflatten(-1, (self.growth_in_time, -1))
        return upsample_conv(self.conv, frames.movedim(-2, 2).flatten(1, 2))


class MoreFrames(nn.Module):
    """The 1x1 convolution whose channels are those of `growth` frames."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, growth * channels, 1, bias=False)


class TAEHV(nn.Module):
    """The decoder, with the names and shapes of `TAEHVConfig.shapes`."""

    def __init__(self, config: TAEHVConfig | None = None) -> None:
        super().__init__()
        config = config or TAEHVConfig()
        first = nn.Conv2d(config.latent_channels, config.widths[0], 3)
        layers: dict[str, nn.Module] = {"1": first}
        self.layers: list[Any] = []
        place = 3
        for width, following, growth in config.levels:
            blocks = [MemoryBlock(width) for _ in range(config.blocks)]
            layers |= {str(place + i): block for i, block in enumerate(blocks)}
            place += config.blocks + 1
            more_frames, conv = MoreFrames(width, growth), nn.Conv2d(width, following, 3, bias=False)
            layers |= {str(place): more_frames, str(place + 1): conv}
            self.layers += [*blocks, LevelEnd(more_frames, conv, growth)]
            place += 2
        last = nn.Conv2d(config.widths[-1], config.out_channels, 3)
        self.decoder = nn.ModuleDict(layers | {str(place + 1): last})
        self._ends: Any = (first, last)

    @torch.no_grad()
    def decode(self, latents_BCTHW: Tensor, state: CausalState | None = None) -> Iterator[Tensor]:
        """Yield frames [B, 3, t, 8H, 8W], float32 in [-1, 1], of normalised latents, in order, a few at a time.

        Without `state` they are a clip: 4(T - 1) + 1 frames. Calls that share one go on with a longer clip.
        """
        state = state or CausalState()
        bounded = (latents_BCTHW.movedim(1, -1).float() / LIMIT).tanh() * LIMIT
        first, last = self._ends
        x_BTHWC = convolve_frames(first, bounded.to(first.weight.dtype)).relu_()
        dropped = FRAMES_PER_LATENT - 1 if state.first else 0
        state.first = False
        for stream in in_pieces(self.layers, x_BTHWC, state):
            piece = summed(stream)
            kept, dropped = piece[:, dropped:], max(0, dropped - piece.shape[1])
            if kept.shape[1]:
                frames_BTHWC = convolve_frames(last, kept.relu_()).float()
                yield frames_BTHWC.clamp_(0, 1).mul_(2).sub_(1).movedim(-1, 1)
                del frames_BTHWC
            del stream, piece, kept  # before the next one is made


def convolve_frames(conv: Any, x_BTHWC: Tensor) -> Tensor:
    """Apply a 3x3 convolution with zero padding to each frame."""
    pictures = x_BTHWC.flatten(0, 1).movedim(-1, 1)
    y = convolve_pictures(pictures, conv.weight, conv.bias, padding=(1, 1))
    return channels_last(y).unflatten(0, x_BTHWC.shape[:2])
