"""How fast weights come, from the disk, out of the page cache, over the bus to a GPU; and chunks with them."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from helios_cli.cost.duration import duration_of
from helios_cli.cost.gpus import LINKS, known_gpu
from helios_cli.cost.memory import Budget, MemoryMode, Subject
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
    known, gpu = read_bandwidths().get(device, {}), known_gpu(device)
    usual = {**STATED, "upload": LINKS[gpu[1].link]} if gpu else STATED
    values = {key: known.get(key, stated) for key, stated in usual.items()}
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


@dataclass(frozen=True)
class Speed:
    """Bandwidths, and seconds that a chunk of each lane is denoised and decoded for, None if that is not known."""

    bandwidths: Bandwidths
    denoise: float | None
    decode: float | None

    @property
    def computing(self) -> float | None:
        return None if self.denoise is None or self.decode is None else self.denoise + self.decode

    def transfer(self, mode: MemoryMode, budget: Budget) -> float:
        """Seconds a chunk that its weights take to come."""
        room = None if budget.host_bytes is None else max(0, budget.host_bytes - mode.host_bytes)
        return transfer_seconds(mode, room, self.bandwidths)

    def seconds(self, mode: MemoryMode, budget: Budget) -> float | None:
        """Of a chunk in all. What streams comes while the transformer computes, and while a chunk is decoded if that is
        beside it; what takes turns is waited for, but for what is read ahead."""
        if self.computing is None:
            return None
        return self._seconds(mode, budget, self.denoise, self.decode)

    def least_seconds(self, mode: MemoryMode, budget: Budget) -> float:
        """Those or, where they are not known, what its weights alone take."""
        return self._seconds(mode, budget, self.denoise or 0.0, self.decode or 0.0)

    def _seconds(self, mode: MemoryMode, budget: Budget, denoise: float, decode: float) -> float:
        transfer = self.transfer(mode, budget)
        a_byte = transfer / mode.moved_bytes if mode.moved_bytes else 0.0
        waited = a_byte * mode.waited_bytes
        streamed = transfer - waited
        transformer, vae = (a_byte * ahead for ahead in mode.ahead_bytes)
        waited -= min(transformer, decode) + min(vae, denoise)
        return waited + (max(streamed, denoise + decode) if mode.overlaps else max(streamed, denoise) + decode)


def speed_of(subject: Subject) -> Speed:
    """Of a film's chunk on average, as measured on this machine or stated."""
    plan, device = subject.plan, subject.device
    parameters = subject.model.parameters["transformer"]
    duration = duration_of(plan, subject.work, device, subject.dtype, parameters, subject.quant)
    share = subject.lanes / len(plan.chunks)
    denoise, decode = (part and part * share for part in (duration.denoise, duration.decode))
    return Speed(bandwidths_of(device.kind, device.name), denoise, decode)


def mode_report(mode: MemoryMode, layers: int, budget: Budget, speed: Speed, *, chosen: bool) -> dict:
    """A mode of a model of so many blocks; seconds are a chunk's."""
    return {
        "mode": mode.name,
        "chosen": chosen,
        "fits": mode.fits,
        "resident_blocks": mode.placement.resident if mode.name == "stream" else layers,
        "turns": mode.placement.takes_turns,
        **{key: getattr(mode, key) for key in ("device_bytes", "host_bytes", "moved_bytes", "read_bytes")},
        "transfer_seconds": speed.transfer(mode, budget),
        "seconds": speed.seconds(mode, budget),
        "phases": [{**asdict(phase), "total": phase.total} for phase in mode.phases],
    }
