"""Makes the history that a segment starts from: empty, or of a picture or a clip.

Conditioning latents are mixed with a little noise, since generated history is never quite clean. Random numbers are
drawn in the order of the reference: first all of the encoder's, then the sigmas and the noise.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from helios_cli.engine.gpu import to_device
from helios_cli.engine.history import History
from helios_cli.model.vae import WanVAE
from helios_cli.recipe.plan import Chunk, Plan
from helios_cli.sampling.noise import draw
from helios_cli.units import FRAMES_PER_CHUNK, HISTORY_CHUNKS, LATENTS_PER_CHUNK, PIXELS_PER_CELL

if TYPE_CHECKING:
    from helios_cli.engine.models import Models
    from helios_cli.film.media import VideoClip

NOISE_SIGMA = (0.111, 0.135)
"""Range of the noise share of conditioning latents."""


@dataclass(frozen=True)
class Start:
    """The beginning of a segment, and a notice about it."""

    history: History
    generator: torch.Generator
    notice: str | None = None


def start_of(chunk: Chunk, plan: Plan, models: Models) -> Start:
    """Return what `chunk`, the first of a segment, begins with. InputError if its picture or clip cannot be read.

    A picture or clip is encoded where the VAE is, and its history is moved to the transformer as a whole.
    """
    width, height = plan.size
    device = models.vae_device if chunk.image or chunk.video else models.device
    channels = models.dit_config.in_channels
    history = History.empty(channels, height // PIXELS_PER_CELL, width // PIXELS_PER_CELL, device)
    assert chunk.seed is not None, "a fresh chunk has a seed"
    start = Start(history, torch.Generator("cpu").manual_seed(chunk.seed))
    if chunk.image is None and chunk.video is None:
        return start
    from helios_cli.film.media import VideoClip, read_image  # which import Pillow

    if chunk.image:
        start_from_picture(history, models.vae, read_image(chunk.image, plan.size), start.generator)
        return start
    assert chunk.video is not None
    clip = VideoClip(chunk.video, plan.size, plan.fps)
    start_from_clip(history, models.vae, clip, start.generator)
    if not clip.info.high_dynamic_range:
        return start
    return replace(start, notice=f"{chunk.video} is HDR and is not tone mapped: the film starts flat and grey")


def start_from_picture(history: History, vae: WanVAE, picture_3HW: np.ndarray, generator: torch.Generator) -> None:
    """Set the anchor and the newest frame from a float32 picture in [-1, 1].

    The anchor is the picture as a clip of one frame. The newest history frame is the last latent of the picture held
    for a whole chunk, because first latents look unlike the later ones.
    """
    device = history.latents.device
    frame = to_device(torch.from_numpy(picture_3HW)[None, :, None], device)
    anchor = vae.encode(frame, generator)
    held = vae.encode(frame.expand(-1, -1, FRAMES_PER_CHUNK, -1, -1), generator)[:, :, -1:]
    history.anchor = _with_noise(anchor, _sigmas(1, generator), generator)
    history.push(_with_noise(held, _sigmas(1, generator), generator))


def start_from_clip(history: History, vae: WanVAE, clip: VideoClip, generator: torch.Generator) -> None:
    """Set the history from the last whole chunks of a clip, and the anchor from its first frame.

    Chunks that are too early to be in the history are not read; only their random numbers are drawn.
    """
    device = history.latents.device
    anchor = vae.encode(to_device(torch.from_numpy(clip.first_frame())[None], device), generator)
    shape = (1, *history.latents.shape[1:2], LATENTS_PER_CHUNK, *history.latents.shape[3:])
    forgotten = max(0, clip.num_chunks - HISTORY_CHUNKS)
    for _ in range(forgotten):
        torch.randn(shape, generator=generator, dtype=vae.dtype)
    clips = (to_device(torch.from_numpy(frames)[None], device) for frames in clip.chunks(forgotten))
    encoded = [vae.encode(frames, generator) for frames in clips]
    history.anchor = _with_noise(anchor, _sigmas(1, generator), generator)
    for _ in range(forgotten):
        _sigmas(LATENTS_PER_CHUNK, generator)
        draw(shape, generator)
    for latents in encoded:
        history.push(_with_noise(latents, _sigmas(LATENTS_PER_CHUNK, generator), generator))


def _sigmas(count: int, generator: torch.Generator) -> Tensor:
    low, high = NOISE_SIGMA
    return torch.rand(count, generator=generator) * (high - low) + low


def _with_noise(latents_1CTHW: Tensor, sigma_T: Tensor, generator: torch.Generator) -> Tensor:
    sigma = to_device(sigma_T.view(1, 1, -1, 1, 1), latents_1CTHW.device)
    noise = to_device(draw(tuple(latents_1CTHW.shape), generator), latents_1CTHW.device)
    return sigma * noise + (1 - sigma) * latents_1CTHW
