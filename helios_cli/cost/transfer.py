"""How fast weights come: from the disk, out of the page cache, over the bus to a GPU."""

from __future__ import annotations

from dataclasses import dataclass

from helios_cli.cost.memory import MemoryMode
from helios_cli.cost.speeds import read_bandwidths

STATED = {"disk": 1e9, "cache": 4e9, "upload": 20e9}
"""Bytes a second where nothing was measured: an NVMe disk's, one core's, PCIe 4.0's with 16 lanes."""


@dataclass(frozen=True)
class Bandwidths:
    """Bytes a second. `upload` is from pinned memory to the device; None on a CPU, which computes where it reads."""

    disk: float
    cache: float
    upload: float | None
    basis: str


def bandwidths_of(kind: str, device: str) -> Bandwidths:
    """Measured by `helios bench offload`, else stated. `kind` and name of a device."""
    known = read_bandwidths().get(device, {})
    values = {key: known.get(key, stated) for key, stated in STATED.items()}
    measured = [key for key in values if key in known and (key != "upload" or kind == "cuda")]
    basis = f"measured here: {', '.join(measured)}" if measured else "stated; `helios bench offload` measures"
    return Bandwidths(values["disk"], values["cache"], values["upload"] if kind == "cuda" else None, basis)


def transfer_seconds(mode: MemoryMode, room: int | None, bandwidths: Bandwidths) -> float:
    """Seconds a chunk that bringing its weights takes at least, `room` bytes of the files being in the page cache."""
    if mode.moved_bytes == 0:
        return 0.0
    cached = 1.0 if room is None else min(1.0, room / max(1, mode.pass_bytes))
    reading = mode.read_bytes * (cached / bandwidths.cache + (1 - cached) / bandwidths.disk)
    return max(reading, mode.moved_bytes / bandwidths.upload if bandwidths.upload else 0.0)


def chunk_seconds(mode: MemoryMode, computing: float | None, transfer: float) -> float | None:
    """Seconds a chunk: streaming runs beside the computing, whole parts that take turns are waited for."""
    if computing is None:
        return None
    return computing + transfer if mode.name == "model" else max(computing, transfer)
