"""Seconds by phase."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Clock:
    """Adds up the seconds spent in each named phase.

    A device works on after Python has moved on; with `exact` the clock waits for it at both ends of a phase, which a
    benchmark wants and a render does not.
    """

    def __init__(self, device: torch.device, *, exact: bool = False) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.exact = exact
        self._wait = exact and device.type == "cuda"

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Times what is done inside. A generator yields outside: what its caller does then is not of the phase."""
        start = self.now()
        try:
            yield
        finally:
            self.seconds[phase] += self.now() - start

    def now(self) -> float:
        if self._wait:
            torch.cuda.synchronize()
        return time.perf_counter()
