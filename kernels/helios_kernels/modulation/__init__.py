"""LayerNorm with its scale and shift, and the gate and residual add before it, in one pass over the stream.

The stream [B, S, E] has contiguous rows, history before row `split` and noisy rows after it; modulation rows are
[B or 1, 2, E] float32, the first for history and the second for noisy rows. The functions with a residual are one
kernel and change the stream in place: `y` has a row for every row of the stream, or only for the noisy ones
(cross-attention does not change history); `gate` None is a gate of 1.

The two norms before fp8 products have a form that rounds its rows to fp8 as well, as `quantize` would do next: a row is
one program, and its largest magnitude is at hand. Bits are those of the two passes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from helios_kernels.dispatch import Operation, wide
from helios_kernels.quantize import quantize


@Operation
def modulated_norm(x_BSE: Tensor, scale: Tensor, shift: Tensor, split: int, eps: float) -> Tensor:
    """Return `norm(x) * (1 + scale) + shift`, [B, S, E] in the dtype of `x`, contiguous."""
    y = F.layer_norm(wide(x_BSE), x_BSE.shape[-1:], eps=eps)
    history = y[:, :split] * (1 + scale[:, :1]) + shift[:, :1]
    noisy = y[:, split:] * (1 + scale[:, 1:]) + shift[:, 1:]
    return torch.cat([history, noisy], dim=1).to(x_BSE.dtype)


@Operation
def modulated_norm_fp8(x_BSE: Tensor, scale: Tensor, shift: Tensor, split: int, eps: float) -> tuple[Tensor, Tensor]:
    """Return `quantize` of `modulated_norm`: fp8 values [B, S, E] and float32 scales [B, S, 1]."""
    return quantize.twin(modulated_norm.twin(x_BSE, scale, shift, split, eps))


@Operation
def gated_residual(x_BSE: Tensor, y_BSE: Tensor, gate: Tensor | None, split: int) -> Tensor:
    """Set x to `x + y * gate`, computed in float32 and rounded once, and return it; `y` is [B, S or S - split, E]."""
    start = x_BSE.shape[1] - y_BSE.shape[1]
    y = wide(y_BSE)
    if gate is not None:
        history = split - start
        y = torch.cat([y[:, :history] * gate[:, :1], y[:, history:] * gate[:, 1:]], dim=1)
    x_BSE[:, start:] = wide(x_BSE[:, start:]) + y
    return x_BSE


@Operation
def gated_residual_modulated_norm(
    x_BSE: Tensor, y_BSE: Tensor, gate: Tensor | None, scale: Tensor, shift: Tensor, split: int, eps: float
) -> Tensor:
    """Apply `gated_residual` to x, and return `modulated_norm` of the rounded result: [B, S, E], contiguous."""
    return modulated_norm.twin(gated_residual.twin(x_BSE, y_BSE, gate, split), scale, shift, split, eps)


@Operation
def gated_residual_modulated_norm_fp8(
    x_BSE: Tensor, y_BSE: Tensor, gate: Tensor | None, scale: Tensor, shift: Tensor, split: int, eps: float
) -> tuple[Tensor, Tensor]:
    """Apply `gated_residual` to x, and return `modulated_norm_fp8` of the rounded result."""
    return modulated_norm_fp8.twin(gated_residual.twin(x_BSE, y_BSE, gate, split), scale, shift, split, eps)


@Operation
def gated_residual_layer_norm(
    x_BSE: Tensor, y_BSE: Tensor, gate: Tensor | None, weight_E: Tensor, bias_E: Tensor, split: int, eps: float
) -> Tensor:
    """Apply `gated_residual` to x, and return the affine LayerNorm of its noisy rows: [B, S - split, E], contiguous."""
    noisy = gated_residual.twin(x_BSE, y_BSE, gate, split)[:, split:]
    return F.layer_norm(wide(noisy), noisy.shape[-1:], wide(weight_E), wide(bias_E), eps).to(x_BSE.dtype)
