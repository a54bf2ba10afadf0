"""LayerNorm in float32 with its scale and shift, in one pass over the stream."""

from __future__ import annotations

from torch import Tensor

from helios_kernels.dispatch import runs
from helios_kernels.modulated_norm import reference


def modulated_norm(x_BSE: Tensor, scale: Tensor, shift: Tensor, split: int, eps: float) -> Tensor:
    """`norm(x) * (1 + scale) + shift`, rows before `split` by `scale[:, 0]`, the others by `scale[:, 1]`.

    `x` is [B, S, E] with contiguous rows, `scale` and `shift` are [B or 1, 2, E] float32 with contiguous rows.
    Returns [B, S, E] in the dtype of `x`, contiguous.
    """
    if not runs(x_BSE, "modulated_norm"):
        return reference.modulated_norm(x_BSE, scale, shift, split, eps)
    from helios_kernels.modulated_norm.kernel import run

    return run(x_BSE, scale, shift, split, eps, base=1.0)


def layer_norm(x_BSE: Tensor, weight_E: Tensor, bias_E: Tensor, eps: float) -> Tensor:
    """`norm(x) * weight + bias` in float32, rounded once to the dtype of `x`. [B, S, E], contiguous."""
    if not runs(x_BSE, "layer_norm"):
        return reference.layer_norm(x_BSE, weight_E, bias_E, eps)
    from helios_kernels.modulated_norm.kernel import run

    weight, bias = (vector.expand(1, 2, -1) for vector in (weight_E, bias_E))
    return run(x_BSE, weight, bias, 0, eps, base=0.0)
