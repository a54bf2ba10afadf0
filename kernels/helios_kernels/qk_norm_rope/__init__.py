"""RMSNorm over all heads together, weight and rotation, in place on slices of one fused product."""

from __future__ import annotations

import torch
from torch import Tensor

from helios_kernels.dispatch import Operation, wide


@Operation
def qk_norm_rope(x_BSWE: Tensor, weight_WE: Tensor, rope_SD2: Tensor | None, heads: int, eps: float) -> Tensor:
    """Set x to `x / sqrt(mean(x^2) + eps) * weight`, means over rows of E channels, rotate the (even, odd) pairs (a, b)
    of every head to (a cos - b sin, a sin + b cos), and return it.

    `x` is [B, S, W, E], W slices that share the rotation: `qkv[..., : 2 * E].unflatten(-1, (2, E))` for queries and
    keys of a product [B, S, 3 E], or W = 1. It may have any strides with contiguous rows. `weight` is [W, E]. `rope` is
    [S, D/2, 2] float32 (cos, sin), contiguous; |cos + i sin| may be below 1 where it was pooled; None is no rotation.
    """
    y = wide(x_BSWE)
    y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps) * wide(weight_WE)
    if rope_SD2 is not None:
        even, odd = y.unflatten(-1, (heads, -1, 2)).unbind(-1)
        cos, sin = rope_SD2[:, None, None].unbind(-1)
        y = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-3)
    return x_BSWE.copy_(y)
