"""What the driver says of a GPU's memory while something else runs: contexts, libraries, and all that is allocated."""

from __future__ import annotations

import threading

from helios_cli.device import find_device

SECONDS_BETWEEN = 0.1


class DriverWatch:
    """Asks nvidia-smi again and again inside its block. `peak_bytes` is then the most that was used over what was used
    before, by whatever process; None where nvidia-smi does not answer. `device` is as in --device."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.peak_bytes: int | None = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> DriverWatch:
        self._before = self._used()
        if self._before is not None:
            self.peak_bytes = 0
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(SECONDS_BETWEEN):
            used = self._used()
            if used is not None:
                self.peak_bytes = max(self.peak_bytes, used - self._before)

    def _used(self) -> int | None:
        found = find_device(self.device)
        return None if found.kind != "cuda" or found.free_bytes is None else found.total_bytes - found.free_bytes
