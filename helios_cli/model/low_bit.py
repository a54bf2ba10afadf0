"""Products with weights in 8 or 4 bits, which are widened to the type of the activation for each product.

int8    a row's largest magnitude becomes 127; the nearest integer; one float32 scale a row
nf4     16 levels, the quantiles of a normal distribution between -1 and 1 with a zero (Dettmers et al. 2023); the
        largest magnitude of 64 neighbours becomes 1; the nearest level; one float32 scale for each 64. Two weights
        a byte, the first one in the upper half. Bytes and scales are those of bitsandbytes (0.50.2 compared).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from helios_cli.model.ops import linear

LowBit = Literal["int8", "nf4"]
LOW_BITS: tuple[LowBit, ...] = get_args(LowBit)

DTYPES: dict[LowBit, torch.dtype] = {"int8": torch.int8, "nf4": torch.uint8}

NEIGHBOURS = 64
"""Weights of a row that share a scale in nf4."""

_SMALLEST = 1e-12
_ROWS = 1024
"""Rows that are widened at a time, so that the float32 values of a whole weight are never there."""


class LowBitLinear(nn.Module):
    """Stands in for an `nn.Linear`; its weight and scales are those of `round_weight`. Never trained."""

    def __init__(self, in_features: int, out_features: int, kind: LowBit) -> None:
        super().__init__()
        values, scales = shapes(out_features, in_features, kind)
        self.weight = nn.Parameter(torch.empty(values, dtype=DTYPES[kind]), requires_grad=False)
        self.weight_scale = nn.Parameter(torch.empty(scales), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(out_features), requires_grad=False)

    def forward(self, x: Tensor, *, gelu: bool = False) -> Tensor:
        return widened_product(x, self.weight, self.weight_scale, self.bias, gelu=gelu)


def widened_product(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor, *, gelu: bool = False) -> Tensor:
    """Compute `ops.linear` with the widened weight."""
    return linear(x, widen(weight, weight_scale, x.dtype), bias, gelu=gelu)


def use_low_bit(module: nn.Module, is_low_bit: Callable[[str], bool], kind: LowBit) -> nn.Module:
    """Replace every `nn.Linear` of `module` for whose weight's name `is_low_bit` is true, values unset; returns it.

    Raises ValueError for a weight that `kind` cannot hold.
    """
    for name, layer in list(module.named_modules()):
        if not is_low_bit(f"{name}.weight"):
            continue
        if kind == "nf4" and layer.in_features % NEIGHBOURS:
            raise ValueError(f"{name} has {layer.in_features} inputs; nf4 needs multiples of {NEIGHBOURS}")
        with layer.weight.device:
            replacement = LowBitLinear(layer.in_features, layer.out_features, kind)
        parent, _, child = name.rpartition(".")
        setattr(module.get_submodule(parent), child, replacement)
    return module


# The arithmetic


def shapes(out_features: int, in_features: int, kind: LowBit) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shapes of a weight's values and scales. In nf4 inputs have to be a multiple of NEIGHBOURS."""
    if kind == "int8":
        return (out_features, in_features), (out_features,)
    return (out_features, in_features // 2), (out_features * in_features // NEIGHBOURS,)


def round_weight(weight: Tensor, kind: LowBit) -> tuple[Tensor, Tensor]:
    """Return values and scales of a weight [out, in]."""
    weight = weight.float()
    if kind == "int8":
        scale = weight.abs().amax(1).clamp_min(_SMALLEST) / 127
        return (weight / scale[:, None]).round().clamp(-127, 127).to(torch.int8), scale
    groups = weight.reshape(-1, NEIGHBOURS)
    scale = groups.abs().amax(1).clamp_min(_SMALLEST)
    levels = torch.bucketize(groups / scale[:, None], _borders(weight.device)).to(torch.uint8)
    pairs = levels.view(len(weight), -1, 2)
    return (pairs[..., 0] << 4) | pairs[..., 1], scale


def widen(values: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the weight [out, in] in `dtype`, each value times its scale rounded once."""
    packed = values.dtype == torch.uint8
    rows, columns = len(values), values.shape[1] * (2 if packed else 1)
    scales = scales.view(rows, -1)
    out = torch.empty(rows, columns, dtype=dtype, device=values.device)
    for first in range(0, rows, _ROWS):
        piece = slice(first, first + _ROWS)
        if packed:
            wide = torch.nn.functional.embedding(values[piece].int(), _pairs(values.device))
            groups = wide.view(len(wide), -1, NEIGHBOURS) * scales[piece, :, None]
            out[piece] = groups.view(len(wide), -1)
        else:
            out[piece] = values[piece] * scales[piece]
    return out


@functools.cache
def levels() -> Tensor:
    """Return the 16 levels of nf4, ascending: 8 quantiles above zero and 7 below it, as shares of the outermost one."""
    outermost, line = 0.9677083, partial(torch.linspace, dtype=torch.float64, device="cpu")
    upper = torch.special.ndtri(line(outermost, 0.5, 9)[:-1])
    lower = -torch.special.ndtri(line(outermost, 0.5, 8)[:-1])
    found = torch.cat([upper, line(0.0, 0.0, 1), lower]).sort().values
    return (found / found.max()).float()


@functools.cache
def _borders(device: torch.device) -> Tensor:
    return ((levels()[1:] + levels()[:-1]) / 2).to(device)


@functools.cache
def _pairs(device: torch.device) -> Tensor:
    """Return both levels of each byte, [256, 2]."""
    byte = torch.arange(256, device="cpu")
    upper, lower = byte // 16, byte % 16
    return torch.stack([levels()[upper], levels()[lower]], dim=1).to(device)
