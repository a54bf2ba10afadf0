"""Every way of placing a model, each as fast as it fits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from helios_cli.cost.memory import Budget, MemoryMode, Subject, mode_of, streams
from helios_cli.cost.transfer import Speed, speed_of
from helios_cli.weights.placement import Placement


def memory_modes(subject: Subject, budget: Budget, speed: Speed | None = None) -> tuple[MemoryMode, ...]:
    """Every mode that there is, placed for `budget`: none, model and, where blocks can stream, stream."""
    speed = speed or speed_of(subject)
    modes = [_none(subject, budget), mode_of(subject, budget, Placement("model"))]
    if streams(subject):
        modes.append(_best_stream(subject, budget, speed))
    return tuple(modes)


def fastest(modes: list[MemoryMode], budget: Budget, speed: Speed) -> MemoryMode:
    """The one whose chunks take least time; of equal ones, that which moves least.

    Where the computing speed is not known, it is the one whose weights are brought in least.
    """
    return min(modes, key=lambda mode: (speed.least_seconds(mode, budget), mode.waited_bytes, mode.moved_bytes))


def _none(subject: Subject, budget: Budget) -> MemoryMode:
    """On a GPU with all that makes it faster, or without: graphs go first, as they only spare launches."""
    placement = Placement("none", text_beside=False)
    found = mode_of(subject, budget, placement)
    if subject.device.kind == "cuda":
        for slower in ({"graphs": False}, {"graphs": False, "decode_beside": False}):
            if found.fits is not False:
                break
            found = mode_of(subject, budget, replace(placement, **slower))
    return found


def _best_stream(subject: Subject, budget: Budget, speed: Speed) -> MemoryMode:
    """With as many blocks on the device as fit; the VAE beside them, at work while they are or not, or in turns."""
    found = [_most_blocks(subject, budget, placement) for placement in _ways(subject)]
    fitting = [mode for mode in found if mode.fits]
    best = fastest(fitting, budget, speed) if fitting else min(found, key=lambda mode: mode.device_bytes)
    if budget.host_bytes is None:
        return best
    room = max(0, budget.host_bytes - best.host_bytes)
    cached = None if best.pass_bytes <= room else room
    return replace(best, placement=replace(best.placement, cached_bytes=cached))


def _ways(subject: Subject) -> Iterator[Placement]:
    yield Placement("stream")
    if subject.device.kind == "cuda" and subject.lanes == 1:
        yield Placement("stream", decode_beside=False)
    yield Placement("stream", turns=True)


def _most_blocks(subject: Subject, budget: Budget, placement: Placement) -> MemoryMode:
    """With as many blocks on the device as fit; with none if not even that does."""
    for resident in range(subject.model.dit.num_layers, 0, -1):
        mode = mode_of(subject, budget, replace(placement, resident=resident))
        if mode.fits:
            return mode
    return mode_of(subject, budget, replace(placement, resident=0))
