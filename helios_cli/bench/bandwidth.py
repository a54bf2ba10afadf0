"""How fast this machine brings weights, measured on a checkpoint's own files by the code that streams them."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

from helios_cli.weights.checkpoint import Checkpoint
from helios_cli.weights.load import stored_of
from helios_cli.weights.offload import pinned_memory
from helios_cli.weights.reader import Stored, WeightFiles, reading_threads

SAMPLE_BYTES = 2_000_000_000
"""Read at most: some seconds of a disk, and more than any of its own caches."""

UPLOAD_BYTES = 256 * 2**20
UPLOADS = 8


def bandwidths(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Bytes a second, as stored, from the disk and out of the page cache into `dtype`, and as they are to a GPU.

    `disk` is left out where the kernel keeps the files in its cache whatever it is told.
    """
    sample, size = [], 0
    for place in stored_of(checkpoint.component("transformer")).values():
        if len(place.info.shape) == 2 and size < SAMPLE_BYTES:
            sample.append(place)
            size += place.info.bytes
    files = WeightFiles()
    try:
        for place in sample:
            files.forget(place)
        found = {"disk": size / _seconds(lambda: _read(sample, files, device, dtype))}
        found["cache"] = size / min(_seconds(lambda: _read(sample, files, device, dtype)) for _ in range(2))
    finally:
        files.close()
    if found["disk"] > 0.8 * found["cache"]:
        del found["disk"]
    if device.type == "cuda":
        found["upload"] = _upload(device)
    return found


def _read(sample: list[Stored], files: WeightFiles, device: torch.device, dtype: torch.dtype) -> None:
    def piece(work: tuple[Stored, tuple[int, int]]) -> None:
        place, rows = work
        files.read(place, torch.empty((rows[1] - rows[0], place.info.shape[1]), dtype=dtype), rows, check=False)

    with ThreadPoolExecutor(reading_threads(device)) as readers:
        list(readers.map(piece, [(place, rows) for place in sample for rows in place.pieces()]))


def _upload(device: torch.device) -> float:
    host = pinned_memory(UPLOAD_BYTES)
    target = torch.empty(UPLOAD_BYTES, dtype=torch.uint8, device=device)

    def copy() -> None:
        for _ in range(UPLOADS):
            target.copy_(host, non_blocking=True)
        torch.cuda.synchronize(device)

    copy()
    return UPLOADS * UPLOAD_BYTES / _seconds(copy)


def _seconds(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
