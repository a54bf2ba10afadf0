"""A checkpoint rendered in each way of placing it, against the floor of its transfers and its computing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple
from typing import Any

import torch

from helios_cli.bench.task import Result, Task, run
from helios_cli.cost.memory import MemoryBudget, MemoryPlan, plan_memory
from helios_cli.cost.model import model_of
from helios_cli.cost.placing import memory_plans
from helios_cli.cost.workload import Workload
from helios_cli.device import find_device
from helios_cli.errors import MachineError
from helios_cli.recipe.plan import Plan
from helios_cli.weights.checkpoint import Checkpoint
from helios_cli.weights.fp8 import Quant
from helios_cli.weights.load import stored_of
from helios_cli.weights.offload import pinned_memory
from helios_cli.weights.placement import Placement
from helios_cli.weights.reader import StoredTensor, WeightFiles, reading_threads

LEAST_SECONDS = 5.0
"""Seconds in which a film can at least begin."""

SAMPLE_BYTES = 2_000_000_000
"""Bytes read at most: some seconds of a disk, and more than any of its own caches."""

UPLOAD_BYTES = 256 * 2**20
UPLOADS = 8

SECONDS_BETWEEN = 0.1
"""Seconds between two queries of the driver."""

Placed = tuple[MemoryPlan, int | None]
"""A mode, and the budget in bytes that it was placed in."""


def workload_of(
    name: str, checkpoint: Checkpoint, plan: Plan, device: torch.device, dtype: torch.dtype, quant: Quant = "none"
) -> Workload:
    """Return what `helios plan` computes memory from, for this plan on `device`."""
    model, kind = model_of(name, checkpoint), str(dtype).removeprefix("torch.")
    here = find_device(str(device)).with_model(model.parameters["transformer"])
    return Workload(plan, model, here, kind, quant)


def placements(load: Workload, amounts: Sequence[int] | None) -> tuple[list[Placed], list[int]]:
    """Return the modes to measure, and the amounts that nothing streams in.

    First come the modes without a budget, then stream in each of `amounts` that it fits; on a CPU without any amounts,
    stream with none, half and all of the blocks kept.
    """
    free, small = MemoryBudget(), []
    placed: list[Placed] = [(plan_memory(load, free, Placement(mode)), None) for mode in ("none", "model")]
    if amounts is None:
        layers = load.model.dit.num_layers
        kept = sorted({0, layers // 2, layers})
        return [*placed, *((plan_memory(load, free, Placement("stream", count)), None) for count in kept)], []
    for amount in amounts:
        budget = MemoryBudget(None, amount) if load.device.kind == "cpu" else MemoryBudget(amount, None)
        streams = [mode for mode in memory_plans(load, budget) if mode.name == "stream"]
        if streams and streams[0].fits:
            placed.append((streams[0], amount))
        else:
            small.append(amount)
    return placed, small


def measure_modes(
    checkpoint: Checkpoint,
    load: Workload,
    placed: Sequence[Placed],
    rates: dict[str, float],
    device: torch.device,
    *,
    seconds: float | None = None,
) -> Iterator[tuple[MemoryPlan, dict[str, Any] | MachineError]]:
    """Render in each mode; yield its row, or the error where memory, or the `seconds` for all, did not suffice.

    Each film is rendered in a process of its own, held to its budget on a GPU. `rates` are `bandwidths`.
    """
    end, computing, plan = time.perf_counter() + (seconds or 0), None, load.plan
    for mode, budget in placed:
        left = None if seconds is None else end - time.perf_counter()
        if left is not None and left < LEAST_SECONDS:
            yield mode, MachineError("no time was left for it", hint="allow more time")
            continue
        places = {"folder": str(checkpoint.path), "placement": astuple(mode.placement), "vram": budget}
        task = Task.for_plan(plan, load.dtype, str(device), **places)
        try:
            with DriverWatch(str(device)) as watch:
                result = run("ours", task, timeout=left)
        except MachineError as error:
            yield mode, error
            continue
        chunk_seconds = (result.seconds - result.phases["text"]) / len(plan.chunks)
        if mode.name == "none":
            computing = chunk_seconds
        yield mode, row_of(mode, budget, result, watch.peak_bytes, chunk_seconds, computing, rates)


def row_of(
    mode: MemoryPlan,
    budget: int | None,
    result: Result,
    driver: int | None,
    seconds: float,
    computing: float | None,
    rates: dict[str, float],
) -> dict[str, Any]:
    """Return the row of a mode.

    `floor_seconds` is the larger of the transfers' time at the measured bandwidths, the files being in the page cache,
    and a chunk's time with nothing offloaded. `driver` is the peak in bytes that nvidia-smi reports.
    """
    # The budget is that of the device that computes: a GPU's memory by the widest of three counts, or the host's.
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


class DriverWatch:
    """Queries nvidia-smi again and again inside its block, and so counts contexts and libraries of all processes, too.

    `peak_bytes` is the largest amount in use beyond the amount at the start; None where nvidia-smi does not answer.
    `device` is as in --device.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.peak_bytes: int | None = None
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> DriverWatch:
        before = self._used()
        if before is not None:
            self.peak_bytes = 0
            self._thread = threading.Thread(target=self._watch, args=(before,), daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        if self._thread:
            self._thread.join()

    def _watch(self, before: int) -> None:
        while not self._done.wait(SECONDS_BETWEEN):
            used = self._used()
            if used is not None:
                self.peak_bytes = max(self.peak_bytes or 0, used - before)

    def _used(self) -> int | None:
        device = find_device(self.device)
        if device.kind != "cuda" or device.free_bytes is None or device.total_bytes is None:
            return None
        return device.total_bytes - device.free_bytes


def bandwidths(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Measure bytes a second of a checkpoint's own files, by the code that streams them.

    `disk` and `cache` are bytes as stored, from the disk and from the page cache into `dtype`; `upload` goes to a GPU.
    `disk` is left out where the kernel keeps the files in its cache whatever it is advised.
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
        rates = {"disk": size / _seconds(lambda: _read(sample, files, device, dtype))}
        rates["cache"] = size / min(_seconds(lambda: _read(sample, files, device, dtype)) for _ in range(2))
    finally:
        files.close()
    if rates["disk"] > 0.8 * rates["cache"]:
        del rates["disk"]
    if device.type == "cuda":
        rates["upload"] = _upload(device)
    return rates


def _read(sample: list[StoredTensor], files: WeightFiles, device: torch.device, dtype: torch.dtype) -> None:
    def piece(work: tuple[StoredTensor, tuple[int, int]]) -> None:
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
