from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from helios_kernels.precision import wide
from helios_kernels.quantize.reference import quantize


def modulated_norm(x_BSE: Tensor, scale: Tensor, shift: Tensor, split: int, eps: float) -> Tensor:
    y = F.layer_norm(wide(x_BSE), x_BSE.shape[-1:], eps=eps)
    history = y[:, :split] * (1 + scale[:, :1]) + shift[:, :1]
    noisy = y[:, split:] * (1 + scale[:, 1:]) + shift[:, 1:]
    return torch.cat([history, noisy], dim=1).to(x_BSE.dtype)


def modulated_norm_fp8(
    x_BSE: Tensor, scale: Tensor, shift: Tensor, split: int, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    return quantize(modulated_norm(x_BSE, scale, shift, split, eps), dtype=dtype)


def layer_norm(x_BSE: Tensor, weight_E: Tensor, bias_E: Tensor, eps: float) -> Tensor:
    return F.layer_norm(wide(x_BSE), x_BSE.shape[-1:], wide(weight_E), wide(bias_E), eps).to(x_BSE.dtype)


def gated_residual(x_BSE: Tensor, y_BSE: Tensor, gate: Tensor | None, split: int) -> Tensor:
    start = x_BSE.shape[1] - y_BSE.shape[1]
    y = wide(y_BSE)
    if gate is not None:
        history = split - start
        y = torch.cat([y[:, :history] * gate[:, :1], y[:, history:] * gate[:, 1:]], dim=1)
    return torch.cat([x_BSE[:, :start], (wide(x_BSE[:, start:]) + y).to(x_BSE.dtype)], dim=1)


def gated_residual_modulated_norm(
    x_BSE: Tensor, y_BSE: Tensor, gate: Tensor | None, scale: Tensor, shift: Tensor, split: int, eps: float
) -> tuple[Tensor, Tensor]:
    x = gated_residual(x_BSE, y_BSE, gate, split)
    return x, modulated_norm(x, scale, shift, split, eps)


def gated_residual_modulated_norm_fp8(
    x_BSE: Tensor,
    y_BSE: Tensor,
    gate: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    split: int,
    eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    x = gated_residual(x_BSE, y_BSE, gate, split)
    return x, *modulated_norm_fp8(x, scale, shift, split, eps, dtype)


def gated_residual_layer_norm(
    x_BSE: Tensor, y_BSE: Tensor, gate: Tensor | None, weight_E: Tensor, bias_E: Tensor, split: int, eps: float
) -> tuple[Tensor, Tensor]:
    x = gated_residual(x_BSE, y_BSE, gate, split)
    return x, layer_norm(x[:, split:], weight_E, bias_E, eps)
