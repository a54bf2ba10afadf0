"""The phase that encodes clips ahead. It trains nothing."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from helios_cli.train.data.encode import ClipEncoder
from helios_cli.train.data.folder import encode_folder
from helios_cli.train.data.toy import encode_world
from helios_cli.train.events import Event, FillDone, FillStarted
from helios_cli.train.processes import rank_and_count
from helios_cli.train.settings.encoders import LatentsSettings
from helios_cli.weights.checkpoint import Checkpoint


def run(settings: LatentsSettings, start: Checkpoint, device: torch.device) -> Iterator[Event]:
    """Write what the cache `settings.out` lacks. Stopping a run loses one shard at most.

    Several processes share the shards of the toy world. A folder's clips are encoded by the first process only.
    """
    rank, count = rank_and_count()
    if settings.clips and rank:
        return
    yield FillStarted(settings.phase, settings.out, count if settings.world else 1, str(device), settings.dtype)
    encoder = ClipEncoder(start, device, getattr(torch, settings.dtype), settings.size)
    if settings.world:
        yield from encode_world(settings.folder, settings.world, settings.seed, encoder, (rank, count))
    else:
        yield from encode_folder(settings.folder, settings.clips, settings.seed, encoder)
    yield FillDone(settings.out)
