"""Small networks and a cache of small clips, for the tests of the phases that train on clips."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from helios_cli.architecture import DiTConfig
from helios_cli.model.dit import HeliosDiT
from helios_cli.train.data.cache import CacheNote, EncodedClip, LatentClips, open_cache, shard_path, write_shard
from helios_cli.units import LATENTS_PER_CHUNK

CONFIG = DiTConfig(
    num_attention_heads=2, attention_head_dim=16, text_dim=32, freq_dim=32, ffn_dim=64, num_layers=2, rope_dim=(4, 6, 6)
)
SHAPE = (16, 8, 8)
ROWS = 6
"""Rows of text."""


def network(seed: int = 0) -> HeliosDiT:
    """Return random weights with which the flow is far from zero and reacts to all inputs."""
    torch.manual_seed(seed)
    made = HeliosDiT(CONFIG)
    with torch.no_grad():
        for block in made.blocks:
            block.attn2.to_out[0].weight.mul_(12)
            block.attn1.to_out[0].weight.mul_(4)
    return made


def frame(clip: int, index: int) -> Tensor:
    """The latent frame `index` of a clip: its number in every place, as float16 has it exactly."""
    return torch.full(SHAPE, 100.0 * clip + index + 1)


def cache(folder: Path, lengths: tuple[int, ...], name: str = "a", first: int = 0) -> LatentClips:
    """Clips of these many chunks, whose frames are `frame`; their captions are "clip N"."""
    empty = torch.full((1, CONFIG.text_dim), -1.0)
    open_cache(folder, CacheNote("an encoder", {"clips": "of a test"}, SHAPE, CONFIG.text_dim), empty)
    clips, rows = [], {}
    for clip, chunks in enumerate(lengths, start=first):
        frames = [frame(clip, i) for i in range(LATENTS_PER_CHUNK * chunks)]
        latents = torch.stack(frames, dim=1).unflatten(1, (chunks, -1)).movedim(1, 0)
        clips.append(EncodedClip(latents, (f"clip {clip}",) * chunks))
        rows[f"clip {clip}"] = torch.full((3, CONFIG.text_dim), float(clip))
    write_shard(shard_path(folder, name), clips, rows)
    return LatentClips(folder, text_rows=ROWS)


def generators(count: int, seed: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(1000 * seed + i) for i in range(count)]
