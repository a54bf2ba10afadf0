"""Causal layers, and how a clip passes them in pieces.

A causal convolution sees its own frame and the two before it, so a clip can be processed in pieces that hand over the
last two input frames of every convolution (`CausalState`), whatever the pieces, with one result.

Activations are kept channels-last, [B, T, H, W, C] (suffix BTHWC), which the CPU's convolutions run up to twice as fast
in and which makes the norm a matter of contiguous rows. A norm writes straight into the padded input of the convolution
behind it, and on a GPU adds the bias and the shortcut that the convolution before it left out (`Unsummed`).

Every layer takes the clip's `CausalState`, or None: then x is a whole clip and gradients can be recorded (training).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import helios_kernels as kernels
from helios_cli.model.channel_norm import ChannelNorm, DifferentiableNorm
from helios_cli.model.convolution import CUDNN, FUSED, USUAL, convolve, pointwise
from helios_cli.units import PIECE_ELEMENTS

PAST = 2
"""Input frames before its own that a causal convolution sees."""


@dataclass(frozen=True)
class Unsummed:
    """The result of a convolution without its bias, and without the shortcut of the block that it ends.

    PyTorch adds each in a pass of its own on a GPU; the norm behind them reads all three at once instead.
    """

    x_BTHWC: Tensor
    bias_C: Tensor
    shortcut_BTHWC: Tensor | None = None


@dataclass(frozen=True)
class Normed:
    """The result of a convolution whose norm through SiLU is in the padded input of the next one already; `x` is None
    within a block, where nothing else reads it."""

    x_BTHWC: Tensor | None
    padded_BTHWC: Tensor


Stream = Tensor | Unsummed | Normed
"""Activations between two layers of the networks."""


def summed(x: Stream) -> Tensor:
    """Return the activations, [B, T, H, W, C]."""
    if isinstance(x, Tensor):
        return x
    assert isinstance(x, Unsummed), "its norm would be lost"
    total_BTHWC = x.x_BTHWC.add_(x.bias_C)
    return total_BTHWC if x.shortcut_BTHWC is None else total_BTHWC.add_(x.shortcut_BTHWC)


def activations(x: Stream) -> Tensor:
    """Return the tensor of x, which may lack sums, for its shape."""
    found = x if isinstance(x, Tensor) else x.x_BTHWC
    assert found is not None
    return found


def in_pieces(
    layers: Sequence[Any],
    x: Stream,
    state: CausalState,
    end: tuple[ChannelNorm, CausalConv3d] | None = None,
    *,
    last: bool = False,
) -> Iterator[Stream]:
    """Pass x through causal layers that each keep to pieces of so many elements, so the inner ones run on more frames
    at a time.

    A layer's `growth` is how many times larger than its input its output may be. `end` are the norm and the convolution
    behind the last one. x ends the clip with `last`.
    """
    if not layers:
        state.last = last
        yield x
        return
    layer, *others = layers
    pieces = 1 if isinstance(x, Normed) else state.pieces(activations(x), layer.growth)
    for number, piece in enumerate([x] if pieces == 1 else summed(x).tensor_split(pieces, dim=1), start=1):
        state.last = last and number == pieces
        then = [_entry_of(others, activations(piece), state, end)] if isinstance(layer, ResidualBlock) else []
        # The result has no name here, so that it is free as soon as the layers behind have read it.
        yield from in_pieces(others, layer(piece, state, *then), state, end, last=state.last)


def _entry_of(
    layers: Sequence[nn.Module], x_BTHWC: Tensor, state: CausalState, end: tuple[ChannelNorm, CausalConv3d] | None
) -> tuple[ChannelNorm, CausalConv3d] | None:
    """Return the norm and the convolution that the next layer begins with, for frames like x; None if it begins
    otherwise, or splits them."""
    if not layers:
        return end
    following = layers[0]
    return following.entry if isinstance(following, ResidualBlock) and state.pieces(x_BTHWC, 1) == 1 else None


class ResidualBlock(nn.Module):
    """Two convolutions, each behind a norm and SiLU, added to their input."""

    growth = 1

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = ChannelNorm(in_channels)
        self.conv1 = CausalConv3d(in_channels, out_channels)
        self.norm2 = ChannelNorm(out_channels)
        self.conv2 = CausalConv3d(out_channels, out_channels)
        self.conv_shortcut = nn.Conv3d(in_channels, out_channels, 1) if in_channels != out_channels else None

    @property
    def entry(self) -> tuple[ChannelNorm, CausalConv3d]:
        return self.norm1, self.conv1

    def forward(
        self, x: Stream, state: CausalState | None, then: tuple[ChannelNorm, CausalConv3d] | None = None
    ) -> Stream:
        """Apply the block. `then` are the norm and the convolution behind it, if those come next."""
        h, x_BTHWC = norm_silu_conv(self.norm1, self.conv1, x, state, then=(self.norm2, self.conv2))
        assert x_BTHWC is not None, "between blocks it is kept"
        shortcut_BTHWC = x_BTHWC if self.conv_shortcut is None else pointwise(self.conv_shortcut, x_BTHWC)
        return norm_silu_conv(self.norm2, self.conv2, h, state, shortcut_BTHWC, then)[0]


def norm_silu_conv(
    norm: ChannelNorm,
    conv: CausalConv3d,
    x: Stream,
    state: CausalState | None,
    shortcut_BTHWC: Tensor | None = None,
    then: tuple[ChannelNorm, CausalConv3d] | None = None,
) -> tuple[Stream, Tensor | None]:
    """Apply norm, SiLU and convolution to x and add the `shortcut`; return that, and x with its own bias and shortcut
    added if they were not. `then` is that of `CausalConv3d.filled`."""
    gamma = norm.gamma.flatten()
    if isinstance(x, Normed):
        assert state is not None, "only pieces of a clip come so"
        return conv.filled(x.padded_BTHWC, state, shortcut_BTHWC, then), x.x_BTHWC
    if isinstance(x, Unsummed):
        assert state is not None, "only pieces of a clip come so"
        past, buffer = state.remembered(conv), state.unfilled(x.x_BTHWC)
        buffer = kernels.causal_sum_pad(x.x_BTHWC, x.bias_C, x.shortcut_BTHWC, past, buffer, gamma)
        return conv.filled(buffer, state, shortcut_BTHWC, then), x.x_BTHWC
    if state is None:
        y_BTHWC = convolve(conv, DifferentiableNorm.apply(x, gamma, PAST, True))
        return (y_BTHWC if shortcut_BTHWC is None else y_BTHWC.add_(shortcut_BTHWC)), x
    with_edges = state.with_edges(x)
    if kernels.runs(x, "causal_pad"):
        past, buffer = state.remembered(conv), state.unfilled(with_edges)
        buffer = kernels.causal_pad(with_edges, past, buffer, gamma)
        return conv.filled(buffer, state, shortcut_BTHWC, then), x
    buffer = state.buffer(conv, with_edges)
    norm.into(buffer[:, PAST:], with_edges, silu=True)
    return conv.filled(buffer, state, shortcut_BTHWC, then), x


class CausalConv3d(nn.Conv3d):
    """Convolution over a frame and the two before it, zero padding in space."""

    padding: tuple[int, ...]

    def __init__(self, in_channels: int, out_channels: int, space: int = 3) -> None:
        super().__init__(in_channels, out_channels, (PAST + 1, space, space), padding=(0, space // 2, space // 2))
        self.choice = USUAL

    def forward(self, x_BTHWC: Tensor, state: CausalState | None = None) -> Tensor:
        if state is None:
            return convolve(self, F.pad(x_BTHWC, (0, 0, 0, 0, 0, 0, PAST, 0)))
        if self.padding[1]:
            x_BTHWC = state.with_edges(x_BTHWC)
        buffer = state.buffer(self, x_BTHWC)
        buffer[:, PAST:] = x_BTHWC
        return summed(self.filled(buffer, state))

    def filled(
        self,
        buffer_BTHWC: Tensor,
        state: CausalState,
        shortcut_BTHWC: Tensor | None = None,
        then: tuple[ChannelNorm, CausalConv3d] | None = None,
    ) -> Stream:
        """Convolve a filled `CausalState.buffer`, T frames, and add the shortcut of the block that this ends.

        `then` are the norm and the convolution that come next, where nothing comes between.
        """
        assert self.bias is not None
        state.remember(self, buffer_BTHWC)
        choice = self.choice.of(buffer_BTHWC, self.weight) if state.has_all_rows else CUDNN
        if choice == FUSED and then is not None:
            norm, conv = then
            padded = state.buffer(conv, buffer_BTHWC[:, PAST:], beside=True)
            out, gamma = padded[:, PAST:], norm.gamma.flatten()
            kernels.causal_conv_norm(buffer_BTHWC, self.weight, self.bias, shortcut_BTHWC, gamma, out)
            return Normed(shortcut_BTHWC, padded)
        if choice != CUDNN:
            return kernels.causal_conv(buffer_BTHWC, self.weight, self.bias, shortcut_BTHWC)
        if state.has_all_rows and kernels.runs(buffer_BTHWC, "causal_sum_pad"):
            return Unsummed(convolve(self, buffer_BTHWC, with_bias=False), self.bias, shortcut_BTHWC)
        y_BTHWC = convolve(self, buffer_BTHWC, state.padding(self.padding))
        return y_BTHWC if shortcut_BTHWC is None else y_BTHWC.add_(shortcut_BTHWC)


class CausalState:
    """The last input frames of the causal layers of one clip, kept from piece to piece."""

    has_all_rows = True
    """False where frames come as some of their rows."""

    def __init__(self, piece_elements: int | None = None) -> None:
        self.piece_elements = piece_elements  # that a layer works on at a time; None: as usual on the device
        self.first = True  # while the clip's first frame (its first latent) passes, alone
        self.last = False  # while its last frames pass, behind which nothing is remembered
        self._tails: dict[nn.Module, Tensor] = {}
        self._space = torch.empty(0)  # of every buffer in turn: a buffer is dead when its convolution is done
        self._space_is_last = False  # whether the last buffer is there, and not in memory of its own

    def buffer(self, layer: nn.Module, x_BTHWC: Tensor, past: int = PAST, *, beside: bool = False) -> Tensor:
        """Return the input of `layer` for frames shaped like x, [B, past + T, H, W, C]: remembered frames (at first
        zeros), the rest unfilled. Valid until the next call, or, if that is for a buffer `beside`, the one after it.
        """
        buffer = self.unfilled(x_BTHWC, past, beside=beside)
        buffer[:, :past] = self._tails.get(layer, 0)
        return buffer

    def remembered(self, layer: nn.Module) -> Tensor | None:
        return self._tails.get(layer)

    def unfilled(self, x_BTHWC: Tensor, past: int = PAST, *, beside: bool = False) -> Tensor:
        """Return `buffer` with nothing in it."""
        B, T, H, W, C = x_BTHWC.shape
        shape = (B, past + T, H, W, C)
        self._space_is_last = not (beside and self._space_is_last)
        if not self._space_is_last:
            return x_BTHWC.new_empty(shape)
        if self._space.numel() < math.prod(shape):
            self._space = x_BTHWC.new_empty(math.prod(shape))
        return self._space[: math.prod(shape)].view(shape)

    def with_edges(self, x_BTHWC: Tensor) -> Tensor:
        """Return the input of a convolution with all rows that it sees, for `padding`."""
        return x_BTHWC

    def padding(self, padding: tuple[int, ...]) -> tuple[int, ...]:
        """Return the zeros around what `with_edges` returns; the last two are those of rows and columns."""
        return padding

    def over_all_rows(self, layer: Callable[[Tensor], Tensor], x_BTHWC: Tensor) -> Tensor:
        """Apply a layer that mixes all positions of a frame."""
        return layer(x_BTHWC)

    def most_elements(self, x_BTHWC: Tensor) -> int:
        """Return the elements that decide into how many pieces x is split."""
        return x_BTHWC.numel()

    def pieces(self, x_BTHWC: Tensor, growth: int) -> int:
        """Return into how many pieces x is split for a layer whose output is at most `growth` times as large."""
        limit = self.piece_elements or usual_piece_elements(x_BTHWC.device)
        return min(math.ceil(self.most_elements(x_BTHWC) * growth / limit), x_BTHWC.shape[1])

    def remember(self, layer: nn.Module, buffer_BTHWC: Tensor, past: int = PAST) -> None:
        """Keep a copy of the last `past` frames for the layer's next frames, if there will be any."""
        if self.last:
            return
        tail = buffer_BTHWC[:, -past:]
        if layer in self._tails:
            self._tails[layer].copy_(tail)
        else:
            self._tails[layer] = tail.clone()


def usual_piece_elements(device: torch.device) -> int:
    return PIECE_ELEMENTS["cpu" if device.type == "cpu" else "cuda"]
