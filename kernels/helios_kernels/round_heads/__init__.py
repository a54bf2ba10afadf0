"""The factors of attention in 8 bits: heads of queries, keys and values as int8 or e4m3, with scales.

A scale is over a `row` of a head, over all rows of a `channel`, or over a whole `head`. The last two need the largest
magnitude of all rows before the first one can be rounded: `channel_extremes` reads x once for it. Less its mean, x has
the largest magnitude max(largest - mean, mean - smallest), so no wider copy of x is ever made.
"""

from __future__ import annotations

import functools
from typing import Any, Literal

import torch
from torch import Tensor

from helios_kernels.dispatch import Operation, wide
from helios_kernels.quantize import SMALLEST

Over = Literal["row", "channel", "head"]

AXES: dict[Over, tuple[int, ...]] = {"row": (3,), "channel": (1,), "head": (1, 3)}
LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}

HEAD_SIZES = (32, 64, 128)

ALIGNED = 16
"""Columns of values start at multiples of so many bytes."""


def has_size(x_BSND: Tensor, *_: Any, **__: Any) -> bool:
    """Return whether there is a kernel for such heads."""
    return x_BSND.shape[-1] in HEAD_SIZES


@functools.partial(Operation, takes=has_size)
def channel_extremes(x_BSND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return sum, smallest and largest of every channel over all rows, [B, N, D] float32."""
    x = wide(x_BSND)
    return x.sum(1), x.amin(1), x.amax(1)


def _takes(x_BSND: Tensor, dtype: torch.dtype, over: Over, *, centred: bool = False, columns: bool = False) -> bool:
    """Return whether there is a kernel: means come with the extremes, which a scale a row does not need."""
    return has_size(x_BSND) and not (centred and over == "row")


@functools.partial(Operation, takes=_takes)
def round_heads(
    x_BSND: Tensor, dtype: torch.dtype, over: Over, *, centred: bool = False, columns: bool = False
) -> tuple[Tensor, Tensor]:
    """Return x in 8 bits, [B, S, N, D] contiguous, and float32 scales that multiply them; the largest magnitude `over`
    these axes becomes 127 or 448.

    `centred` rounds x less the mean of each channel over all rows. With `columns` both are laid out as [B, N, D, S], as
    tensor cores take 8-bit values; every column starts at a multiple of 16 bytes.
    """
    x = wide(x_BSND)
    if centred:
        x = x - x.mean(1, keepdim=True)
    scales = x.abs().amax(AXES[over], keepdim=True).clamp_min(SMALLEST) / LARGEST[dtype]
    x = (x / scales).clamp(-LARGEST[dtype], LARGEST[dtype])
    values = empty(x_BSND, dtype, columns=columns)
    values.copy_((x.round() if dtype == torch.int8 else x).movedim(1, -1 if columns else 1))
    return values, scales.movedim(1, -1) if columns else scales


def empty(x_BSND: Tensor, dtype: torch.dtype, *, columns: bool) -> Tensor:
    """Return room for the 8-bit values of x."""
    B, S, N, D = x_BSND.shape
    shape = (B, N, D, -(-S // ALIGNED) * ALIGNED) if columns else (B, S, N, D)
    return torch.empty(shape, dtype=dtype, device=x_BSND.device)[..., : S if columns else D]
