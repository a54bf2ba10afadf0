"""The sampler's element-wise work, each in one pass: the jump into a finer stage, and a distilled step."""

from __future__ import annotations

from torch import Tensor

from helios_kernels.dispatch import Operation, wide


@Operation
def renoise(x_BCTHW: Tensor, noise: Tensor, alpha: float, beta: float) -> Tensor:
    """Return `alpha * nearest_x2(x) + beta * noise` in float32, of [B, C, T, H, W] and [B, C, T, 2 H, 2 W]."""
    upsampled = wide(x_BCTHW).repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2)
    return alpha * upsampled + beta * wide(noise)


@Operation
def dmd_step(x: Tensor, flow: Tensor, start_point: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """Go to x0 = x - sigma * flow, and back towards the stage's start: (1 - sigma_next) x0 + sigma_next * start_point.

    All of one shape, any dtypes; returns float32. With `sigma_next` 0 the result is x0 and `start_point` is not read.
    """
    x0 = wide(x) - sigma * wide(flow)
    return x0 if sigma_next == 0 else (1 - sigma_next) * x0 + sigma_next * wide(start_point)
