from __future__ import annotations

from torch import Tensor

from helios_kernels.precision import wide


def renoise(x_BCTHW: Tensor, noise: Tensor, alpha: float, beta: float) -> Tensor:
    upsampled = wide(x_BCTHW).repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2)
    return alpha * upsampled + beta * wide(noise)
