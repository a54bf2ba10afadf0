"""The training side of pyramid flow matching: the line that each stage's sample moves along.

Stage k leads from its start point, the upsampled clean latents of stage k - 1 with noise, to its end point, its own
clean latents with less of the same noise (Jin et al. 2024). At sampling the start point is what stage k - 1 ended
with, upsampled and renoised; both have the same mean and covariance.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from helios_cli.sampling.noise import coarsest
from helios_cli.sampling.schedule import SIGMA_MAX, SchedulerConfig, shifted, stage_spans
from helios_cli.units import LATENTS_PER_CHUNK


def coarse(clean_BCTHW: Tensor, halvings: int) -> Tensor:
    """Clean latents of a coarser stage: the means of 2x2 cells, `halvings` times."""
    return F.avg_pool3d(clean_BCTHW, (1, 2**halvings, 2**halvings)) if halvings else clean_BCTHW


def points(clean_BCTHW: Tensor, noise_BCTHW: Tensor, config: SchedulerConfig, stage: int) -> tuple[Tensor, Tensor]:
    """Start and end point of a stage, both with the noise of the stage's size, [B, C, 9, h, w].

    `clean` and `noise` are of the last stage's size. The start point of stage 0 is noise alone.
    """
    span, halvings = stage_spans(config)[stage], config.stages - 1 - stage
    noise = coarsest(noise_BCTHW, halvings + 1)
    end = span.end * noise + (1 - span.end) * coarse(clean_BCTHW, halvings)
    if stage == 0:
        return noise, end
    before = F.interpolate(coarse(clean_BCTHW, halvings + 1), scale_factor=(1, 2, 2), mode="nearest")
    return span.start * noise + (1 - span.start) * before, end


def draw_sigmas(share_B: Tensor, config: SchedulerConfig, stage: int, tokens: int) -> tuple[Tensor, Tensor]:
    """Local sigmas and the whole timesteps that they are told as, from numbers between 0 and 1.

    The numbers are steps of the sampler's even grid, so that sigmas are as dense as its steps are: 1 is its first,
    `tokens` (those of the stage before, as for the sampler) shift them all.
    """
    sigmas = shifted(config, share_B.double().numpy() * SIGMA_MAX, tokens)
    told = np.floor(stage_spans(config)[stage].told(config, sigmas))
    return torch.from_numpy(sigmas).float(), torch.from_numpy(told).float()


def shift_tokens(config: SchedulerConfig, stage: int, grid: tuple[int, int]) -> int:
    """Noisy tokens of the stage before `stage` (of the first, for the first), by the last stage's grid of patches."""
    halvings = config.stages - 1 - max(stage - 1, 0)
    return LATENTS_PER_CHUNK * (grid[0] >> halvings) * (grid[1] >> halvings)
