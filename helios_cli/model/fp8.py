"""Products of fp8 values: weights are rounded once, activations row by row in each product.

Both factors are e4m3, 3 bits of mantissa, with a float32 scale for every row of the activation and every row of the
weight; the result has the type of the bias. Sums are float32, except for lengths for which this GPU is faster with
fewer bits and nearly as exact (`engine.choices`). The same call does it on a CPU, slower than bfloat16 there, so that
what fp8 does to a film can be seen anywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

import helios_kernels as kernels
from helios_cli.model import ops
from helios_cli.model.low_bit import LowBitLinear, widened_product
from helios_cli.model.ops import linear, right_dtype

ALIGNMENT = 16
"""Sizes of a weight have to be multiples of it."""


class Fp8(NamedTuple):
    """An activation: e4m3 values [..., E], float32 scales [..., 1]."""

    values: Tensor
    scales: Tensor

    @classmethod
    def of(cls, x: Tensor, *, gelu: bool = False) -> Fp8:
        """Round x, or its tanh-GELU, row by row."""
        return cls(*kernels.quantize(x, gelu=gelu))

    def rows(self, first: int) -> Fp8:
        """Return the rows from `first` on, of [B, S, E]. The scales are copied, as libraries may need them aligned."""
        return Fp8(self.values[:, first:], self.scales[:, first:].clone())


class Fp8Linear(nn.Module):
    """Stands in for an `nn.Linear`: `weight` is e4m3, `weight_scale` [out] float32. Never trained."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        weight = torch.empty(out_features, in_features, dtype=torch.float8_e4m3fn)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.weight_scale = nn.Parameter(torch.empty(out_features), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(out_features), requires_grad=False)

    def forward(self, x: Tensor | Fp8) -> Tensor:
        return product(x, self.weight, self.weight_scale, self.bias)


FAST_LENGTHS: set[int] = set()
"""Inputs of the layers whose products have fast sums on GPUs."""


def product(
    x: Tensor | Fp8, weight: Tensor, weight_scale: Tensor, bias: Tensor, *, fast_sums: bool | None = None
) -> Tensor:
    """`x @ (weight * weight_scale[:, None]).T + bias`, [..., out] in the type of `bias`.

    Sums are fast where `fast_sums`, by default where `FAST_LENGTHS` has their length.
    """
    values, scales = x if isinstance(x, Fp8) else Fp8.of(x)
    wide = right_dtype(values.device, "fp8", bias.dtype)
    if wide != bias.dtype:
        values, weight = values.to(wide) * scales.to(wide), weight.to(wide) * weight_scale[:, None].to(wide)
        return linear(values, weight, bias).to(bias.dtype)
    y = torch._scaled_mm(
        values.flatten(0, -2),
        weight.T,
        scale_a=scales.flatten(0, -2),
        scale_b=weight_scale[None],
        bias=bias,
        out_dtype=bias.dtype,
        use_fast_accum=weight.shape[1] in FAST_LENGTHS if fast_sums is None else fast_sums,
    )
    return y.unflatten(0, values.shape[:-1])


Layer = nn.Linear | Fp8Linear | LowBitLinear


def project(layer: Layer, x: Tensor | Fp8, *, gelu: bool = False) -> Tensor:
    if isinstance(layer, Fp8Linear):
        assert not gelu, "its result is rounded again, in one pass with the GELU"
        return layer(x)
    assert not isinstance(x, Fp8)
    if isinstance(layer, LowBitLinear):
        return layer(x, gelu=gelu)
    return linear(x, layer.weight, layer.bias, gelu=gelu)


def modulated_norm(layer: Layer, x_BSE: Tensor, scale: Tensor, shift: Tensor, split: int, eps: float) -> Tensor | Fp8:
    """Compute `ops.modulated_norm` as `layer` multiplies it: rounded to fp8 in the same pass where a kernel does."""
    if isinstance(layer, Fp8Linear) and kernels.runs(x_BSE, "modulated_norm_fp8"):
        return Fp8(*kernels.modulated_norm_fp8(x_BSE, scale, shift, split, eps))
    return _for(layer, ops.modulated_norm(x_BSE, scale, shift, split, eps))


def gated_residual_modulated_norm(
    layer: Layer,
    x_BSE: Tensor,
    y_BSE: Tensor,
    gate: Tensor,
    scale: Tensor,
    shift: Tensor,
    split: int,
    eps: float,
) -> tuple[Tensor, Tensor | Fp8]:
    """Compute `ops.gated_residual_modulated_norm`, (sum, norm), the norm as `layer` multiplies it."""
    if isinstance(layer, Fp8Linear) and kernels.runs(x_BSE, "gated_residual_modulated_norm_fp8"):
        normed = kernels.gated_residual_modulated_norm_fp8(x_BSE, y_BSE, gate, scale, shift, split, eps)
        return x_BSE, Fp8(*normed)
    x_BSE, u = ops.gated_residual_modulated_norm(x_BSE, y_BSE, gate, scale, shift, split, eps)
    return x_BSE, _for(layer, u)


def residual_modulated_norm(
    layer: Layer, x_BSE: Tensor, y_BSE: Tensor, scale: Tensor, shift: Tensor, split: int, eps: float
) -> tuple[Tensor, Tensor | Fp8]:
    """Compute `ops.residual_modulated_norm`, (sum, norm), the norm as `layer` multiplies it."""
    if isinstance(layer, Fp8Linear) and kernels.runs(x_BSE, "gated_residual_modulated_norm_fp8"):
        normed = kernels.gated_residual_modulated_norm_fp8(x_BSE, y_BSE, None, scale, shift, split, eps)
        return x_BSE, Fp8(*normed)
    x_BSE, u = ops.residual_modulated_norm(x_BSE, y_BSE, scale, shift, split, eps)
    return x_BSE, _for(layer, u)


def _for(layer: Layer, u: Tensor) -> Tensor | Fp8:
    return Fp8.of(u) if isinstance(layer, Fp8Linear) else u


def parameter_names(layer: Layer) -> tuple[str, ...]:
    """Return the names in the order in which `multiply` takes them."""
    return ("weight", "bias") if isinstance(layer, nn.Linear) else ("weight", "weight_scale", "bias")


def multiply(layer: Layer, x: Tensor | Fp8, *parameters: Tensor) -> Tensor:
    """Compute the product of a layer's kind with these parameters."""
    if isinstance(layer, Fp8Linear):
        return product(x, *parameters)
    assert isinstance(x, Tensor)
    return (widened_product if isinstance(layer, LowBitLinear) else linear)(x, *parameters)


def use_fp8(module: nn.Module, is_fp8: Callable[[str], bool]) -> nn.Module:
    """Replace every `nn.Linear` of `module` for whose weight's name `is_fp8` is true, values unset; returns `module`.

    Raises ValueError for a weight whose sizes are not multiples of 16.
    """
    for name, layer in list(module.named_modules()):
        if not is_fp8(f"{name}.weight"):
            continue
        if layer.in_features % ALIGNMENT or layer.out_features % ALIGNMENT:
            shape = f"{layer.out_features}x{layer.in_features}"
            raise ValueError(f"{name} is {shape}; fp8 products need multiples of {ALIGNMENT}")
        with layer.weight.device:
            replacement = Fp8Linear(layer.in_features, layer.out_features)
        parent, _, child = name.rpartition(".")
        setattr(module.get_submodule(parent), child, replacement)
    return module
