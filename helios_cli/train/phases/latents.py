"""The phase that encodes clips ahead. Nothing is trained in it."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from helios_cli.train.data.encode import ClipEncoder
from helios_cli.train.data.folder import encode_folder
from helios_cli.train.data.toy import encode_world
from helios_cli.train.events import Event, FillDone, FillStarted
from helios_cli.train.settings.latents import Settings
from helios_cli.train.spread import part_of_run
from helios_cli.weights.checkpoint import Checkpoint


def run(settings: Settings, start: Checkpoint, device: torch.device) -> Iterator[Event]:
    """Fill the cache `settings.out` with what is not in it yet. A run that is stopped has lost one shard at most.

    Several processes share the world's shards. A folder's clips are the first one's, which names those it skips.
    """
    rank, count = part_of_run()
    if settings.clips and rank:
        return
    yield FillStarted(settings.phase, settings.out, count if settings.world else 1, str(device), settings.dtype)
    encoder = ClipEncoder(start, device, getattr(torch, settings.dtype), settings.size)
    if settings.world:
        yield from encode_world(settings.folder, settings.world, settings.seed, encoder, (rank, count))
    else:
        yield from encode_folder(settings.folder, settings.clips, settings.seed, encoder)
    yield FillDone(settings.out)
