from __future__ import annotations

import torch
from torch import Tensor

from helios_kernels.precision import wide


def qk_norm_rope(x_BSWE: Tensor, weight_WE: Tensor, rope_SD2: Tensor | None, heads: int, eps: float) -> Tensor:
    y = wide(x_BSWE)
    y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps) * wide(weight_WE)
    if rope_SD2 is not None:
        even, odd = y.unflatten(-1, (heads, -1, 2)).unbind(-1)
        cos, sin = rope_SD2[:, None, None].unbind(-1)
        y = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-3)
    return y.to(x_BSWE.dtype)
