"""Random numbers, all from one CPU generator in the reference's order, so that a seed means one film on every device.

Order within a chunk: the initial noise, then the block noise of stage 1, then of stage 2.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def draw(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draw standard normal float32 numbers on the CPU."""
    return torch.randn(shape, generator=generator, dtype=torch.float32)


def coarsest(noise_BCTHW: Tensor, stages: int) -> Tensor:
    """Return the noise for stage 0: `stages - 1` times halved by bilinear interpolation of 2x2 cells and doubled.

    The mean of four normal numbers has half their deviation; the factor restores it.
    """
    frames = noise_BCTHW.transpose(1, 2).flatten(0, 1)
    for _ in range(stages - 1):
        frames = 2 * F.interpolate(frames, size=(frames.shape[-2] // 2, frames.shape[-1] // 2), mode="bilinear")
    return frames.unflatten(0, (noise_BCTHW.shape[0], -1)).transpose(1, 2)


class BlockNoise:
    """Noise whose p_h x p_w blocks nearly sum to 0: what nearest upsampling takes away from white noise.

    Within a block the covariance is (1 + gamma) I - gamma 11^T + 1e-8 I, applied through its Cholesky factor because
    that fixes which film a seed means. At gamma = 1/3 the smallest eigenvalue is the 1e-8 alone. In float32, which
    diffusers uses, the last pivot is rounding error: 4e-4 on Intel CPUs, below zero and so a crash on AMD ones. In
    float64 it is 2e-4 everywhere.
    """

    def __init__(self, gamma: float, patch_size: tuple[int, int, int]) -> None:
        self.block = patch_size[1:]
        cells = self.block[0] * self.block[1]
        identity, ones = torch.eye(cells, dtype=torch.float64), torch.ones(cells, cells, dtype=torch.float64)
        self.factor = torch.linalg.cholesky((1 + gamma + 1e-8) * identity - gamma * ones).float()

    def draw(self, shape: tuple[int, int, int, int, int], generator: torch.Generator) -> Tensor:
        """Draw [B, C, T, H, W] float32 on the CPU; H and W are multiples of the block."""
        b, c, t, h, w = shape
        p_h, p_w = self.block
        cells = torch.randn(b * c * t * (h // p_h) * (w // p_w), p_h * p_w, generator=generator) @ self.factor.T
        return cells.view(b, c, t, h // p_h, w // p_w, p_h, p_w).transpose(4, 5).reshape(shape)
