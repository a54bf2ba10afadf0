"""The sampler's element-wise work, each in one pass: the jump into a finer stage, and a distilled step."""

from __future__ import annotations

from torch import Tensor

from helios_kernels.dispatch import runs
from helios_kernels.sampler import reference


def renoise(x_BCTHW: Tensor, noise: Tensor, alpha: float, beta: float) -> Tensor:
    """Return `alpha * nearest_x2(x) + beta * noise` in float32, of [B, C, T, H, W] and [B, C, T, 2 H, 2 W]."""
    if not runs(x_BCTHW, "renoise"):
        return reference.renoise(x_BCTHW, noise, alpha, beta)
    from helios_kernels.sampler.kernel import run_renoise

    return run_renoise(x_BCTHW, noise, alpha, beta)


def dmd_step(x: Tensor, flow: Tensor, start_point: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """Go to x0 = x - sigma * flow, and back towards the stage's start: (1 - sigma_next) x0 + sigma_next * start_point.

    All of one shape, any dtypes; returns float32. With `sigma_next` 0 the result is x0 and `start_point` is not read.
    """
    if not runs(x, "dmd_step"):
        return reference.dmd_step(x, flow, start_point, sigma, sigma_next)
    from helios_kernels.sampler.kernel import run_dmd_step

    return run_dmd_step(x, flow, start_point, sigma, sigma_next)
