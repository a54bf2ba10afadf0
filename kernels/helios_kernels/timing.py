"""How long work takes by the GPU's own clock."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

FEWEST, MOST = 5, 100
"""Calls that are timed."""

AHEAD_CYCLES = 1_000_000
"""About half a millisecond that the GPU idles before each call, in which Python hands over what is timed. Without it a
short kernel would be timed with the launch that graphs spare."""


def gpu_seconds(call: Callable[[], object], *, budget: float = 0.3) -> float:
    """Median of one call on the current GPU, its L2 cache flushed before each.

    Calls take about `budget` seconds in all, of which the first third is not counted.
    """
    flushed = torch.empty(_l2_bytes() * 2, dtype=torch.int8, device="cuda")
    began = time.perf_counter()
    while time.perf_counter() - began < budget / 3:  # a chip that has waited for a compiler has to speed up again
        call()
        torch.cuda.synchronize()
    (once,) = _timed(call, flushed, 1)
    return statistics.median(_timed(call, flushed, min(MOST, max(FEWEST, int(budget * 2 / 3 / max(once, 1e-6))))))


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
    """Of the GPU; that of the largest there is where it is not told."""
    return getattr(torch.cuda.get_device_properties(torch.cuda.current_device()), "L2_cache_size", 0) or 2**28
