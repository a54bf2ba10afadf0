"""A checkpoint rendered in each way of placing it, and measured against what its transfers and its computing allow."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import astuple

import torch

from helios_cli.bench.driver import DriverWatch
from helios_cli.bench.job import Job, Result, run
from helios_cli.cost.memory import Budget, MemoryMode, Subject, mode_of
from helios_cli.cost.model import opened
from helios_cli.cost.modes import memory_modes
from helios_cli.cost.tokens import count_tokens
from helios_cli.cost.work import texts_of, work_of
from helios_cli.device import find_device
from helios_cli.errors import MachineError
from helios_cli.recipe.plan import Plan
from helios_cli.weights.checkpoint import Checkpoint
from helios_cli.weights.fp8 import Quant
from helios_cli.weights.hub import Source
from helios_cli.weights.placement import Placement

LEAST_SECONDS = 5.0
"""In which a film can at least begin."""

Placed = tuple[MemoryMode, int | None]
"""A mode, and the budget in bytes that it was placed in."""


def subject_of(
    name: str,
    checkpoint: Checkpoint,
    plan: Plan,
    device: torch.device,
    dtype: torch.dtype,
    quant: Quant = "none",
) -> Subject:
    """What `helios plan` goes by for this plan on `device`."""
    model = opened(name, Source(folder=checkpoint.path), checkpoint)
    prompts, kind = count_tokens(model, texts_of(plan)), str(dtype).removeprefix("torch.")
    seen = find_device(str(device)).with_model(model.parameters["transformer"])
    return Subject(plan, model, work_of(plan, model, prompts, kind), prompts, seen, kind, quant)


def placements(subject: Subject, amounts: Sequence[int] | None) -> tuple[list[Placed], list[int]]:
    """The modes to measure, first those without a budget, then stream in each of `amounts` that it fits, on a CPU
    without any with none, half and all of the blocks kept; and the amounts that nothing streams in."""
    free = Budget(None, None)
    found, small = [(mode_of(subject, free, Placement(mode)), None) for mode in ("none", "model")], []
    if amounts is None:
        layers = subject.model.dit.num_layers
        kept = sorted({0, layers // 2, layers})
        return [*found, *((mode_of(subject, free, Placement("stream", count)), None) for count in kept)], small
    for amount in amounts:
        budget = Budget(None, amount) if subject.device.kind == "cpu" else Budget(amount, None)
        streams = [mode for mode in memory_modes(subject, budget) if mode.name == "stream"]
        if streams and streams[0].fits:
            found.append((streams[0], amount))
        else:
            small.append(amount)
    return found, small


def measure(
    checkpoint: Checkpoint,
    subject: Subject,
    placed: Sequence[Placed],
    rates: dict[str, float],
    device: torch.device,
    *,
    seconds: float | None = None,
) -> Iterator[tuple[MemoryMode, dict | MachineError]]:
    """What came of each mode: `told`, or the error where memory, or the `seconds` for all, did not suffice.

    `rates` are `bandwidth.bandwidths`.
    """
    end, computing, chunks = time.perf_counter() + (seconds or 0), None, len(subject.plan.chunks)
    for mode, budget in placed:
        left = None if seconds is None else end - time.perf_counter()
        if left is not None and left < LEAST_SECONDS:
            yield mode, MachineError("no time was left for it", hint="allow more time")
            continue
        with DriverWatch(str(device)) as watch:
            result = _film(checkpoint, subject, mode, budget, device, left)
        if isinstance(result, MachineError):
            yield mode, result
            continue
        taken = (result.seconds - result.phases["text"]) / chunks
        if mode.name == "none":
            computing = taken
        yield mode, told(mode, budget, result, watch.peak_bytes, taken, computing, rates)


def _film(
    checkpoint: Checkpoint,
    subject: Subject,
    mode: MemoryMode,
    budget: int | None,
    device: torch.device,
    seconds: float | None,
) -> Result | MachineError:
    """In a process of its own, held to its budget on a GPU."""
    plan = subject.plan
    job = Job(
        folder=str(checkpoint.path),
        synthetic=None,
        size=plan.size,
        num_frames=plan.num_frames,
        steps=plan.steps,
        dtype=subject.dtype,
        device=str(device),
        threads=0,
        film="",
        placement=astuple(mode.placement),
        vram=budget,
    )
    try:
        return run("ours", job, timeout=seconds)
    except MachineError as error:
        return error


def told(
    mode: MemoryMode,
    budget: int | None,
    result: Result,
    driver: int | None,
    seconds: float,
    computing: float | None,
    rates: dict[str, float],
) -> dict:
    """A row. `floor_seconds`: the larger of what the transfers take at the measured bandwidths, the files being in the
    page cache, and what a chunk takes with nothing offloaded. `driver`: the peak in bytes as nvidia-smi says it."""
    # The budget is of what computes: a GPU's memory by the widest of the three counts, or the host's.
    device_peaks = [peak for peak in (result.peak_device_bytes, result.peak_reserved_bytes, driver) if peak is not None]
    peak = max(device_peaks, default=result.peak_host_bytes)
    reading = mode.read_bytes / rates["cache"] if mode.name != "none" else 0.0
    upload = mode.moved_bytes / rates["upload"] if "upload" in rates else 0.0
    floor = max(reading, upload, computing or 0.0)
    return {
        "mode": mode.name,
        "budget_bytes": budget,
        "resident_blocks": mode.placement.resident if mode.name == "stream" else None,
        "turns": mode.placement.takes_turns,
        "planned_device_bytes": mode.device_bytes,
        "planned_host_bytes": mode.host_bytes,
        "peak_device_bytes": result.peak_device_bytes,
        "peak_reserved_bytes": result.peak_reserved_bytes,
        "peak_driver_bytes": driver,
        "peak_host_bytes": result.peak_host_bytes,
        "over_budget": budget is not None and peak > budget,
        "moved_bytes": mode.moved_bytes,
        "seconds": seconds,
        "floor_seconds": floor,
        "ratio": seconds / floor if floor else None,
    }
