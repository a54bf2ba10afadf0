"""One distilled step in one pass."""

from __future__ import annotations

from torch import Tensor

from helios_kernels.dispatch import runs
from helios_kernels.dmd_step import reference


def dmd_step(x: Tensor, flow: Tensor, start_point: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """x0 = x - sigma * flow, then back along the line to the stage's start: (1 - sigma_next) x0 + sigma_next * start.

    All of one shape, any dtypes; returns float32. With `sigma_next` 0 the result is x0 and `start_point` is not read.
    """
    if not runs(x, "dmd_step"):
        return reference.dmd_step(x, flow, start_point, sigma, sigma_next)
    from helios_kernels.dmd_step.kernel import run

    return run(x, flow, start_point, sigma, sigma_next)
