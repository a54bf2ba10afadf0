"""RMSNorm over all heads together, weight and rotation, in place on slices of one fused product."""

from __future__ import annotations

from torch import Tensor

from helios_kernels.dispatch import runs
from helios_kernels.qk_norm_rope import reference


def qk_norm_rope(x_BSWE: Tensor, weight_WE: Tensor, rope_SD2: Tensor | None, heads: int, eps: float) -> Tensor:
    """Normalise each row of E channels, multiply it by its weight and rotate the (even, odd) pairs of every head.

    `x` is [B, S, W, E], W slices that share the rotation: `qkv[..., : 2 * E].unflatten(-1, (2, E))` for queries and
    keys of a product [B, S, 3 E], or W = 1. It may have any strides with contiguous rows, and is changed in place and
    returned. `weight` is [W, E]. `rope` is [S, D/2, 2] float32 (cos, sin), contiguous; |cos + i sin| may be below 1
    where it was pooled. None means no rotation.
    """
    if not runs(x_BSWE, "qk_norm_rope"):
        return x_BSWE.copy_(reference.qk_norm_rope(x_BSWE, weight_WE, rope_SD2, heads, eps))
    from helios_kernels.qk_norm_rope.kernel import run

    return run(x_BSWE, weight_WE, rope_SD2, heads, eps)
