"""The distance of two films in different arithmetic: PSNR of latents and frames by chunk, from the same noise.

Each film continues from its own history, so a later chunk's distance includes the consequences of earlier ones.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from helios_cli.engine.clock import Clock
from helios_cli.engine.denoise import Denoiser
from helios_cli.engine.history import History
from helios_cli.engine.models import Models
from helios_cli.model.vae import frames_to_uint8
from helios_cli.recipe.plan import Plan
from helios_cli.units import PIXELS_PER_CELL

T = TypeVar("T")

EQUAL_DB = 100.0
"""In place of the infinite PSNR of equal tensors, for which JSON has no number."""


@dataclass(frozen=True)
class Distance:
    """PSNR of one chunk in dB: the peak is the other film's peak to peak for latents, 255 for frames."""

    chunk: int
    latents_db: float
    frames_db: float


@torch.inference_mode()
def film(models: Models, plan: Plan) -> list[tuple[Tensor, Tensor]]:
    """Render a film of one prompt; return latents [1, C, 9, H, W] and frames [33, 8H, 8W, 3] by chunk, on the host."""
    ((prompt, _),) = plan.chunks[0].prompts
    models.encode([prompt, plan.negative] if plan.guidance > 1 else [prompt])
    text = models.embed_text(((prompt, 1.0),))
    negative = models.embed_text(((plan.negative, 1.0),)) if plan.guidance > 1 else None
    settings = replace(models.checkpoint.preset, steps=plan.steps, guidance=plan.guidance)
    denoiser = Denoiser(
        models.dit,
        models.scheduler,
        settings,
        plan.size,
        Clock(models.device),
        models.answer,
        reuse_history=plan.reuse_history,
        reuse_steps=plan.reuse_steps,
    )
    width, height = (pixels // PIXELS_PER_CELL for pixels in plan.size)
    history = History.empty(models.dit_config.in_channels, height, width, models.device)
    generator = torch.Generator("cpu").manual_seed(plan.chunks[0].seed or 0)
    chunks = []
    for chunk in plan.chunks:
        amplify = chunk.fresh and settings.amplify_first_chunk
        steps = denoiser.chunk(chunk.index, history, text, negative, generator, amplify=amplify)
        latents = _returned(steps)
        history.remember(latents)
        frames = [frames_to_uint8(group)[0].cpu() for group in models.vae.decode(latents)]
        chunks.append((latents.cpu(), torch.cat(frames)))
    return chunks


def distances(ours: list[tuple[Tensor, Tensor]], other: list[tuple[Tensor, Tensor]]) -> Iterator[Distance]:
    """Yield the distance of each chunk of `ours` from the `other` film of the same plan."""
    for chunk, (a, b) in enumerate(zip(ours, other, strict=True)):
        latents_peak = (b[0].max() - b[0].min()).item()
        yield Distance(chunk, psnr_db(a[0], b[0], latents_peak), psnr_db(a[1], b[1], 255))


def psnr_db(a: Tensor, b: Tensor, peak: float) -> float:
    error = (a.double() - b.double()).square().mean().item()
    return EQUAL_DB if error == 0 else min(EQUAL_DB, 10 * math.log10(peak**2 / error))


def _returned(steps: Generator[object, None, T]) -> T:
    """Run a generator, and return its result."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value
