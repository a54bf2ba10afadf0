"""Measures seconds by phase."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Clock:
    """Sums the seconds spent in each named phase.

    A GPU may still be working when Python has moved on. With `exact` the clock waits for the GPU at both ends of a
    phase, which suits a benchmark but slows a render.

    Attributes:
        idle: seconds to leave out of every phase, such as waiting for the model calls of other films.
    """

    def __init__(self, device: torch.device, *, exact: bool = False) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.exact = exact
        self.idle = 0.0
        self._lock = threading.Lock()
        self._wait = exact and device.type == "cuda"

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Time the block. A generator must not yield inside it: its consumer's time would count."""
        start = self.now()
        try:
            yield
        finally:
            with self._lock:  # chunks are decoded in several threads
                self.seconds[phase] += self.now() - start

    def now(self) -> float:
        if self._wait:
            torch.cuda.synchronize()
        return time.perf_counter() - self.idle
