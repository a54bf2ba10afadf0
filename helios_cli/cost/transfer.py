"""How fast weights come: from the disk, out of the page cache, over the bus to a GPU."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from helios_cli.cost.duration import Duration
from helios_cli.cost.memory import Budget, MemoryMode
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


def mode_seconds(
    mode: MemoryMode, budget: Budget, bandwidths: Bandwidths, duration: Duration, chunks: int
) -> tuple[float, float | None]:
    """Of a chunk, the mean of a film of so many: to bring its weights, and in all, None if that is not known.

    Streaming runs beside the computing; whole parts that take turns are waited for.
    """
    room = None if budget.host_bytes is None else max(0, budget.host_bytes - mode.host_bytes)
    transfer = transfer_seconds(mode, room, bandwidths)
    phases = (duration.denoise, duration.decode)
    if None in phases:
        return transfer, None
    computing = sum(phases) / chunks
    return transfer, computing + transfer if mode.name == "model" else max(computing, transfer)


def mode_report(mode: MemoryMode, layers: int, transfer: float, seconds: float | None, *, chosen: bool) -> dict:
    """A mode of a model of so many blocks; seconds are a chunk's."""
    return {
        "mode": mode.name,
        "chosen": chosen,
        "fits": mode.fits,
        "resident_blocks": mode.placement.resident if mode.name == "stream" else layers,
        "turns": mode.placement.takes_turns,
        **{key: getattr(mode, key) for key in ("device_bytes", "host_bytes", "moved_bytes", "read_bytes")},
        "transfer_seconds": transfer,
        "seconds": seconds,
        "phases": [{**asdict(phase), "total": phase.total} for phase in mode.phases],
    }
