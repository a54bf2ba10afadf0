"""Convolutions of channels-last activations, [..., C]: what the VAE's layers call.

`Convolutions` chooses what computes the causal ones of the decoder's finest levels.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import helios_kernels as kernels
from helios_cli.measured import Measurements
from helios_cli.model import backends
from helios_cli.model.channel_norm import working_dtype
from helios_cli.model.ops import onednn_runs, product_dtype
from helios_kernels.timing import gpu_seconds

CUDNN, TRITON, FUSED = "cudnn", "triton", "triton+norm"
"""The names of what computes a causal convolution on a GPU: PyTorch's library, the kernel here, and the kernel with the
norm and SiLU of the next convolution."""

SECONDS_PER_CANDIDATE = 0.03
"""Time for each at each of a film's shapes."""


def convolve(conv: Any, x_BTHWC: Tensor, padding: tuple[int, ...] | None = None, *, with_bias: bool = True) -> Tensor:
    """Apply `conv`, an `nn.Conv3d` or its like, to channels-last frames, with `padding` in place of its own if given.

    On a CPU oneDNN is called by name: PyTorch gives small float32 inputs to a loop of its own that is ten times slower.
    """
    wide, padding = product_dtype(x_BTHWC, "convolve"), conv.padding if padding is None else padding
    x_BCTHW, weight = x_BTHWC.to(wide).movedim(-1, 1), conv.weight.to(wide)
    bias = conv.bias.to(wide) if with_bias else None
    if not onednn_runs(x_BCTHW):
        return channels_last(F.conv3d(x_BCTHW, weight, bias, conv.stride, padding, conv.dilation)).to(x_BTHWC.dtype)
    columns = columns_together(weight, conv.stride, x_BCTHW.shape[-1] + 2 * padding[-1])
    if columns > 1:
        weight, bias = for_columns(weight, columns), None if bias is None else bias.repeat(columns)
    stride = (*conv.stride[:-1], conv.stride[-1] * columns)
    y = channels_last(torch.mkldnn_convolution(x_BCTHW, weight, bias, padding, stride, conv.dilation, 1))
    # In memory, the channels of columns that were computed together lie where each column's own belong.
    return y.view(*y.shape[:-2], y.shape[-2] * columns, -1).to(x_BTHWC.dtype)


LANES = {"AVX512": 16, "AVX2": 8}
"""The float32 numbers in a vector of the processor, by PyTorch's name of its instructions."""


def columns_together(weight: Tensor, stride: tuple[int, ...], padded: int) -> int:
    """Return how many output columns of rows of `padded` inputs a CPU computes as one, by a kernel that covers them.

    oneDNN has an output channel in each lane of a vector, so that few channels leave lanes empty, and one vector at a
    time leaves the processor waiting. Two columns together take 4/3 of the products, four 6/4; one core of an Intel
    Xeon with AVX-512 takes 0.65 of the time for 8 to 8 channels, 0.84 for 16 to 16 and 0.58 for 8 to 3, with AVX2
    0.85, 1.47 and 0.71. Only measured in float32.
    """
    channels, lanes = len(weight), LANES.get(torch.backends.cpu.get_cpu_capability(), 0)
    columns = 4 if 4 * channels <= lanes else 2 if channels <= lanes else 1
    fits = weight.shape[-1] == 3 and stride[-1] == 1 and (padded - 2) % columns == 0
    return columns if fits and weight.dtype == torch.float32 else 1


def for_columns(weight: Tensor, columns: int) -> Tensor:
    """Return the weight that makes so many columns of an output at once: their channels one after the other."""
    kernel = weight.shape[-1]
    wide = weight.new_zeros(columns, *weight.shape[:-1], kernel + columns - 1)
    for column in range(columns):
        wide[column, ..., column : column + kernel] = weight
    return wide.flatten(0, 1)


def convolve_pictures(
    x_NCHW: Tensor, weight: Tensor, bias: Tensor | None, *, stride: int = 1, padding: tuple[int, ...] = (0, 0)
) -> Tensor:
    """Apply a 2D convolution, in the type of `x`."""
    wide = product_dtype(x_NCHW, "convolve_pictures")
    bias = None if bias is None else bias.to(wide)
    return F.conv2d(x_NCHW.to(wide), weight.to(wide), bias, stride, padding).to(x_NCHW.dtype)


def channels_last(x_BCTHW: Tensor) -> Tensor:
    """Turn [B, C, ...] into contiguous [B, ..., C]: a view of what a channels-last convolution returns."""
    return x_BCTHW.movedim(1, -1).contiguous()


def pointwise(conv: Any, x: Tensor) -> Tensor:
    """Apply a convolution of kernel size 1 to channels-last x."""
    wide = product_dtype(x, "pointwise")
    bias = None if conv.bias is None else conv.bias.to(wide)
    return F.linear(x.to(wide), conv.weight.flatten(1).to(wide), bias).to(x.dtype)


def upsample_conv(
    conv: Any, x_BTHWC: Tensor, padding: tuple[int, ...] = (1, 1), folded: Tensor | None = None
) -> Tensor:
    """Apply nearest-neighbour doubling and a 3x3 convolution with zero padding, [B, T, 2H, 2W, conv.out_channels].

    `padding` is (0, 1) where x has the rows above and below its own; `folded` is what `fold_upsampling` makes of the
    weight, if it was made before.

    On doubled pixels the nine taps of an output pixel fall on 2x2 input pixels, so four 2x2 convolutions of the small
    picture, one for each position in the doubled pixel, do the work of one 3x3 on the large: 16 products instead of 36,
    and no large picture of all channels. They run as one convolution with four times the outputs.
    """
    weight = (fold_upsampling(conv.weight) if folded is None else folded).to(x_BTHWC.dtype)
    small = x_BTHWC.flatten(0, 1).movedim(-1, 1)
    # [B*T, H + 1, W + 1, 4 * C]
    bias = None if conv.bias is None else conv.bias.repeat(4)
    y = channels_last(convolve_pictures(small, weight, bias, padding=padding))
    return Interleave.apply(y).unflatten(0, x_BTHWC.shape[:2])


class Interleave(torch.autograd.Function):
    """Turns [N, H + 1, W + 1, 4C] into [N, 2H, 2W, C]: position (a, b) of the doubled pixel (i, j) lies at row i + a,
    column j + b, in channels (2a + b)C onwards.

    One copy in either direction: no element is read twice, which autograd cannot know of overlapping rows.
    """

    @staticmethod
    def places(y: Tensor) -> Tensor:
        N, rows, columns, channels = y.shape
        H, W, C = rows - 1, columns - 1, channels // 4
        frame, row, column, _ = y.stride()
        return y.as_strided((N, H, 2, W, 2, C), (frame, row, row + 2 * C, column, column + C, 1))

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        ctx.shape = y.shape
        return Interleave.places(y).reshape(len(y), 2 * y.shape[1] - 2, 2 * y.shape[2] - 2, -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad_y = grad.new_zeros(ctx.shape)
        places = Interleave.places(grad_y)
        places.copy_(grad.reshape(places.shape))
        return grad_y


def fold_upsampling(weight: Tensor) -> Tensor:
    """Return the weight [4 * out, in, 2, 2] of the small picture for that of the large one, [out, in, 3, 3]."""
    folded = fold_taps(fold_taps(weight.to(working_dtype(weight)), dim=2), dim=4)  # [2, 2, out, in, 2, 2]
    return folded.transpose(0, 1).flatten(0, 2).to(weight.dtype)  # column position first, then row


def fold_taps(weight: Tensor, dim: int) -> Tensor:
    """Sum the three taps of `dim` into the two inputs they fall on, for the near and far output: a new first dim."""
    before, centre, after = weight.unbind(dim)
    near, far = torch.stack((before, centre + after), dim), torch.stack((before + centre, after), dim)
    return torch.stack((near, far))


# Which one


def _by_cudnn(x_BTHWC: Tensor, weight: Tensor, bias_C: Tensor, gamma_C: Tensor | None) -> Tensor:
    assert gamma_C is not None
    y_BTHWC = F.conv3d(x_BTHWC.movedim(-1, 1), weight, padding=(0, 1, 1)).movedim(1, -1).contiguous()
    return kernels.causal_sum_pad(y_BTHWC, bias_C, None, None, torch.empty_like(x_BTHWC), gamma_C)


def _by_kernel(x_BTHWC: Tensor, weight: Tensor, bias_C: Tensor, gamma_C: Tensor | None) -> Tensor:
    assert gamma_C is not None
    y_BTHWC = kernels.causal_conv(x_BTHWC, weight, bias_C)
    return kernels.causal_pad(y_BTHWC, None, torch.empty_like(x_BTHWC), gamma_C)


def _by_kernel_with_norm(x_BTHWC: Tensor, weight: Tensor, bias_C: Tensor, gamma_C: Tensor | None) -> Tensor:
    assert gamma_C is not None
    padded_BTHWC, past = torch.empty_like(x_BTHWC), weight.shape[2] - 1
    padded_BTHWC[:, :past] = 0
    kernels.causal_conv_norm(x_BTHWC, weight, bias_C, None, gamma_C, padded_BTHWC[:, past:])
    return padded_BTHWC


RUN: dict[str, backends.Attention] = {CUDNN: _by_cudnn, TRITON: _by_kernel, FUSED: _by_kernel_with_norm}
"""The candidates, the one first that others are compared with: from the padded input of a convolution to that of the
next, as in a residual block."""


class Convolutions:
    """Chooses what computes the causal convolutions of a VAE on a GPU: a kernel where it was measured to be faster.

    `memory` holds what was measured. What was not is left to cuDNN.
    """

    def __init__(self, memory: Measurements | None = None) -> None:
        self.memory = memory or Measurements()
        self.taken: dict[str, str] = {}
        """The choices by shape, where there was one."""

    def of(self, x_BTHWC: Tensor, weight: Tensor) -> str:
        """Return the name of what convolves padded frames with such a weight."""
        if not (kernels.runs(x_BTHWC, "causal_conv") and kernels.causal_conv.takes(x_BTHWC, weight)):
            return CUDNN
        return self.taken.get(key_of(x_BTHWC), CUDNN)

    def settle(self, x_BTHWC: Tensor, weight: Tensor) -> None:
        """Choose for frames of this size, by what was measured or by measuring it."""
        if not (kernels.runs(x_BTHWC, "causal_conv") and kernels.causal_conv.takes(x_BTHWC, weight)):
            return
        key = key_of(x_BTHWC)
        names = [name for name in RUN if name != FUSED or kernels.runs(x_BTHWC, "causal_conv_norm")]
        known = self.memory.known.get(key)
        if known is None or not known.covers(names):
            seconds = functools.partial(gpu_seconds, budget=SECONDS_PER_CANDIDATE)
            bias_C, gamma_C = weight.new_full((len(weight),), 0.1), weight.new_ones(len(weight))
            known = backends.measure({name: RUN[name] for name in names}, x_BTHWC, weight, bias_C, gamma_C, seconds)
            self.memory.keep(key, known)
        self.taken[key] = known.fastest(names, default=CUDNN)


def key_of(x_BTHWC: Tensor) -> str:
    """Return the key of a convolution's choice, as `cost.arithmetic.convolution_shapes` has it: all numbers of frames
    share theirs."""
    rows, columns, channels = x_BTHWC.shape[2:]
    return f"{rows}x{columns} {channels} {str(x_BTHWC.dtype).removeprefix('torch.')}"


USUAL = Convolutions()
"""The choice of networks that were given none."""
