"""LayerNorm with its scale and shift, and the gate and residual add before it, in one pass over the stream.

The two norms before fp8 products have a form that rounds its rows to fp8 as well, as `quantize` would do next: a row is
one program, and its largest magnitude is at hand. Bits are those of the two passes.

The stream [B, S, E] has contiguous rows, history before row `split` and noisy rows after it; modulation rows are
[B or 1, 2, E] float32, one for history and one for noisy rows. The three functions with a residual are one kernel and
change the stream in place: `y` has a row for every row of the stream, or only for the noisy ones (cross-attention does
not change history); `gate` None is a gate of 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from helios_kernels.dispatch import runs
from helios_kernels.modulation import reference
from helios_kernels.quantize import quantize


def modulated_norm(x_BSE: Tensor, scale: Tensor, shift: Tensor, split: int, eps: float) -> Tensor:
    """Return `norm(x) * (1 + scale) + shift`, [B, S, E] in the dtype of `x`, contiguous.

    Rows before `split` take `scale[:, 0]` and `shift[:, 0]`, later rows `scale[:, 1]` and `shift[:, 1]`.
    """
    if not runs(x_BSE, "modulated_norm"):
        return reference.modulated_norm(x_BSE, scale, shift, split, eps)
    from helios_kernels.modulation.kernel import run_norm

    return run_norm(x_BSE, scale, shift, split, eps, base=1.0)


def modulated_norm_fp8(
    x_BSE: Tensor,
    scale: Tensor,
    shift: Tensor,
    split: int,
    eps: float,
    *,
    dtype: torch.dtype = torch.float8_e4m3fn,
) -> tuple[Tensor, Tensor]:
    """Return `quantize` of `modulated_norm`: fp8 values [B, S, E] and float32 scales [B, S, 1]."""
    if not runs(x_BSE, "modulated_norm_fp8"):
        return quantize(modulated_norm(x_BSE, scale, shift, split, eps), dtype=dtype)
    from helios_kernels.modulation.kernel import run_norm

    return run_norm(x_BSE, scale, shift, split, eps, base=1.0, fp8=dtype)


def layer_norm(x_BSE: Tensor, weight_E: Tensor, bias_E: Tensor, eps: float) -> Tensor:
    """Return `norm(x) * weight + bias`, computed in float32 and rounded once to the dtype of `x`: [B, S, E]."""
    if not runs(x_BSE, "layer_norm"):
        return reference.layer_norm(x_BSE, weight_E, bias_E, eps)
    from helios_kernels.modulation.kernel import run_norm

    weight, bias = (vector.expand(1, 2, -1) for vector in (weight_E, bias_E))
    return run_norm(x_BSE, weight, bias, 0, eps, base=0.0)


def gated_residual(x_BSE: Tensor, y_BSE: Tensor, gate: Tensor | None, split: int) -> Tensor:
    """Set x to `x + y * gate`, computed in float32 and rounded once, and return it.

    `y` is [B, S or S - split, E]. Rows before `split` take `gate[:, 0]`, later rows `gate[:, 1]`.
    """
    if not runs(x_BSE, "gated_residual"):
        return x_BSE.copy_(reference.gated_residual(x_BSE, y_BSE, gate, split))
    from helios_kernels.modulation.kernel import run_residual

    return run_residual(x_BSE, y_BSE, gate, split)


def gated_residual_modulated_norm(
    x_BSE: Tensor, y_BSE: Tensor, gate: Tensor | None, scale: Tensor, shift: Tensor, split: int, eps: float
) -> Tensor:
    """Apply `gated_residual` to x, and return `modulated_norm` of the rounded result: [B, S, E], contiguous."""
    if not runs(x_BSE, "gated_residual_modulated_norm"):
        x, normed = reference.gated_residual_modulated_norm(x_BSE, y_BSE, gate, scale, shift, split, eps)
        x_BSE.copy_(x)
        return normed
    from helios_kernels.modulation.kernel import run_residual

    return run_residual(x_BSE, y_BSE, gate, split, norm=(scale, shift), base=1.0, eps=eps)


def gated_residual_modulated_norm_fp8(
    x_BSE: Tensor,
    y_BSE: Tensor,
    gate: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    split: int,
    eps: float,
    *,
    dtype: torch.dtype = torch.float8_e4m3fn,
) -> tuple[Tensor, Tensor]:
    """Apply `gated_residual` to x, and return `modulated_norm_fp8` of the rounded result."""
    if not runs(x_BSE, "gated_residual_modulated_norm_fp8"):
        return quantize(gated_residual_modulated_norm(x_BSE, y_BSE, gate, scale, shift, split, eps), dtype=dtype)
    from helios_kernels.modulation.kernel import run_residual

    return run_residual(x_BSE, y_BSE, gate, split, norm=(scale, shift), base=1.0, eps=eps, fp8=dtype)


def gated_residual_layer_norm(
    x_BSE: Tensor, y_BSE: Tensor, gate: Tensor | None, weight_E: Tensor, bias_E: Tensor, split: int, eps: float
) -> Tensor:
    """Apply `gated_residual` to x, and return the affine LayerNorm of its noisy rows: [B, S - split, E], contiguous."""
    if not runs(x_BSE, "gated_residual_layer_norm"):
        x, normed = reference.gated_residual_layer_norm(x_BSE, y_BSE, gate, weight_E, bias_E, split, eps)
        x_BSE.copy_(x)
        return normed
    from helios_kernels.modulation.kernel import run_residual

    weight, bias = (vector.expand(1, 2, -1) for vector in (weight_E, bias_E))
    return run_residual(x_BSE, y_BSE, gate, split, norm=(weight, bias), base=0.0, eps=eps, norm_from=split)
