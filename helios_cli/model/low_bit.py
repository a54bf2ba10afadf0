"""Products with weights in 8 or 4 bits, which are widened to the type of the activation for each product."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from helios_cli.model.ops import linear
from helios_kernels.low_bit import DTYPES, NEIGHBOURS, LowBit, shapes, widen


class LowBitLinear(nn.Module):
    """Stands in for an `nn.Linear`; its weight and scales are those of `helios_kernels.low_bit`. Never trained."""

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
