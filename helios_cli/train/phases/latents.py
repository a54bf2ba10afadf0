"""The phase that encodes clips ahead. Nothing is trained in it."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from helios_cli.train.data.encode import ClipEncoder
from helios_cli.train.data.folder import encode_folder
from helios_cli.train.data.toy import encode_world
from helios_cli.train.events import Event
from helios_cli.train.settings.latents import Settings
from helios_cli.weights.checkpoint import Checkpoint


def run(settings: Settings, start: Checkpoint, device: torch.device) -> Iterator[Event]:
    """Fill the cache `settings.out` with what is not in it yet. A run that is stopped has lost one shard at most."""
    encoder = ClipEncoder(start, device, getattr(torch, settings.dtype), settings.size)
    if settings.world:
        return encode_world(settings.folder, settings.world, settings.seed, encoder)
    return encode_folder(settings.folder, settings.clips, settings.seed, encoder)
