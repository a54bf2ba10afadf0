"""Gate, residual add and the next norm with its modulation: the stream is read and written once.

The three functions are one kernel. The stream is changed in place. `y` has a row for every row of the stream, or for
the noisy ones alone (cross-attention leaves history as it is); `gate` None is a gate of 1.
"""

from __future__ import annotations

from torch import Tensor

from helios_kernels.dispatch import runs
from helios_kernels.gated_residual import reference


def gated_residual(x_BSE: Tensor, y_BSE: Tensor, gate: Tensor | None, split: int) -> Tensor:
    """`x + y * gate` in float32, rounded once; rows before `split` by `gate[:, 0]`, the others by `gate[:, 1]`.

    `x` is [B, S, E] and `y` [B, S or S - split, E], both with contiguous rows; `gate` is [B or 1, 2, E] float32.
    Returns `x`.
    """
    if not runs(x_BSE, "gated_residual"):
        return x_BSE.copy_(reference.gated_residual(x_BSE, y_BSE, gate, split))
    from helios_kernels.gated_residual.kernel import run

    run(x_BSE, y_BSE, gate, split)
    return x_BSE


def gated_residual_modulated_norm(
    x_BSE: Tensor, y_BSE: Tensor, gate: Tensor | None, scale: Tensor, shift: Tensor, split: int, eps: float
) -> Tensor:
    """`gated_residual` into `x`, then `modulated_norm` of it: returns [B, S, E], contiguous.

    The norm is that of the rounded stream, as if the two were called one after the other.
    """
    if not runs(x_BSE, "gated_residual_modulated_norm"):
        x, normed = reference.gated_residual_modulated_norm(x_BSE, y_BSE, gate, scale, shift, split, eps)
        x_BSE.copy_(x)
        return normed
    from helios_kernels.gated_residual.kernel import run

    return run(x_BSE, y_BSE, gate, split, norm=(scale, shift), base=1.0, eps=eps)


def gated_residual_layer_norm(
    x_BSE: Tensor, y_BSE: Tensor, gate: Tensor | None, weight_E: Tensor, bias_E: Tensor, split: int, eps: float
) -> Tensor:
    """`gated_residual` into `x`, then the affine LayerNorm of its noisy rows: returns [B, S - split, E], contiguous."""
    if not runs(x_BSE, "gated_residual_layer_norm"):
        x, normed = reference.gated_residual_layer_norm(x_BSE, y_BSE, gate, weight_E, bias_E, split, eps)
        x_BSE.copy_(x)
        return normed
    from helios_kernels.gated_residual.kernel import run

    weight, bias = (vector.expand(1, 2, -1) for vector in (weight_E, bias_E))
    return run(x_BSE, y_BSE, gate, split, norm=(weight, bias), base=0.0, eps=eps, norm_from=split)
