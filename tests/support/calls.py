"""One call of the transformer, by diffusers' and by ours, with the same inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from helios_cli.model.dit import HeliosDiT
from helios_cli.units import LATENTS_PER_CHUNK, LONG_TERM, MAX_TEXT_TOKENS, MID_TERM
from support import checkpoints

if TYPE_CHECKING:
    from diffusers import HeliosTransformer3DModel

INDICES = torch.arange(29)


def inputs(height: int, width: int, shrink: int = 1, seed: int = 1) -> dict[str, torch.Tensor]:
    """Latents of the terms at (height, width), noisy latents smaller by `shrink`, and a prompt of 37 rows."""
    g = torch.Generator().manual_seed(seed)

    def draw(frames: int, h: int = height, w: int = width) -> torch.Tensor:
        return torch.randn(1, 16, frames, h, w, generator=g)

    return dict(
        long=draw(LONG_TERM),
        mid=draw(MID_TERM),
        short=draw(2),
        noisy=draw(LATENTS_PER_CHUNK, height // shrink, width // shrink),
        text=torch.randn(1, 37, checkpoints.DIT["text_dim"], generator=g),
    )


def call_theirs(model: HeliosTransformer3DModel, x: dict, timestep: torch.Tensor) -> torch.Tensor:
    padded = torch.nn.functional.pad(x["text"], (0, 0, 0, MAX_TEXT_TOKENS - x["text"].shape[1]))
    return model(
        hidden_states=x["noisy"].to(model.dtype),
        timestep=timestep,
        encoder_hidden_states=padded.to(model.dtype),
        indices_hidden_states=INDICES[20:][None],
        indices_latents_history_short=INDICES[[0, 19]][None],
        indices_latents_history_mid=INDICES[17:19][None],
        indices_latents_history_long=INDICES[1:17][None],
        latents_history_short=x["short"].to(model.dtype),
        latents_history_mid=x["mid"].to(model.dtype),
        latents_history_long=x["long"].to(model.dtype),
        return_dict=False,
    )[0]


def call_ours(model: HeliosDiT, x: dict, timestep: torch.Tensor, text: torch.Tensor | None = None) -> torch.Tensor:
    grids = [tuple(side // 2 for side in x[name].shape[-2:]) for name in ("short", "noisy")]
    return model(
        x["noisy"],
        model.embed_history(x["long"], x["mid"], x["short"]),
        model.modulation(timestep),
        model.rope(*grids),
        model.embed_text(x["text"] if text is None else text),
    )
