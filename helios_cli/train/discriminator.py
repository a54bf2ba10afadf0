"""Heads that tell real clips from the student's by the critic's features, and the losses of that game.

A head reads the hidden rows of one block as a picture [B, E, T, rows, columns]. A low logit means real.

Shapes: B samples, E width of the transformer, T latent frames, D heads.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helios_cli.train.score import per_sample

CONVOLUTIONS = (
    # kernel, stride
    ((3, 3, 3), (1, 1, 1)),
    ((4, 4, 4), (2, 2, 2)),
    ((4, 4, 4), (2, 2, 2)),
    ((3, 3, 3), (2, 1, 1)),
    ((3, 3, 3), (2, 1, 1)),
    ((1, 3, 3), (1, 1, 1)),
)
"""The layers of a head: the picture becomes four times smaller, and 9 frames become one."""

LEAST_PATCHES = 4
"""Fewest rows and columns that can be halved twice."""

GROUPS = 32
FAKE, REAL = -1.0, 1.0
"""Labels of the discriminator's samples; the generator labels its own samples real."""


class Head(nn.Module):
    """Convolutions, each with GroupNorm and SiLU, then the mean over the picture and one logit."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for kernel, stride in CONVOLUTIONS:
            padding = tuple(size // 2 if size < 4 else 1 for size in kernel)
            layers.append(nn.Conv3d(width, channels, kernel, stride, padding))
            layers += [nn.GroupNorm(max(1, min(GROUPS, channels // 16)), channels), nn.SiLU()]
            width = channels
        self.layers = nn.Sequential(*layers)
        self.logit = nn.Linear(channels, 1)

    def forward(self, hidden_BETHW: Tensor) -> Tensor:
        """Return the logits, [B]."""
        return self.logit(self.layers(hidden_BETHW).mean((2, 3, 4)))[:, 0]


class Heads(nn.Module):
    """One head for the rows after each of `blocks`, counted from 0."""

    def __init__(self, width: int, blocks: Sequence[int], channels: int) -> None:
        super().__init__()
        self.blocks = tuple(blocks)
        self.heads = nn.ModuleList(Head(width, channels) for _ in self.blocks)

    def forward(self, hidden: Sequence[Tensor], grid: tuple[int, int, int]) -> Tensor:
        """Return the logits [B, D] of the hidden rows [B, T * rows * columns, E] after each block."""
        pictures = [rows.transpose(1, 2).unflatten(2, grid) for rows in hidden]
        return torch.stack([head(picture) for head, picture in zip(self.heads, pictures, strict=True)], dim=1)


def adversarial_loss(logits_BD: Tensor, label: float) -> Tensor:
    """Return the mean of `softplus(label * logit)` over heads, [B]."""
    return F.softplus(label * logits_BD.float()).mean(1)


def smoothness_loss(logits_BD: Tensor, perturbed_BD: Tensor) -> Tensor:
    """Return approximate R1 (of real samples) or R2 (of fake ones), [B]: the squared effect of small noise on logits.

    It replaces the squared norm of the logit's gradient, without a second derivative (Lin et al. 2025, APT).
    """
    return per_sample((logits_BD.float() - perturbed_BD.float()).square())


def crop_window(size: tuple[int, int], patch: tuple[int, int], generator: torch.Generator) -> tuple[slice, slice]:
    """Draw a window of half the height and width of `size` in cells, at whole patches.

    A side whose half is too small for a head stays whole.
    """
    windows = []
    for side, step in zip(size, patch, strict=True):
        length = side // 2 // step * step
        if length < LEAST_PATCHES * step:
            windows.append(slice(0, side))
            continue
        start = int(torch.randint((side - length) // step + 1, (), generator=generator)) * step
        windows.append(slice(start, start + length))
    return windows[0], windows[1]
