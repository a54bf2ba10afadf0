"""Frame-aware corruption of the past: it imitates a model's own chunks, with damage drawn for each latent frame.

Generated history is never quite clean, and its faults (noise, lost detail, drifting exposure and colours) grow from
chunk to chunk unless the model has seen such history in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from helios_cli.train.settings.flow import Corruption

NONE, NOISE, BLUR, EXPOSURE, SATURATION = range(5)


@dataclass(frozen=True)
class Damage:
    """The damage to the T frames of a sample.

    Attributes:
        kind: [T], one of the five kinds.
        sigma, ratio, factor: [T], the amount of each frame's damage.
        noise: [C, T, H, W].
    """

    kind: Tensor
    sigma: Tensor
    ratio: Tensor
    factor: Tensor
    noise: Tensor


def corrupt(
    past_BCTHW: Tensor, anchor_BC1HW: Tensor, settings: Corruption, generators: Sequence[Generator]
) -> tuple[Tensor, Tensor]:
    """Return the damaged past and anchor. Each sample draws from its own generator.

    Empty (zero) latents stay empty; the anchor keeps its exposure and colours, which it exists to preserve.
    """
    frames = torch.cat([past_BCTHW, anchor_BC1HW], dim=2)
    filled = frames.ne(0).flatten(3).any(3).any(1)  # [B, T]
    chosen, damages = [], []
    for i, g in enumerate(generators):
        if filled[i].any() and torch.rand((), generator=g).item() >= settings.clean:
            damages.append(draw_damage(settings, tuple(frames.shape[1:]), filled[i], g))
            chosen.append(i)
    if chosen:
        frames[chosen] = apply_damage(frames[chosen], damages)
    return frames[:, :, :-1], frames[:, :, -1:]


def draw_damage(
    settings: Corruption, shape: tuple[int, int, int, int], filled_T: Tensor, generator: Generator
) -> Damage:
    """Draw the damage for a sample of shape [C, T, H, W], the last frame of which is the anchor."""
    count = shape[1]

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(count, generator=generator) * (high - low) + low

    kind = torch.multinomial(torch.tensor(settings.shares), count, replacement=True, generator=generator)
    if kind[-1] in (EXPOSURE, SATURATION):
        kind[-1] = NONE
    darker = torch.rand(count, generator=generator) < 0.5
    return Damage(
        kind=torch.where(filled_T, kind, NONE),
        sigma=uniform(*settings.sigma),
        ratio=uniform(*settings.ratio),
        factor=torch.where(darker, uniform(*settings.darker), uniform(*settings.brighter)),
        noise=torch.randn(shape, generator=generator),
    )


def apply_damage(frames_BCTHW: Tensor, damages: Sequence[Damage]) -> Tensor:
    """Damage frame by frame: `(1 - sigma) z + sigma noise`; a smaller size and back; `factor z`; or
    `factor (z - m) + m`, with m the mean over the channels at each place."""

    def all_of(name: str) -> Tensor:
        return torch.stack([getattr(damage, name) for damage in damages])

    kind = all_of("kind")
    sigma, factor = (all_of(name)[:, None, :, None, None] for name in ("sigma", "factor"))
    is_kind = [(kind == each)[:, None, :, None, None] for each in range(5)]
    z = frames_BCTHW
    sigma = sigma * is_kind[NOISE]
    damaged = (1 - sigma) * z + sigma * all_of("noise")
    factor = torch.where(is_kind[EXPOSURE] | is_kind[SATURATION], factor, 1.0)
    still = z.mean(1, keepdim=True) * is_kind[SATURATION]
    damaged = factor * (damaged - still) + still
    return _blurred(damaged, kind == BLUR, all_of("ratio"))


def _blurred(frames_BCTHW: Tensor, chosen_BT: Tensor, ratio_BT: Tensor) -> Tensor:
    """Scale chosen frames down and back; frames of one size are scaled together."""
    height, width = frames_BCTHW.shape[-2:]
    if not chosen_BT.any():
        return frames_BCTHW
    frames = frames_BCTHW.transpose(1, 2).contiguous()  # [B, T, C, H, W]
    sizes = torch.stack([ratio_BT * height, ratio_BT * width], dim=-1).round().clamp_min(1).long()
    for h, w in sizes[chosen_BT].unique(dim=0).tolist():
        if (h, w) == (height, width):
            continue
        same = chosen_BT & (sizes == torch.tensor([h, w])).all(-1)
        small = F.interpolate(frames[same], size=(h, w), mode="bilinear", antialias=True)
        frames[same] = F.interpolate(small, size=(height, width), mode="bilinear", antialias=True)
    return frames.transpose(1, 2)
