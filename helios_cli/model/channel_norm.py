"""The Wan VAE's norm, x over the length of its channel vector: on a CPU, on a GPU, and with gradients.

Activations are channels-last, [B, T, H, W, C] (suffix BTHWC); a suffix NC is rows of channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import helios_kernels as kernels

NORM_EPS = 1e-12

SLAB_ELEMENTS = 2**19
"""Elements a CPU thread normalises at a time: 2 MiB in float32, so that a norm's passes stay in cache, yet large enough
that the calls (and, with several threads, their barriers) do not count."""


class ChannelNorm(nn.Module):
    """The norm x / |x| * sqrt(C) * gamma over the channels of each position, in float32."""

    def __init__(self, channels: int, gamma_dims: int = 4) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *[1] * (gamma_dims - 1)))

    def forward(self, x_BTHWC: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return DifferentiableNorm.apply(x_BTHWC, self.gamma.flatten(), 0, False)
        return self.into(torch.empty_like(x_BTHWC), x_BTHWC, silu=False)

    def into(self, out_BTHWC: Tensor, x_BTHWC: Tensor, *, silu: bool) -> Tensor:
        """Write the norm of x, through SiLU with `silu`, to `out`, which is contiguous within each batch item."""
        gamma = self.gamma.flatten()
        if kernels.runs(x_BTHWC, "vae_norm_silu"):
            return kernels.vae_norm_silu(x_BTHWC, gamma, out_BTHWC, silu=silu)
        if x_BTHWC.device.type != "cpu":
            return normalize_fused(x_BTHWC, out_BTHWC, gamma, silu=silu)
        for x, out in zip(x_BTHWC, out_BTHWC, strict=True):
            normalize_slabs(x.view(-1, len(gamma)), out.view(-1, len(gamma)), gamma, silu=silu)
        return out_BTHWC


def normalize_fused(x: Tensor, out: Tensor, gamma_C: Tensor, *, silu: bool) -> Tensor:
    """ChannelNorm of [..., C] in as few kernels as a GPU needs."""
    # Under the root of the mean square, this epsilon is NORM_EPS next to |x|: it matters for all-zero positions only.
    y = F.rms_norm(x, gamma_C.shape, gamma_C, eps=NORM_EPS**2 / len(gamma_C))
    return torch.ops.aten.silu.out(y, out=out) if silu else out.copy_(y)


def normalize_slabs(x_NC: Tensor, out_NC: Tensor, gamma_C: Tensor, *, silu: bool) -> None:
    """ChannelNorm on a CPU, a few rows at a time: eager element-wise passes cost what they read from main memory."""
    scale_C = gamma_C.float() * math.sqrt(len(gamma_C))
    rows = max(1, SLAB_ELEMENTS * torch.get_num_threads() // x_NC.shape[1])
    scratch = None if out_NC.dtype == torch.float32 else scale_C.new_empty(min(rows, len(x_NC)), x_NC.shape[1])
    for x, out in zip(x_NC.split(rows), out_NC.split(rows), strict=True):
        y = out if scratch is None else scratch[: len(x)].copy_(x)
        source = x if scratch is None else y
        torch.mul(source, _reciprocal_lengths(source), out=y).mul_(scale_C)
        if silu:
            F.silu(y, inplace=True)
        if scratch is not None:
            out.copy_(y)


def _reciprocal_lengths(x_NC: Tensor) -> Tensor:
    """Return 1 / |x| of each row, [N, 1], or equal [N, C] for rows of so few numbers that PyTorch adds them one by one:
    8 channels of the finest level take 1.9 ms instead of 2.8, norm and SiLU of 2 MiB on one thread of an Intel Xeon."""
    if x_NC.shape[1] < 16:
        return _by_squares(x_NC)
    return torch.linalg.vector_norm(x_NC, dim=1, keepdim=True).clamp_min_(NORM_EPS).reciprocal_()


class DifferentiableNorm(torch.autograd.Function):
    """ChannelNorm, through SiLU with `silu`, after `past` frames of zeros: [B, past + T, H, W, C].

    Both directions go over a few rows at a time and keep nothing but the input, as `normalize_slabs` does: a third to
    a half faster on a CPU than the same formula left to autograd.
    """

    @staticmethod
    def forward(ctx: Any, x_BTHWC: Tensor, gamma_C: Tensor, past: int, silu: bool) -> Tensor:
        ctx.save_for_backward(x_BTHWC, gamma_C)
        ctx.past, ctx.silu = past, silu
        B, T, H, W, C = x_BTHWC.shape
        out_BTHWC = x_BTHWC.new_empty(B, past + T, H, W, C)
        out_BTHWC[:, :past] = 0
        for x, out in slabs(x_BTHWC, out_BTHWC[:, past:]):
            unit, _ = unit_rows(x)
            y = unit.mul_(gamma_C * math.sqrt(C))
            out.copy_(F.silu(y, inplace=True) if silu else y)
        return out_BTHWC

    @staticmethod
    def backward(ctx: Any, grad_BTHWC: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x_BTHWC, gamma_C = ctx.saved_tensors
        C = len(gamma_C)
        scale_C = gamma_C.to(working_dtype(x_BTHWC)) * math.sqrt(C)
        grad_x_BTHWC, grad_scale_C = torch.empty_like(x_BTHWC), torch.zeros_like(scale_C)
        for x, grad, grad_x in slabs(x_BTHWC, grad_BTHWC[:, ctx.past :], grad_x_BTHWC):
            unit, reciprocal = unit_rows(x)
            grad = grad.to(unit.dtype)
            if ctx.silu:
                grad = torch.ops.aten.silu_backward(grad, unit * scale_C)
            grad_scale_C += (grad * unit).sum(0)
            grad = grad * scale_C
            along = row_sums(grad * unit)
            grad_x.copy_(grad.addcmul_(unit, along, value=-1).mul_(reciprocal))
        return grad_x_BTHWC, (grad_scale_C * math.sqrt(C)).to(gamma_C.dtype), None, None


def slabs(*clips_BTHWC: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield the same few rows, [N, C], of each of the clips."""
    channels = clips_BTHWC[0].shape[-1]
    rows = max(1, SLAB_ELEMENTS // 4 * torch.get_num_threads() // channels)  # the backward has four slabs in hand
    for items in zip(*clips_BTHWC, strict=True):
        yield from zip(*(item.reshape(-1, channels).split(rows) for item in items), strict=True)


def unit_rows(x_NC: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows of length 1 and the reciprocals of their lengths, [N, C] or [N, 1]."""
    x_NC = x_NC.to(working_dtype(x_NC))
    reciprocal = _by_squares(x_NC)
    return x_NC * reciprocal, reciprocal


def _by_squares(x_NC: Tensor) -> Tensor:
    """Return 1 / |x| of each row, [N, 1] or equal [N, C]."""
    return row_sums(x_NC.square()).clamp_min_(NORM_EPS**2).rsqrt_()


def row_sums(x_NC: Tensor) -> Tensor:
    """Sum over the channels, [N, 1], or equal [N, C]: a product is faster for rows shorter than a vector register."""
    channels = x_NC.shape[1]
    return x_NC @ x_NC.new_ones(channels, channels) if channels < 32 else x_NC.sum(1, keepdim=True)


def working_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
