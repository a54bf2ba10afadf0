"""The jump into a finer stage in one pass."""

from __future__ import annotations

from torch import Tensor

from helios_kernels.dispatch import runs
from helios_kernels.renoise import reference


def renoise(x_BCTHW: Tensor, noise: Tensor, alpha: float, beta: float) -> Tensor:
    """`alpha * nearest_x2(x) + beta * noise`: [B, C, T, H, W] and [B, C, T, 2 H, 2 W] -> the latter, float32."""
    if not runs(x_BCTHW, "renoise"):
        return reference.renoise(x_BCTHW, noise, alpha, beta)
    from helios_kernels.renoise.kernel import run

    return run(x_BCTHW, noise, alpha, beta)
