"""Times work by the GPU's own clock."""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

FEWEST, MOST = 5, 100
"""Calls that are timed."""

AHEAD_CYCLES = 1_000_000
"""About half a millisecond that the GPU idles before each call, in which Python hands over the work that is timed.
Without it a short kernel would be timed together with its launch, which graphs spare."""


def gpu_seconds(call: Callable[[], object], *, budget: float = 0.3) -> float:
    """Return the median of one call on the current GPU, its L2 cache flushed before each.

    Calls take about `budget` seconds in all, of which the first third is not counted.
    """
    flushed = torch.empty(_l2_bytes() * 2, dtype=torch.int8, device="cuda")
    began = time.perf_counter()
    while time.perf_counter() - began < budget / 3:  # a chip that has waited for a compiler has to speed up again
        call()
        torch.cuda.synchronize()
    (once,) = _timed(call, flushed, 1)
    return statistics.median(_timed(call, flushed, min(MOST, max(FEWEST, int(budget * 2 / 3 / max(once, 1e-6))))))


@dataclass(frozen=True)
class Sustained:
    """The seconds a call that a chip sustains, and the clock (MHz) and power (W) that the driver reported during
    the calls, or None."""

    seconds: float
    clock: float | None
    watts: float | None


def sustained(call: Callable[[], object], *, seconds: float = 2.0) -> Sustained:
    """Time `call` back to back on the current GPU, which slows down when it gets hot or draws too much power."""
    call()
    torch.cuda.synchronize()
    began = time.perf_counter()
    call()
    torch.cuda.synchronize()
    together = max(1, int(0.1 / max(time.perf_counter() - began, 1e-6)))  # so that the wait for them takes no share

    def calls_until(end: float) -> int:
        calls = 0
        while not calls or time.perf_counter() < end:
            for _ in range(together):
                call()
            torch.cuda.synchronize()
            calls += together
        return calls

    began = time.perf_counter()
    calls, driver = calls_until(began + seconds / 2), _ask_driver()
    calls += calls_until(began + seconds)
    return Sustained((time.perf_counter() - began) / calls, *_clock_and_watts(driver))


def _ask_driver() -> subprocess.Popen[str] | None:
    """Start a query of the driver while the chip works on; None without nvidia-smi."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    which = f"GPU-{properties.uuid}" if hasattr(properties, "uuid") else str(torch.cuda.current_device())
    query = ["--query-gpu=clocks.sm,power.draw", "--format=csv,noheader,nounits", "-i", which]
    try:
        return subprocess.Popen(["nvidia-smi", *query], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    except OSError:
        return None


def _clock_and_watts(driver: subprocess.Popen[str] | None) -> tuple[float | None, float | None]:
    if driver is None:
        return None, None
    try:
        numbers = driver.communicate(timeout=10)[0].split(",")
        clock, watts = (float(number) if number.strip().replace(".", "", 1).isdigit() else None for number in numbers)
    except (subprocess.TimeoutExpired, ValueError):  # it hangs, or answers something else
        driver.kill()
        return None, None
    return clock, watts


def _timed(call: Callable[[], object], flushed: torch.Tensor, count: int) -> list[float]:
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(count)]
    for start, end in events:
        flushed.zero_()
        torch.cuda._sleep(AHEAD_CYCLES)
        start.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) / 1e3 for start, end in events]


def _l2_bytes() -> int:
    """Return the size of the GPU's L2 cache; of the largest there is where PyTorch does not report it."""
    return getattr(torch.cuda.get_device_properties(torch.cuda.current_device()), "L2_cache_size", 0) or 2**28
