from __future__ import annotations

from torch import Tensor

from helios_kernels.precision import wide


def renoise(x_BCTHW: Tensor, noise: Tensor, alpha: float, beta: float) -> Tensor:
    upsampled = wide(x_BCTHW).repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2)
    return alpha * upsampled + beta * wide(noise)


def dmd_step(x: Tensor, flow: Tensor, start_point: Tensor, sigma: float, sigma_next: float) -> Tensor:
    x0 = wide(x) - sigma * wide(flow)
    return x0 if sigma_next == 0 else (1 - sigma_next) * x0 + sigma_next * wide(start_point)
