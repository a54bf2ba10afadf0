"""Distribution matching: a gradient on the student's samples towards those the teacher would make.

Both score networks see the student's sample with noise, `x_t = (1 - sigma) x + sigma noise`, and predict the clean
sample. Where the frozen one (real) and the one trained on the student's samples (fake) disagree, the sample moves
towards the real one's prediction (Yin et al. 2024, improved in DMD2; with x0 in place of scores).

Shapes: B samples, `...` the axes of a sample. Losses are one number a sample.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

TINY = 1e-8
"""Keeps the gradient finite where the real score predicts the sample itself."""


def per_sample(x: Tensor) -> Tensor:
    """Return the mean over all axes except the first."""
    return x.flatten(1).mean(1)


def over(value_B: Tensor, x: Tensor) -> Tensor:
    """Reshape `value_B` to multiply the samples of `x`."""
    return value_B.view(-1, *[1] * (x.ndim - 1))


def noised(x: Tensor, noise: Tensor, sigma_B: Tensor) -> Tensor:
    """Return `(1 - sigma) x + sigma noise`."""
    sigma = over(sigma_B, x)
    return (1 - sigma) * x + sigma * noise


def x0_of(noisy: Tensor, flow: Tensor, sigma_B: Tensor) -> Tensor:
    """Return the clean sample that the flow (noise - x0) predicts."""
    return noisy - over(sigma_B, noisy) * flow.float()


def matching_gradient(x: Tensor, x0_real: Tensor, x0_fake: Tensor) -> Tensor:
    """Return `(x0_fake - x0_real) / mean|x - x0_real|`, with the mean over each sample, in float64 and detached."""
    x, x0_real, x0_fake = (value.detach().double() for value in (x, x0_real, x0_fake))
    scale = per_sample((x - x0_real).abs()).clamp_min(TINY)
    return (x0_fake - x0_real) / over(scale, x)


def matching_loss(x: Tensor, gradient: Tensor) -> Tensor:
    """Return `mean (x - (x - gradient))^2 / 2` with a fixed target, [B] in float64.

    Its derivative is `gradient` divided by the number of elements.
    """
    target = x.detach().double() - gradient
    return 0.5 * per_sample((x.double() - target).square())


def flow_loss(flow: Tensor, noise: Tensor, x0: Tensor) -> Tensor:
    """Return the mean squared error of a predicted flow against `noise - x0`, [B]."""
    return per_sample((flow.float() - (noise - x0)).square())


@dataclass(frozen=True)
class ScoreTimes:
    """The distribution of the sigma at which scores are compared.

    Attributes:
        shift: maps a draw u to `shift u / (1 + (shift - 1) u)`; values over 1 shift towards noise.
        low, high: bounds of sigma.
        begin: (a, b) of the Beta distribution that u is drawn from at step 0.
        anneal: steps until it is uniform, (1, 1), along half a cosine.
    """

    shift: float
    low: float
    high: float
    begin: tuple[float, float]
    anneal: int

    def beta(self, step: int) -> tuple[float, float]:
        """Return (a, b) at a step."""
        done = min(step / self.anneal, 1.0) if self.anneal else 1.0
        left = 0.5 * (1 + math.cos(math.pi * done))
        a, b = self.begin
        return 1 + (a - 1) * left, 1 + (b - 1) * left

    def draw(self, step: int, generator: torch.Generator) -> float:
        """Draw one sigma."""
        seed = int(torch.randint(2**62, (), generator=generator))  # torch draws Beta only from its global generator
        u = np.random.default_rng(seed).beta(*self.beta(step))
        sigma = self.shift * u / (1 + (self.shift - 1) * u)
        return float(min(max(sigma, self.low), self.high))
