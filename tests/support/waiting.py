"""Waiting for processes in tests. The limits measure nothing: a machine that is slow, or busy, fails no test."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

LONGEST = 1200
"""Seconds after which a process hangs: what takes one here takes minutes on a machine that does ten other things."""


def wait_until(condition: Callable[[], object]) -> None:
    """Return once `condition` holds; AssertionError if it never comes to."""
    end = time.monotonic() + LONGEST
    while not condition():
        assert time.monotonic() < end, "still waiting"
        time.sleep(0.01)


def wait_for_safe_chunk(parts: Path) -> None:
    """Return once a chunk is safe in a folder of parts: its piece follows its state, and both some time after the event
    `chunk_done`, as they are encoded and written while the next chunk is rendered."""
    wait_until(lambda: list(parts.glob("chunks/*/*.piece")))


def alive(pid: int) -> bool:
    """Return whether the process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
